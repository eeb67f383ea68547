"""What other tools read of a build, and what comes back from them."""

import json
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskmill.masks.rle import decode, encode
from maskmill.pipeline.exchange import exporting
from maskmill.pipeline.verify import verify
from maskmill.storage.build import Build
from maskmill.storage.files import at, files_in
from tests.chaos.s3 import make_bucket, moto, use
from tests.pipeline.conftest import build, drawing
from tests.pipeline.exchange import (
    SA1B,
    H,
    W,
    complaint,
    done,
    export,
    foreign,
    grey,
    import_,
    index_of,
    jpeg,
    run,
    sorted_masks,
)
from tests.pipeline.synthetic import write_build


def bytes_of(pictures: Path, made: Build) -> dict[int, bytes]:
    """image_id -> the encoded source image."""
    return {r["image_id"]: (pictures / r["key"]).read_bytes() for r in made.images().to_pylist() if r["status"] == "ok"}


def masks_of(made: Build) -> dict[int, list[dict[str, Any]]]:
    out: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted_masks(made).to_pylist():
        out[row["image_id"]].append(row)
    return out


# ---- SA-1B


def test_sa1b_is_read_as_the_official_readme_says(pictures: Path, made: Build, tmp_path: Path) -> None:
    """A JSON for each image beside it; masks by pycocotools' decode; images byte by byte."""
    dest = export(made.path, tmp_path / "sa1b", "sa1b")
    files = sorted(dest.rglob("sa_*.json"))
    source, rows = bytes_of(pictures, made), masks_of(made)
    assert len(files) == 4 and {f.parent.name for f in files} == {"sa_000000", "sa_000001"}
    for file in files:
        tree = json.loads(file.read_text())
        assert list(tree) == ["image", "annotations"]
        about = tree["image"]
        assert [type(v) for v in about.values()] == [int, int, int, str] and file.stem == f"sa_{about['image_id']}"
        assert (file.parent / about["file_name"]).read_bytes() == source[about["image_id"]]
        for annotation, row in zip(tree["annotations"], rows[about["image_id"]], strict=True):
            pixels = coco_mask.decode(annotation["segmentation"])
            assert pixels.shape == (about["height"], about["width"]) and pixels.sum() == annotation["area"]
            assert (pixels.astype(bool) == decode(row["counts"], row["height"], row["width"])).all()
            assert annotation["id"] == row["mask_id"] and annotation["predicted_iou"] == row["predicted_iou"]
    line = index_of(dest)[tree["image"]["image_id"]]
    assert (dest / line["file"]).is_file() and json.loads((dest / "_SUCCESS").read_text())["images"] == 4
    assert "nothing to do" in done("export", made.path, dest, "--format", "sa1b").output


@pytest.mark.parametrize("format", ["sa1b", "sa1b-tar"])
def test_sa1b_there_and_back(format: str, made: Build, tmp_path: Path) -> None:
    """Promise 6: every column that SA-1B has, bit for bit, and every image."""
    back = import_(export(made.path, tmp_path / "out", format), tmp_path / "back", "sa1b")
    assert sorted_masks(back).equals(sorted_masks(made))
    assert set(back.masks()["source"].to_pylist()) == {"import"} and back.masks()["model"].null_count
    columns = ["image_id", "width", "height", "sha256"]
    good = made.images().filter(pa.compute.not_equal(made.images()["status"], "quarantined"))
    assert back.images().sort_by("image_id").select(columns).equals(good.sort_by("image_id").select(columns))
    twice = export(back.path, tmp_path / "twice", format)
    first = {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("sa_*.json")}
    assert {p.name: p.read_bytes() for p in twice.rglob("sa_*.json")} == first


