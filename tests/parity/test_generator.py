"""`MaskGenerator` against SamAutomaticMaskGenerator, nano's weights in both: the same masks in the same order.

To save time the grids here are smaller than the default, each crop is encoded once for both sides (test_modules.py
compares the encoders), and each side remembers what it decoded. tests/parity/full.py does none of this.
"""

from typing import Any

import numpy as np
import pytest
import torch

from maskmill import MaskGenerator
from maskmill.config import GenerateConfig
from maskmill.generate.candidates import decode_points
from maskmill.generate.grids import crop_plan
from maskmill.sam.build import build_sam, load_config
from tests.parity.compare import Comparison, compare
from tests.parity.images import photos, render, rendered
from tests.parity.official import SamAutomaticMaskGenerator, official_sam
from tests.parity.pair import Pair, Remembering, nano_thresholds

SCORE_TOLERANCE = 1e-4
# points_per_batch divides the number of points here; test_ragged_last_batch says why
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
def shared(nano: Pair) -> Pair:
    """Both models with one encoder, and with decoders of their own, which remember what they have seen."""
    official, ours = official_sam(load_config("nano")), build_sam(load_config("nano")).eval()
    for model in (official, ours):
        model.load_state_dict(nano.ours.state_dict())
    encoder = Remembering(official.image_encoder, ours.img_size)
    for model in (official, ours):
        model.image_encoder, model.mask_decoder = encoder, Remembering(model.mask_decoder)
    return Pair(official, ours)


def both(pair: Pair, image: np.ndarray, name: str = "", **args: Any) -> Comparison:
    """The two generators on one image."""
    args = {"output_mode": "coco_rle", **nano_thresholds(), **args}
    theirs = SamAutomaticMaskGenerator(pair.official, **args).generate(image)
    ours = MaskGenerator(pair.ours, **args).generate(image)
    return compare(theirs, ours, name)


@pytest.mark.parametrize("setting", SETTINGS)
def test_same_masks(setting: str, shared: Pair) -> None:
    """Eight images: number, order, RLE, bbox, crop_box, point, area equal; scores within 1e-4."""
    total = Comparison()
    for name, image in rendered().items():
        total.add(both(shared, image, name, **SETTINGS[setting]))
    print(f"{setting}: {total.official} masks, score gap {total.score_gap}")
    assert total.problems == []
    assert total.official == total.ours == total.equal_rle >= AT_LEAST
    assert total.score_gap <= SCORE_TOLERANCE


def test_small_regions_changes_masks(shared: Pair) -> None:
    """So that the comparison above is one: some mask loses a hole or an island, none loses its scores."""
    args: dict[str, Any] = {
        "points_per_side": 6,
        "points_per_batch": 36,
        "output_mode": "coco_rle",
        **nano_thresholds(),
    }
    for image in rendered().values():
        raw = MaskGenerator(shared.ours, **args).generate(image)
        clean = MaskGenerator(shared.ours, **args, min_mask_region_area=100).generate(image)
        areas = {r["predicted_iou"]: r["area"] for r in raw}
        if any(areas[r["predicted_iou"]] != r["area"] for r in clean):
            return
    pytest.fail("no mask of eight images has a small region")


def test_photographs(shared: Pair) -> None:
    """Real pixels, where scikit-image is installed."""
    images = photos()
    if not images:
        pytest.skip("scikit-image is not installed")
    total = Comparison()
    for name, image in images.items():
        total.add(both(shared, image, name, points_per_side=8, min_mask_region_area=100))
    assert total.problems == [] and total.equal_rle == total.official >= 4
    assert total.score_gap <= SCORE_TOLERANCE


