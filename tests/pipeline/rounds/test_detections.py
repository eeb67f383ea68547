"""Whose boxes prefill: someone else's from a COCO results file, and RT-DETR's, through the engine itself."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from maskmill.config import from_tree
from maskmill.errors import UserError
from maskmill.pipeline.engines.local import LocalEngine
from maskmill.pipeline.rounds.config import EngineConfig
from maskmill.pipeline.rounds.run import DataEngine
from maskmill.pipeline.rounds.watch import Watch
from tests.pipeline.rounds.shapes import bbox, shapes, write_shapes

IMAGES, FIRST = 5, 100
TINY = {
    "image_size": 64, "queries": 20, "width": 32, "decoder_layers": 1, "backbone_depths": [1, 1, 1, 1],
    "backbone_sizes": [16, 16, 32, 32], "training": {"steps": 2, "batch_size": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "images", IMAGES, FIRST)


def config(images: Path, prefill: dict[str, Any], assisted: int) -> EngineConfig:
    """No retraining, one image in a round, two held out."""
    tree = {
        "data": {"source": str(images), "held_out": 0.4}, "retrain": False, "automatic": {"enabled": False},
        "assisted": {"rounds": assisted, "images": 1}, "semi": {"rounds": 1, "images": 1}, "queue": {"processes": 1},
        "prefill": {"pred_iou_thresh": 0.1, "stability_score_thresh": 0.1, **prefill},
        "measure": {"points_per_side": 0, "masks_per_image": 1, "resamples": 2, "clicks": [1, 3, 5], "max_clicks": 5},
    }  # fmt: skip
    return from_tree(EngineConfig, tree)


def run(cfg: EngineConfig, out: Path) -> dict[str, Any]:
    """The record of the last round."""
    return DataEngine(cfg, out, LocalEngine(inside=True), Watch(out, quiet=True)).run()[-1]


def true_boxes(folder: Path, ids: range) -> Path:
    """A COCO results file with the box of every object."""
    found = [
        {"image_id": image_id, "category_id": 3, "bbox": bbox(mask), "score": 0.9}
        for n, image_id in enumerate(ids)
        for mask in shapes(n)[1]
    ]
    path = folder / "results.json"
    path.write_text(json.dumps(found))
    return path


def test_boxes_of_a_results_file_prefill(images: Path, tmp_path: Path) -> None:
    """All true boxes: average recall 1, each becomes a prompt; the run is of these boxes and no others."""
    path = true_boxes(tmp_path, range(FIRST, FIRST + IMAGES))
    cfg = config(images, {"detections": str(path)}, assisted=0)
    record = run(cfg, tmp_path / "run")
    detector, annotation = record["detector"], record["annotation"]
    assert detector["kind"] == "detections" and detector["rounds"] == []
    assert detector["recall"]["all"] == detector["recall_50"] == 1.0 and detector["boxes_per_image"] == 3
    assert detector["recall"]["large"] is None, "no object is so large"
    assert annotation["prefilled"] == 3 == annotation["objects"]
    assert annotation["accepted"] + annotation["fixed"] + annotation["rejected"] == 3
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))
    with pytest.raises(UserError, match=r"data\.detections_sha256"):
        run(cfg, tmp_path / "run")


def test_boxes_of_other_images_are_refused(images: Path, tmp_path: Path) -> None:
    """Before any work."""
    path = true_boxes(tmp_path, range(IMAGES))
    with pytest.raises(UserError, match="none of its 5 image ids is one of the set's"):
        run(config(images, {"detections": str(path)}, assisted=0), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="does not exist"):
        run(config(images, {"detections": str(tmp_path / "none.json")}, assisted=0), tmp_path / "run")
    with pytest.raises(UserError, match="give one of kind"):
        config(images, {"detections": str(path), "kind": "rtdetr"}, assisted=0)


@pytest.mark.skipif(find_spec("transformers") is not None, reason="transformers is here: nothing is missing")
def test_a_missing_extra_is_named_before_any_work(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pip install 'maskmill\[detr\]'"):
        run(config(images, {"kind": "rtdetr"}, assisted=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(find_spec("transformers") is None, reason="no transformers here: pip install 'maskmill[detr]'")
def test_rtdetr_prefills(images: Path, tmp_path: Path) -> None:
    """Two steps find nothing; that its boxes come through all stages is tested. Bad weights: before any work."""
    wrong = {"kind": "rtdetr", "rtdetr": {**TINY, "checkpoint": str(tmp_path / "none")}}
    with pytest.raises(UserError, match=r"rtdetr\.checkpoint"):
        run(config(images, wrong, assisted=1), tmp_path / "run")
    record = run(config(images, {"kind": "rtdetr", "rtdetr": TINY, "box_score": 0}, assisted=1), tmp_path / "run")
    assert record["detector"]["kind"] == "rtdetr" and record["detector"]["rounds"] == ["assisted-1"]
    assert 0 < record["detector"]["boxes_per_image"] <= TINY["queries"]
    assert 0 <= record["detector"]["recall"]["all"] < 1
    assert (tmp_path / "run" / "rounds" / "semi-1" / "detector.safetensors").exists()
