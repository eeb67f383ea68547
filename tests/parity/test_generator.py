"""`MaskGenerator` against SamAutomaticMaskGenerator, nano's weights in both: the same masks (benchmarks/agreement.py).

Ours sums up in another order, so a logit differs in its last bits, and once in a while a pixel flips. To save time the
grids here are smaller than the default, and both sides remember what they computed. tests/parity/full.py does neither.
"""

from typing import Any

import numpy as np
import pytest

from maskmill import MaskGenerator
from maskmill.sam.build import build_sam, load_config
from tests.parity.compare import Comparison, compare
from tests.parity.images import SIZES, photos, render, rendered
from tests.parity.official import SamAutomaticMaskGenerator, official_sam
from tests.parity.pair import Pair, Remembering, nano_thresholds

SCORE_TOLERANCE = 1e-4
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"points_per_side": 6, "points_per_batch": 36},
    "one crop layer": {"points_per_side": 4, "points_per_batch": 16, "crop_n_layers": 1},
    "two crop layers": {
        "points_per_side": 8,
        "points_per_batch": 4,
        "crop_n_layers": 2,
        "crop_n_points_downscale_factor": 2,
    },
    "small regions": {"points_per_side": 6, "points_per_batch": 36, "min_mask_region_area": 100},
    "10 points a side": {"points_per_side": 10, "points_per_batch": 50},
}
OFF: dict[str, Any] = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
AT_LEAST = 16  # masks in all: a comparison of nothing proves nothing


@pytest.fixture(scope="module")
def pair(nano: Pair) -> Pair:
    """Both models, with modules that remember what they have seen."""
    official, ours = official_sam(load_config("nano")), build_sam(load_config("nano")).eval()
    for model in (official, ours):
        model.load_state_dict(nano.ours.state_dict())
        model.image_encoder = Remembering(model.image_encoder, nano.ours.img_size)
    official.mask_decoder = Remembering(official.mask_decoder)
    return Pair(official, ours)


def both(pair: Pair, image: np.ndarray, name: str = "", **args: Any) -> Comparison:
    """The two generators on one image."""
    args = {"output_mode": "coco_rle", **nano_thresholds(), **args}
    theirs = SamAutomaticMaskGenerator(pair.official, **args).generate(image)
    ours = MaskGenerator(pair.ours, **args).generate(image)
    return compare(theirs, ours, args, name)


@pytest.mark.parametrize("setting", SETTINGS)
def test_same_masks(setting: str, pair: Pair) -> None:
    """Eight images, every mask of both sides matched; nearly all equal in mask, box, crop, point, area and place.

    Two crop layers are 21 images each: half of them.
    """
    total = Comparison()
    names = ("small", "wide", "odd", "grey") if setting == "two crop layers" else SIZES
    for name, image in rendered().items():
        if name not in names:
            continue
        total.add(both(pair, image, name, **SETTINGS[setting]))
    print(f"{setting}: {total}")
    assert total.agreement.unexcused == 0, total
    assert total.agreement.matched >= AT_LEAST
    assert total.equal >= 0.9 * total.official and total.score_gap <= SCORE_TOLERANCE, total


def test_small_regions_changes_masks(pair: Pair) -> None:
    """So that the comparison above is one: some mask loses a hole or an island, none loses its scores."""
    args: dict[str, Any] = {
        "points_per_side": 6,
        "points_per_batch": 36,
        "output_mode": "coco_rle",
        **nano_thresholds(),
    }
    for image in rendered().values():
        raw = MaskGenerator(pair.ours, **args).generate(image)
        clean = MaskGenerator(pair.ours, **args, min_mask_region_area=100).generate(image)
        areas = {r["predicted_iou"]: r["area"] for r in raw}
        if any(areas[r["predicted_iou"]] != r["area"] for r in clean):
            return
    pytest.fail("no mask of eight images has a small region")


