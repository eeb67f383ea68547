"""A build's rows: complete, the same however they were made, and equal to the official generator's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.agreement import Thresholds, agree
from maskmill.pipeline.verify import verify
from maskmill.sam.build import load_config, load_model
from maskmill.storage.schemas import IMAGES, MASKS
from maskmill.storage.sources import image_id
from tests.pipeline.conftest import build, config, drawing, make_tar, png, tables


def test_every_image_stands_in_images_once(reference: dict[str, pa.Table]) -> None:
    rows = {row["key"]: row for row in reference["images"].to_pylist()}
    assert sorted(rows) == ["0.png", "1.png", "2.png", "4.png", "5.png", "6.png", "bad.jpg", "sub/3.png"]
    assert len(rows) == reference["images"].num_rows
    assert rows["bad.jpg"]["status"] == "quarantined" and "not a JPEG" in rows["bad.jpg"]["error"]
    assert rows["bad.jpg"]["num_candidates"] == 0 and rows["bad.jpg"]["width"] is None
    assert (rows["2.png"]["width"], rows["2.png"]["height"]) == (120, 60)
    assert all(row["image_id"] == image_id(".", row["key"]) for row in rows.values())


def test_counts_of_candidates_are_the_rows(reference: dict[str, pa.Table]) -> None:
    total = sum(row["num_candidates"] for row in reference["images"].to_pylist())
    assert total == reference["candidates"].num_rows


def test_half_precision(photos: Path, reference: dict[str, pa.Table], tmp_path: Path) -> None:
    """It reaches the model: other numbers, much the same masks."""
    made = tables(build(photos, tmp_path / "b", config("generate.precision=bfloat16")))
    scores = [t["candidates"]["predicted_iou"].to_numpy() for t in (made, reference)]
    assert abs(len(scores[0]) - len(scores[1])) <= 0.1 * len(scores[1])
    assert abs(scores[0].mean() - scores[1].mean()) < 0.01 and not np.isin(scores[0], scores[1]).all()


@pytest.mark.parametrize("changes", [("run.unit_size=1",), ("run.unit_size=100",)])
def test_rows_do_not_depend_on_unit_size(
    changes: tuple[str, ...], photos: Path, reference: dict[str, pa.Table], tmp_path: Path
) -> None:
    assert tables(build(photos, tmp_path / "b", config(*changes))) == reference


@pytest.mark.parametrize("actors", [1, 2])
def test_rows_do_not_depend_on_engine_or_actors(
    actors: int, photos: Path, reference: dict[str, pa.Table], tmp_path: Path, cluster: None
) -> None:
    made = build(photos, tmp_path / "b", config(f"run.actors={actors}"), engine="ray")
    assert tables(made) == reference
    assert list(verify(tmp_path / "b", quick=False)) == []


def test_masks_are_the_official_generators(photos: Path, reference: dict[str, pa.Table]) -> None:
    from tests.parity.official import SamAutomaticMaskGenerator, official_sam

    official = official_sam(load_config("nano"))
    official.load_state_dict(load_model("nano").state_dict())
    cfg = config()
    generator = SamAutomaticMaskGenerator(
        official,
        points_per_side=cfg.generate.points_per_side,
        pred_iou_thresh=cfg.filter.pred_iou_thresh,
        stability_score_thresh=cfg.filter.stability_score_thresh,
        box_nms_thresh=cfg.filter.box_nms_thresh,
        min_mask_region_area=cfg.filter.min_mask_region_area,
        output_mode="coco_rle",
    )
    import torch

    torch.set_num_threads(cfg.generate.threads)
    f = cfg.filter
    thresholds = Thresholds(f.pred_iou_thresh, f.stability_score_thresh, f.box_nms_thresh, f.crop_nms_thresh)
    compared = 0
    for row in reference["images"].to_pylist():
        if row["status"] == "quarantined":
            continue
        pixels = np.array(Image.open(photos / row["key"]).convert("RGB"))
        mine = reference["masks"].filter(pa.compute.equal(reference["masks"]["image_id"], row["image_id"])).to_pylist()
        got = agree(generator.generate(pixels), [as_record(m, pixels) for m in mine], thresholds, row["key"])
        assert got.unexcused == 0, got.misses
        compared += got.second
    assert compared == reference["masks"].num_rows > 7


def as_record(row: dict[str, Any], pixels: np.ndarray) -> dict[str, Any]:
    """A row of `masks` as the official generator would give it."""
    bbox = [row[f"bbox_{side}"] for side in "xywh"]
    return {**row, "segmentation": {"size": list(pixels.shape[:2]), "counts": row["counts"]}, "bbox": bbox}


def test_files_have_the_full_schema_and_say_how_they_were_made(photos: Path, tmp_path: Path) -> None:
    made = build(photos, tmp_path / "b")
    for table, schema in (("images", IMAGES), ("candidates", MASKS), ("masks/default", MASKS)):
        for path in (tmp_path / "b" / table).glob("*.parquet"):
            stored = pq.read_schema(path)
            assert stored.remove_metadata().equals(schema)
            assert json.loads(stored.metadata[b"maskmill.generate"])["points_per_side"] == 5
    plain = pq.read_table(tmp_path / "b" / "masks" / "default")
    assert plain.num_rows == made.masks().num_rows > 0


def test_same_rows_give_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    hashes = []
    for name in ("a", "b"):
        made = build(photos, tmp_path / name)
        hashes.append([{t: f.sha256 for t, f in m.files.items()} for m in made.manifests()])
    assert hashes[0] == hashes[1]


def test_without_candidates_masks_and_counts_are_the_same(
    photos: Path, reference: dict[str, pa.Table], tmp_path: Path
) -> None:
    made = build(photos, tmp_path / "b", candidates=False)
    assert made.masks().sort_by([("image_id", "ascending"), ("mask_id", "ascending")]) == reference["masks"]
    assert made.images().sort_by("image_id") == reference["images"]
    assert not (tmp_path / "b" / "candidates").exists()


def test_tar_and_parquet_give_the_folders_masks(photos: Path, reference: dict[str, pa.Table], tmp_path: Path) -> None:
    files = {key: (photos / key).read_bytes() for key in reference["images"]["key"].to_pylist()}
    tar = make_tar(tmp_path / "in" / "x.tar", files)
    pq.write_table(pa.table({"key": list(files), "image": list(files.values())}), tmp_path / "x.parquet")
    want = sorted(reference["masks"]["counts"].to_pylist())
    for name, source in (("t", tar), ("p", tmp_path / "x.parquet")):
        made = build(source, tmp_path / name)
        assert sorted(made.masks()["counts"].to_pylist()) == want
        assert made.images().num_rows == len(files)


def test_a_tar_cut_short_loses_only_its_tail(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "whole.tar", {f"{i}.png": png(drawing(i)) for i in range(4)})
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    made = build(cut, tmp_path / "b")
    rows = made.images().to_pylist()
    assert [r["status"] for r in rows].count("quarantined") == 1
    assert any(r["key"].startswith("@byte=") for r in rows) and any(r["status"] == "ok" for r in rows)
    assert list(verify(tmp_path / "b", quick=False)) == []


def test_a_duplicate_key_is_quarantined(tmp_path: Path) -> None:
    import tarfile

    from tests.pipeline.conftest import add

    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        for name, seed in (("a.png", 1), ("b.png", 2), ("a.png", 3)):
            add(tar, name, png(drawing(seed)))
    made = build(tmp_path / "d.tar", tmp_path / "b", config("run.unit_size=1"))
    rows = {r["key"]: r for r in made.images().to_pylist()}
    assert sorted(rows) == ["a", "a#2", "b"]
    assert rows["a#2"]["status"] == "quarantined" and rows["a"]["status"] != "quarantined"


def test_an_image_over_the_limit_is_quarantined_by_its_key(photos: Path, tmp_path: Path) -> None:
    made = build(photos, tmp_path / "b", config("generate.max_image_mpx=0.0065"))
    rows = {r["key"]: r for r in made.images().to_pylist()}
    assert rows["2.png"]["status"] == "quarantined" and "generate.max_image_mpx" in rows["2.png"]["error"]
    assert rows["0.png"]["status"] == "quarantined" and rows["sub/3.png"]["status"] == "ok"


def test_decode_gives_the_pixels_of_a_row(reference: dict[str, pa.Table]) -> None:
    from maskmill import Build

    row = reference["masks"].to_pylist()[0]
    mask = Build.decode(row)
    assert mask.shape == (row["height"], row["width"]) and mask.sum() == row["area"]