@pytest.mark.parametrize("mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
def test_output_modes(mode: str, shared: Pair) -> None:
    """The segmentation field has the official form: bool H x W, list of runs, or compressed string."""
    image = rendered()["odd"]
    args: dict[str, Any] = {"points_per_side": 8, "output_mode": mode, **nano_thresholds()}
    theirs = SamAutomaticMaskGenerator(shared.official, **args).generate(image)
    ours = MaskGenerator(shared.ours, **args).generate(image)
    assert len(ours) > 3 and compare(theirs, ours).problems == []
    assert [r.keys() for r in ours] == [r.keys() for r in theirs]
    kind = {"binary_mask": np.ndarray, "uncompressed_rle": dict, "coco_rle": dict}[mode]
    assert all(isinstance(r["segmentation"], kind) for r in ours)


def test_thresholds_of_zero_are_off(shared: Pair) -> None:
    """Every one of 3 x 16 masks reaches the NMS, so its order and its ties are compared on many boxes."""
    off = {**OFF, "points_per_side": 4, "points_per_batch": 16}
    loose = both(shared, rendered()["small"], **off, box_nms_thresh=1.0)
    assert loose.problems == [] and loose.ours == 48
    tight = both(shared, rendered()["small"], **off, box_nms_thresh=0.3)
    assert tight.problems == [] and 0 < tight.ours < 48


def test_given_grids(shared: Pair) -> None:
    """point_grids instead of points_per_side: one grid for each layer."""
    rng = np.random.default_rng(3)
    grids = [rng.uniform(0, 1, (16, 2)), rng.uniform(0, 1, (8, 2))]
    args: dict[str, Any] = {"points_per_side": None, "point_grids": grids, "crop_n_layers": 1, "points_per_batch": 8}
    got = both(shared, rendered()["small"], **args)
    assert got.problems == [] and got.ours > 0


@pytest.mark.parametrize("size", [(5, 7), (16, 900), (1, 1)])
def test_images_of_a_few_pixels(size: tuple[int, int], shared: Pair) -> None:
    got = both(shared, render(40, *size, objects=1), **OFF, points_per_side=2, points_per_batch=4)
    assert got.problems == [] and got.ours > 0


def test_every_crop_empty(shared: Pair) -> None:
    """Quirk: with crops and no mask at all the official generator dies of an IndexError; ours returns no masks."""
    args: dict[str, Any] = {"pred_iou_thresh": 100.0, "points_per_side": 2, "points_per_batch": 4}
    image = rendered()["small"]
    with pytest.raises(IndexError):
        SamAutomaticMaskGenerator(shared.official, crop_n_layers=1, **args).generate(image)
    assert MaskGenerator(shared.ours, crop_n_layers=1, **args).generate(image) == []
    assert SamAutomaticMaskGenerator(shared.official, **args).generate(image) == []
    assert MaskGenerator(shared.ours, **args).generate(image) == []


@pytest.mark.parametrize(("side", "batch"), [(10, 64), (5, 8)])
def test_ragged_last_batch(side: int, batch: int, shared: Pair) -> None:
    """10 x 10 points in batches of 64: the official last batch holds 36, ours is padded to 64 (DESIGN, promise 4).

    A matrix product of another size may round otherwise. Seen with 1 thread for 1-3 points only (25 points in batches
    of 8 leave one): the positional code's product, the hypernetworks and the IoU head; logits differ by up to 4e-5, and
    one mask in 160 has a pixel that flips. Where this machine rounds the rest as it rounds a full batch, all is equal.
    """
    image = rendered()["wide"]
    got = both(shared, image, points_per_side=side, points_per_batch=batch)
    assert got.ours > 0
    if rounds_alike(shared, image, side, batch):
        assert got.problems == [] and got.score_gap <= SCORE_TOLERANCE
    else:
        assert abs(got.official - got.ours) <= 1 and got.equal_rle >= 0.8 * got.official


@torch.inference_mode()
def rounds_alike(pair: Pair, image: np.ndarray, side: int, batch: int) -> bool:
    """Whether the decoder gives the points of the last batch the same bits alone as in a full batch."""
    crop = crop_plan(image.shape[0], image.shape[1], GenerateConfig(points_per_side=side))[0]
    last = crop.points[-(len(crop.points) % batch) :]
    embedding, size = pair.ours.encode(image)
    args = (pair.ours, embedding, pair.ours.prompt_encoder.get_dense_pe(), size, crop, last)
    alone, padded = decode_points(*args, len(last)), decode_points(*args, batch)
    return all(torch.equal(a, b) for a, b in zip(alone, padded, strict=True))