def test_photographs(pair: Pair) -> None:
    """Real pixels, where scikit-image is installed."""
    images = photos()
    if not images:
        pytest.skip("scikit-image is not installed")
    total = Comparison()
    for name, image in images.items():
        total.add(both(pair, image, name, points_per_side=8, min_mask_region_area=100))
    assert total.agreement.unexcused == 0 and total.agreement.matched >= 4, total
    assert total.score_gap <= SCORE_TOLERANCE


@pytest.mark.parametrize("mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
def test_output_modes(mode: str, pair: Pair) -> None:
    """The segmentation field has the official form: bool H x W, list of runs, or compressed string."""
    image = rendered()["odd"]
    args: dict[str, Any] = {"points_per_side": 8, "output_mode": mode, **nano_thresholds()}
    theirs = SamAutomaticMaskGenerator(pair.official, **args).generate(image)
    ours = MaskGenerator(pair.ours, **args).generate(image)
    got = compare(theirs, ours, args)
    assert len(ours) > 3 and got.agreement.unexcused == 0 and got.equal > 3, got
    assert [r.keys() for r in ours] == [r.keys() for r in theirs]
    kind = {"binary_mask": np.ndarray, "uncompressed_rle": dict, "coco_rle": dict}[mode]
    assert all(isinstance(r["segmentation"], kind) for r in ours)


def test_thresholds_of_zero_are_off(pair: Pair) -> None:
    """Every one of 3 x 16 masks reaches the NMS, so its order and its ties are compared on many boxes."""
    off = {**OFF, "points_per_side": 4, "points_per_batch": 16}
    loose = both(pair, rendered()["small"], **off, box_nms_thresh=1.0)
    assert loose.agreement.unexcused == 0 and loose.ours == 48, loose
    tight = both(pair, rendered()["small"], **off, box_nms_thresh=0.3)
    assert tight.agreement.unexcused == 0 and 0 < tight.ours < 48, tight


def test_given_grids(pair: Pair) -> None:
    """point_grids instead of points_per_side: one grid for each layer."""
    rng = np.random.default_rng(3)
    grids = [rng.uniform(0, 1, (16, 2)), rng.uniform(0, 1, (8, 2))]
    args: dict[str, Any] = {"points_per_side": None, "point_grids": grids, "crop_n_layers": 1, "points_per_batch": 8}
    got = both(pair, rendered()["small"], **args)
    assert got.agreement.unexcused == 0 and got.ours > 0, got


@pytest.mark.parametrize("size", [(5, 7), (16, 900), (1, 1)])
def test_images_of_a_few_pixels(size: tuple[int, int], pair: Pair) -> None:
    """No score decides here, so nothing is excused: the same masks to the last pixel."""
    got = both(pair, render(40, *size, objects=1), **OFF, points_per_side=2, points_per_batch=4)
    assert got.agreement.identical == got.ours == got.official > 0 and not got.agreement.misses, got


def test_every_crop_empty(pair: Pair) -> None:
    """Quirk: with crops and no mask at all the official generator dies of an IndexError; ours returns no masks."""
    args: dict[str, Any] = {"pred_iou_thresh": 100.0, "points_per_side": 2, "points_per_batch": 4}
    image = rendered()["small"]
    with pytest.raises(IndexError):
        SamAutomaticMaskGenerator(pair.official, crop_n_layers=1, **args).generate(image)
    assert MaskGenerator(pair.ours, crop_n_layers=1, **args).generate(image) == []
    assert SamAutomaticMaskGenerator(pair.official, **args).generate(image) == []
    assert MaskGenerator(pair.ours, **args).generate(image) == []


@pytest.mark.parametrize(("side", "batch"), [(10, 64), (5, 8)])
def test_ragged_last_batch(side: int, batch: int, pair: Pair) -> None:
    """10 x 10 points in batches of 64: the official last batch holds 36, ours is filled up (DESIGN, promise 4)."""
    got = both(pair, rendered()["wide"], points_per_side=side, points_per_batch=batch)
    assert got.agreement.unexcused == 0 and got.ours > 0, got