def test_sa1b_tars_hold_image_and_json_side_by_side(pictures: Path, made: Build, tmp_path: Path) -> None:
    dest = export(made.path, tmp_path / "out", "sa1b-tar")
    seen: dict[int, bytes] = {}
    for path in sorted(dest.glob("sa_*.tar")):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            assert all(a.rsplit(".", 1)[0] == b.rsplit(".", 1)[0] for a, b in zip(names[::2], names[1::2], strict=True))
            for image, text in zip(names[::2], names[1::2], strict=True):
                about = json.load(tar.extractfile(text))["image"]  # type: ignore[arg-type]
                assert image == f"./{about['file_name']}"
                seen[about["image_id"]] = tar.extractfile(image).read()  # type: ignore[union-attr]
    assert seen == bytes_of(pictures, made)
    again = export(made.path, tmp_path / "again", "sa1b-tar")
    assert [p.read_bytes() for p in sorted(again.glob("*.tar"))] == [p.read_bytes() for p in sorted(dest.glob("*.tar"))]


# ---- COCO


def test_coco_is_read_by_pycocotools(
    made: Build, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every mask is decoded; areas and boxes are pycocotools' own; ids count from 1; images lie where it says."""
    dest = export(made.path, tmp_path / "coco", "coco")
    data, rows, source = COCO(str(dest / "annotations" / "instances.json")), masks_of(made), bytes_of(pictures, made)
    assert sorted(data.anns) == list(range(1, made.masks().num_rows + 1)) and sorted(data.imgs) == [1, 2, 3, 4]
    for record in data.anns.values():
        ours = data.imgs[record["image_id"]]["meta"]["image_id"]
        row = next(r for r in rows[ours] if r["mask_id"] == record["meta"]["mask_id"])
        assert (data.annToMask(record).astype(bool) == decode(row["counts"], row["height"], row["width"])).all()
        rle = data.annToRLE(record)
        assert record["area"] == coco_mask.area(rle) and record["bbox"] == coco_mask.toBbox(rle).tolist()
        assert record["category_id"] in data.cats
    for image in data.imgs.values():
        assert (dest / "images" / image["file_name"]).read_bytes() == source[image["meta"]["image_id"]]
    assert len(data.anns) == len(data.getAnnIds(iscrowd=False))


def test_coco_there_and_back(made: Build, tmp_path: Path) -> None:
    back = import_(export(made.path, tmp_path / "coco", "coco"), tmp_path / "back", "coco")
    assert sorted_masks(back).equals(sorted_masks(made))
    keys = {r["image_id"]: r["key"] for r in made.images().to_pylist()}
    for row in back.images().to_pylist():
        assert json.loads(row["meta"]) == {"shard": ".", "key": keys[row["image_id"]]}


def test_coco_without_images_names_the_source(made: Build, pictures: Path, tmp_path: Path) -> None:
    """So a loader that is given the source folder finds them."""
    dest = export(made.path, tmp_path / "coco", "coco", "--no-images")
    assert not (dest / "images").exists()
    file = dest / "annotations" / "instances.json"
    assert all((pictures / r["file_name"]).is_file() for r in json.loads(file.read_text())["images"])
    assert sorted_masks(import_(file, tmp_path / "back", "coco", "--images", pictures)).equals(sorted_masks(made))


def test_coco_without_images_keeps_the_folders_of_keys(pictures: Path, tmp_path: Path) -> None:
    """Also one that is called as the folder of an export's own images."""
    folder = tmp_path / "set"
    for place, name in ((folder, "a.png"), (folder / "images", "a.png")):
        place.mkdir(exist_ok=True)
        drawing(len(str(place))).save(place / name)
    made = build(folder, tmp_path / "b")
    shown = done("export", made.path, tmp_path / "coco", "--format", "coco", "--no-images").output
    tree = json.loads((tmp_path / "coco/annotations/instances.json").read_text())
    assert sorted(r["file_name"] for r in tree["images"]) == ["a.png", "images/a.png"]
    assert "turned      not looked at" in shown


def test_label_maps_of_very_many_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their ids are longer than a field that csv reads by itself; more than 16 bits count are refused by name."""
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("L", (200, 100)).save(folder / "a.png")
    annotations = []
    for n in range(15_000):
        mask = np.zeros((100, 200), bool)
        mask.flat[n] = True
        annotations.append({"id": 10**9 + n, "segmentation": {"size": [100, 200], "counts": encode(mask)}})
    tree = {"image": {"image_id": 1, "width": 200, "height": 100}, "annotations": annotations}
    (folder / "a.json").write_text(json.dumps(tree))
    found = import_(folder, tmp_path / "b", "sa1b")
    (line,) = index_of(export(found.path, tmp_path / "png", "png")).values()
    assert len(line["mask_ids"].split()) == 15_000
    monkeypatch.setattr(exporting, "MOST", 14_999)
    said = complaint(run("export", found.path, tmp_path / "more", "--format", "png", "--quiet"))
    assert "image 'a.png' of '.' has 15000 masks: a 16-bit label map holds 14999" in said


def test_foreign_coco_keeps_ids_categories_and_the_rest(tmp_path: Path) -> None:
    """And goes out again as it came: the same categories, crowds, pixels."""
    found = import_(foreign(tmp_path / "set"), tmp_path / "b", "coco")
    rows = {r["mask_id"]: r for r in found.masks().to_pylist()}
    assert sorted(rows) == [70, 71, 80] and {rows[70]["image_id"], rows[71]["image_id"]} == {9}
    assert rows[70]["counts"] == rows[71]["counts"] and rows[70]["area"] == 160 and rows[70]["bbox_w"] == 15
    assert json.loads(rows[70]["meta"]) == {"iscrowd": 1, "category": "cat", "category_id": 17}
    want = {"attributes": {"occluded": True}, "category": "dog", "category_id": 18}
    assert json.loads(rows[80]["meta"]) == want and rows[80]["bbox_x"] == 5 and rows[80]["area"] > 100
    assert {r["key"]: r["meta"] for r in found.images().to_pylist()} == {"a.png": '{"license": 2}', "b.png": None}
    assert found.candidates().equals(found.masks()) and found.imported
    again = COCO(str(export(found.path, tmp_path / "out", "coco") / "annotations" / "instances.json"))
    original = json.loads((tmp_path / "set" / "instances.json").read_text())
    assert again.dataset["categories"] == original["categories"] and again.dataset["licenses"] == original["licenses"]
    by_id = {a["meta"]["mask_id"]: a for a in again.anns.values()}
    assert {i: (a["category_id"], a["iscrowd"]) for i, a in by_id.items()} == {70: (17, 1), 71: (17, 0), 80: (18, 0)}
    back = import_(tmp_path / "out", tmp_path / "back", "coco")
    columns = [*SA1B, "meta"]
    assert sorted_masks(back, columns).equals(sorted_masks(found, columns))


def test_imported_masks_are_filtered_like_any_other(tmp_path: Path) -> None:
    """Meta and ids stay; a mask without a score passes only a threshold that is off; the result goes out again."""
    found = import_(foreign(tmp_path / "set"), tmp_path / "b", "coco")

    def filtered(name: str, *settings: str) -> list[dict[str, Any]]:
        words = [word for s in settings for word in ("--set", s)]
        done("filter", found.path, "--name", name, "--engine", "local", "--quiet", *words)
        assert list(verify(found.path, quick=False)) == []
        rows: list[dict[str, Any]] = Build(found.path).masks(name).to_pylist()
        return rows

    everything = found.masks().to_pylist()
    assert filtered("same", "filter.sample=1.0") == everything
    assert filtered("large", "filter.min_area=162") == [r for r in everything if r["area"] >= 162] != []
    assert (
        filtered("scored", "filter.pred_iou_thresh=0.1")
        == filtered("stable", "filter.stability_score_thresh=0.1")
        == []
    )
    told = run("filter", found.path, "--name", "again", "--engine", "local", "--set", "filter.pred_iou_thresh=0.1")
    assert "masks without scores pass only thresholds that are off (0)" in told.stdout
    flat = filtered("flat", "filter.shared_pixels=smallest")
    assert {r["meta"] for r in flat} <= {r["meta"] for r in everything} and len(flat) < len(everything)
    assert len(index_of(export(found.path, tmp_path / "png", "png", "--filter", "flat"))) == 2
    large = export(found.path, tmp_path / "coco", "coco", "--filter", "large")
    annotations = json.loads((large / "annotations" / "instances.json").read_text())["annotations"]
    assert [a["meta"]["mask_id"] for a in annotations] == [80] and annotations[0]["category_id"] == 18


# ---- WebDataset, label maps, Hugging Face


def test_webdataset_reads_masks_and_fields(made: Build, tmp_path: Path) -> None:
    """With its own library and decoders: image, JSON, and a picture of each mask."""
    import webdataset

    dest = export(made.path, tmp_path / "wds", "webdataset")
    urls = [str(p) for p in sorted(dest.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode(webdataset.handle_extension("png", grey)))
    rows, keys = masks_of(made), {r["image_id"]: r["key"] for r in made.images().to_pylist()}
    assert len(samples) == 4
    for sample in samples:
        about = sample["json"]["image"]
        assert sample["__key__"] == f"{about['image_id']:012d}" and about["key"] == keys[about["image_id"]]
        for annotation, row in zip(sample["json"]["annotations"], rows[about["image_id"]], strict=True):
            want = decode(row["counts"], row["height"], row["width"])
            assert (sample[annotation["mask"]] == want).all() and annotation["source"] == "auto"
            assert (coco_mask.decode(annotation["segmentation"]).astype(bool) == want).all()


def test_label_maps_of_masks_that_do_not_overlap(tmp_path: Path) -> None:
    """n in the picture is the n-th of the mask_ids in the index; overlaps are refused before anything is written."""
    found = import_(foreign(tmp_path / "set"), tmp_path / "b", "coco")
    line = complaint(run("export", found.path, tmp_path / "png", "--format", "png", "--quiet"))
    assert "image 'a.png'" in line and "masks 70 and 71 overlap" in line and "filter.shared_pixels" in line
    assert not (tmp_path / "png").exists()
    tree = json.loads((tmp_path / "set" / "instances.json").read_text())
    apart = [a for a in tree["annotations"] if a["id"] != 71]
    apart.append({"id": 5, "image_id": 9, "segmentation": [[20, 5, 30, 5, 30, 25, 20, 25]]})
    flat = import_(foreign(tmp_path / "flat", annotations=apart), tmp_path / "f", "coco")
    dest = export(flat.path, tmp_path / "png", "png")
    for image_id, line in index_of(dest).items():
        labels = grey((dest / line["file"]).read_bytes())
        assert labels.dtype == np.uint16
        rows = masks_of(flat)[image_id]
        ids = [int(i) for i in line["mask_ids"].split()]
        assert ids == [r["mask_id"] for r in rows] and labels.max() == len(ids)
        for n, row in enumerate(rows):
            assert ((labels == n + 1) == decode(row["counts"], H, W)).all()


def test_hugging_face_loads_the_tables_as_they_are(
    made: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    files = {"masks": "masks/default/*.parquet", "images": "images/*.parquet"}
    for name, pattern in files.items():
        found = datasets.load_dataset(
            "parquet", data_files=str(made.path / pattern), split="train", cache_dir=str(tmp_path / "hf")
        )
        table = made.masks() if name == "masks" else made.images()
        assert found.num_rows == table.num_rows and found.column_names == table.column_names
    one = found.sort("image_id")[0]
    assert one["image_id"] == min(made.images()["image_id"].to_pylist())


# ---- EXIF


def test_turned_images_and_their_masks(made: Build, pictures: Path, tmp_path: Path) -> None:
    """As they are: bytes kept, masks on the upright grid, which is told. --upright: pixels turned, for any reader."""
    told = run("export", made.path, tmp_path / "plain", "--format", "coco").stdout
    assert "1 images have an EXIF orientation" in told and "--upright" in told
    dest = export(made.path, tmp_path / "upright", "coco", "--upright")
    for folder, fits in (("plain", False), ("upright", True)):
        tree = json.loads((tmp_path / folder / "annotations" / "instances.json").read_text())
        (record,) = [i for i in tree["images"] if i["meta"]["key"] == "turned.jpg"]
        file = tmp_path / folder / "images" / record["file_name"]
        assert cv2.imread(str(file)).shape == (record["height"], record["width"], 3)
        with Image.open(file) as image:
            assert (image.size == (record["width"], record["height"])) is fits
            assert record["file_name"].endswith("png" if fits else "jpg")
    assert sorted_masks(import_(dest, tmp_path / "back", "coco")).equals(sorted_masks(made))
    assert "leave it out" in complaint(run("export", made.path, tmp_path / "x", "--format", "png", "--upright"))


def test_masks_of_the_stored_grid_are_turned_on_import(tmp_path: Path) -> None:
    """As tools make them that ignore EXIF; with those of a tool that does not, in one file."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(1, (W, H), 6))
    stored = np.zeros((H, W), bool)
    stored[2:9, 5:30] = True
    annotations = [
        {"id": 1, "segmentation": {"size": [H, W], "counts": encode(stored)}, "point_coords": [[5, 2]]},
        {"id": 2, "segmentation": {"size": [W, H], "counts": encode(np.rot90(stored, -1))}},
    ]
    for width, height, name in ((W, H, "stored"), (H, W, "upright")):
        tree = {"image": {"image_id": 4, "width": width, "height": height}, "annotations": annotations}
        (folder / "a.json").write_text(json.dumps(tree))
        first, second = sorted_masks(import_(folder, tmp_path / name, "sa1b")).to_pylist()
        assert first["counts"] == second["counts"] and (first["width"], first["height"]) == (H, W)
        assert (first["point_x"], first["point_y"]) == (H - 1 - 2, 5)


# ---- S3


def test_s3_there_and_back(made: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tars, JSON and folders written to a bucket, and imported from there into a build in it."""
    with moto(tmp_path / "log") as url:
        use(monkeypatch, url)
        bucket = make_bucket("exchange")
        for format, kind in (("sa1b-tar", "sa1b"), ("sa1b", "sa1b"), ("coco", "coco")):
            done("export", made.path, f"{bucket}/{format}", "--format", format, "--quiet")
            done("import", f"{bucket}/{format}", "--out", f"{bucket}/b-{format}", "--format", kind, "--quiet")
            assert sorted_masks(Build(f"{bucket}/b-{format}")).equals(sorted_masks(made))
        big = write_build(tmp_path / "b", 1)
        export_to = f"{bucket}/stopped"
        monkeypatch.setattr("maskmill.pipeline.exchange.coco_export.mask_records", broken_off)
        failed = run("export", big.path, export_to, "--format", "coco", "--no-images", "--quiet")
        assert failed.exit_code == 1 and "RuntimeError: in the middle" in failed.stderr
        names = [str(p) for p in files_in(at(export_to))]
        assert names and not any("instances.json" in n or "_SUCCESS" in n for n in names)


def broken_off(*words: Any) -> Any:
    """Fails beyond the first part of an upload."""
    yield from ({"x": "y" * 1000} for _ in range(60_000))
    raise RuntimeError("in the middle")


@pytest.mark.parametrize("command", ["export", "import"])
def test_help_has_an_example(command: str) -> None:
    assert f"maskmill {command} " in run(command, "--help").stdout
