"""MaskGenerator's arguments and refusals; its masks are compared in tests/parity."""

import inspect
from typing import Any

import numpy as np
import pytest

from maskmill import MaskGenerator
from maskmill.errors import UserError
from tests.parity.official import SamAutomaticMaskGenerator
from tests.unit.generate import fake


def test_arguments_and_defaults_are_official() -> None:
    ours, theirs = (inspect.signature(c.__init__).parameters for c in (MaskGenerator, SamAutomaticMaskGenerator))
    assert list(ours)[: len(theirs)] == list(theirs)
    for name in list(theirs)[2:]:
        assert ours[name].default == theirs[name].default, name
    assert set(ours) - set(theirs) == {"max_area_share"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"output_mode": "png"}, "'png'"),
        ({"points_per_side": None}, "point_grids"),
        ({"point_grids": [np.zeros((1, 2))]}, "point_grids"),
        ({"points_per_side": None, "point_grids": [np.zeros((1, 2))], "crop_n_layers": 1}, "needs 2"),
        ({"points_per_side": 0}, "points_per_side"),
        ({"points_per_batch": 0}, "points_per_batch"),
        ({"crop_overlap_ratio": 1.0}, "crop_overlap_ratio"),
        ({"box_nms_thresh": -0.1}, "box_nms_thresh"),
        ({"pred_iou_thresh": float("nan")}, "floor_pred_iou|pred_iou_thresh"),
    ],
)
def test_wrong_arguments(args: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        MaskGenerator(fake.FakeSam(), **args)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)],
)
def test_wrong_images(image: np.ndarray) -> None:
    with pytest.raises(UserError, match="uint8 H x W x 3"):
        MaskGenerator(fake.FakeSam()).generate(image)  # type: ignore[arg-type]


def test_batch_is_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    args = {"points_per_side": 3, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.3, "output_mode": "coco_rle"}
    generator = MaskGenerator(fake.patch(monkeypatch), **args)  # type: ignore[arg-type]
    images = [np.zeros((h, w, 3), np.uint8) for h, w in ((40, 60), (60, 40), (33, 33))]
    together = generator.generate_batch(images)
    assert together == [generator.generate(image) for image in images] and all(together)


def test_max_area_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """SA-1B's 95% rule, absent from the released code (amg.md 1.7): at or above the share is dropped."""
    args = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    model, image = fake.patch(monkeypatch), np.zeros((40, 60, 3), np.uint8)
    areas = [r["area"] for r in MaskGenerator(model, **args).generate(image)]  # type: ignore[arg-type]
    share = sorted(areas)[len(areas) // 2] / (40 * 60)
    kept = [r["area"] for r in MaskGenerator(model, **args, max_area_share=share).generate(image)]  # type: ignore[arg-type]
    assert kept == [a for a in areas if a / (40 * 60) < share] and 0 < len(kept) < len(areas)
