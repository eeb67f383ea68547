"""Candidates + filter = masks: the order of the steps, their edges and ties, and the official code as oracle."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.config import FilterConfig
from maskmill.filters.apply import apply_filter, nms_in_crops
from maskmill.filters.pixels import clean_small_regions
from maskmill.filters.rules import predicted_iou, stability
from maskmill.masks.rle import decode
from tests.parity.official import SamAutomaticMaskGenerator, amg
from tests.parity.official import nms as official_nms
from tests.unit.tables import Box, table

OFF = FilterConfig(pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0, crop_nms_thresh=1.0)
WHOLE: Box = (0, 0, 39, 29)


def kept(cfg: FilterConfig, rows: object, crops: int = 1) -> list[int]:
    """The ids that stay, in output order."""
    return apply_filter(rows, cfg, crops).mask_id.tolist()  # type: ignore[arg-type]


def with_(**args: float) -> FilterConfig:
    return FilterConfig(**{**OFF.__dict__, **args})  # type: ignore[arg-type]


# ---- thresholds


def test_predicted_iou_is_strict_and_float32() -> None:
    """Quirk (1.3.3b): > in float32: the nearest float32 to 0.88 is dropped, the next one stays."""
    at = np.float32(0.88)
    rows = table([WHOLE] * 3, iou=[np.nextafter(at, np.float32(0)), at, np.nextafter(at, np.float32(1))])  # type: ignore[list-item]
    assert kept(with_(pred_iou_thresh=0.88), rows) == [2]


def test_stability_is_inclusive_and_float32() -> None:
    """Quirk (1.3.3c): >= in float32."""
    at = np.float32(0.95)
    rows = table([WHOLE] * 3, stability=[np.nextafter(at, np.float32(0)), at, 1.0])  # type: ignore[list-item]
    assert sorted(kept(with_(stability_score_thresh=0.95), rows)) == [1, 2]


def test_zero_is_off() -> None:
    rows = table([WHOLE, WHOLE], iou=[-0.2, 0.0], stability=[0.0, 0.0])
    assert sorted(kept(OFF, rows)) == [0, 1]


@pytest.mark.parametrize(("rows_of_pixels", "stays"), [(37, True), (38, False), (40, False)])
def test_area_share(rows_of_pixels: int, stays: bool) -> None:
    """Over the whole image, not the crop; exactly 95% (38 of 40 rows) is dropped."""
    crop: Box = (0, 0, 25, 40)
    rows = table([(0, 0, 49, rows_of_pixels - 1)], crop_boxes=[crop])
    assert (kept(with_(max_area_share=0.95), rows) == [0]) == stays
    small = table([(0, 0, 24, 39)], crop_boxes=[crop])  # all of its crop, half of the image
    assert kept(with_(max_area_share=0.95), small) == [0]


# ---- NMS


def test_better_score_wins_in_a_crop() -> None:
    rows = table([(0, 0, 20, 20), (0, 0, 20, 19), (30, 30, 35, 35)], iou=[0.5, 0.6, 0.4])
    assert kept(with_(box_nms_thresh=0.7), rows) == [1, 2]


def test_output_is_by_score_and_ties_by_arrival() -> None:
    """Quirk (1.3.5): the order of the NMS is the order of the masks; equal scores keep mask_id order."""
    boxes: list[Box] = [(i * 5, 0, i * 5 + 3, 3) for i in range(5)]
    rows = table(boxes, iou=[0.5, 0.9, 0.5, 0.9, 0.5])
    assert kept(with_(box_nms_thresh=0.7), rows) == [1, 3, 0, 2, 4]


def test_of_equal_scores_the_first_suppresses() -> None:
    rows = table([(0, 0, 20, 20), (0, 0, 20, 20)], iou=[0.7, 0.7])
    assert kept(with_(box_nms_thresh=0.7), rows) == [0]


def test_crops_are_told_apart_by_index() -> None:
    """Two crops with the same box (a very small image) are two NMS runs."""
    rows = table([(0, 0, 20, 20), (0, 0, 20, 20)], iou=[0.5, 0.6], crops=[1, 2], crop_boxes=[(0, 0, 30, 30)] * 2)
    assert nms_in_crops(rows, with_(box_nms_thresh=0.7)).tolist() == [0, 1]
    assert kept(with_(box_nms_thresh=0.7, crop_nms_thresh=1.0), rows, crops=5) == [0, 1]
    assert kept(with_(box_nms_thresh=0.7, crop_nms_thresh=0.7), rows, crops=5) == [0]


def test_smaller_crops_win() -> None:
    """Quirk (1.3.6): across crops the score is 1 / crop area, whatever the predicted IoU."""
    rows = table(
        [(10, 10, 20, 20), (10, 10, 20, 20), (30, 30, 35, 35)],
        iou=[0.99, 0.5, 0.7],
        crops=[0, 1, 0],
        crop_boxes=[(0, 0, 50, 40), (5, 5, 30, 30), (0, 0, 50, 40)],
        mask_id=[0, 9, 5],
    ).take(np.array([0, 2, 1]))
    assert kept(with_(crop_nms_thresh=0.7), rows, crops=5) == [9, 5]


def test_order_in_a_crop_breaks_ties_across_crops() -> None:
    """Quirk (1.3.6): masks of one crop have equal scores there, and keep their order by predicted IoU."""
    boxes: list[Box] = [(0, 0, 3, 3), (10, 0, 13, 3), (20, 0, 23, 3), (30, 0, 33, 3)]
    crops: list[Box] = [(0, 0, 50, 40), (0, 0, 50, 40), (0, 0, 20, 20), (0, 0, 20, 20)]
    rows = table(boxes, iou=[0.6, 0.9, 0.7, 0.8], crops=[0, 0, 1, 1], crop_boxes=crops)
    assert kept(with_(), rows, crops=5) == [3, 2, 1, 0]


def test_one_crop_has_no_second_nms() -> None:
    """Quirk (1.3.6): without crop layers crop_nms_thresh does nothing."""
    rows = table([(0, 0, 20, 20), (0, 0, 20, 19)], iou=[0.5, 0.6])
    assert kept(with_(crop_nms_thresh=0.0), rows, crops=1) == [1, 0]
    assert kept(with_(crop_nms_thresh=0.0), rows, crops=5) == [1]


def test_candidates_must_arrive_by_id() -> None:
    rows = table([WHOLE, WHOLE], mask_id=[5, 2])
    with pytest.raises(AssertionError, match="mask_id"):
        apply_filter(rows, OFF, 1)


def test_no_candidates() -> None:
    everything = FilterConfig(max_area_share=0.95, min_mask_region_area=100)
    assert kept(everything, table([]), crops=21) == []


# ---- order of the steps


def test_thresholds_come_before_nms() -> None:
    """A mask that is dropped for its stability or its size suppresses nobody."""
    rows = table([(0, 0, 49, 39), (0, 0, 49, 37)], iou=[0.99, 0.9])
    assert kept(with_(box_nms_thresh=0.7), rows) == [0]
    assert kept(with_(box_nms_thresh=0.7, max_area_share=0.96), rows) == [1]
    shaky = table([(0, 0, 20, 20), (0, 0, 20, 19)], iou=[0.99, 0.9], stability=[0.5, 0.99])
    assert kept(with_(box_nms_thresh=0.7, stability_score_thresh=0.9), shaky) == [1]


def block(box: Box, *extra: Box, holes: tuple[Box, ...] = ()) -> np.ndarray:
    """Filled boxes minus holes, 40 x 50."""
    mask = np.zeros((40, 50), bool)
    for x0, y0, x1, y1 in (box, *extra):
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    for x0, y0, x1, y1 in holes:
        mask[y0 : y1 + 1, x0 : x1 + 1] = False
    return mask


def test_area_share_is_taken_on_the_raw_mask() -> None:
    """Before its holes are filled, and before its islands are gone."""
    frame = block((0, 0, 49, 39), holes=((5, 5, 14, 14),))  # 1900 of 2000: 95%
    rows = table([(0, 0, 49, 39)], masks=[frame])
    assert kept(with_(max_area_share=0.95, min_mask_region_area=200), rows) == []
    filled = apply_filter(rows, with_(max_area_share=0.951, min_mask_region_area=200), 1)
    assert filled.area.tolist() == [2000]


def test_small_regions_come_after_nms_and_untouched_masks_win() -> None:
    """Quirk (1.4): after clean-up the boxes meet again; the untouched one wins, whatever its predicted IoU."""
    clean, dotted = block((5, 5, 20, 20)), block((5, 5, 20, 20), (40, 30, 41, 31))
    rows = table([(5, 5, 41, 31), (5, 5, 20, 20)], iou=[0.99, 0.5], masks=[dotted, clean])
    assert kept(with_(box_nms_thresh=0.7, crop_nms_thresh=0.7), rows) == [0, 1]
    assert kept(with_(box_nms_thresh=0.7, crop_nms_thresh=0.7, min_mask_region_area=10), rows) == [1]


def test_small_regions_use_the_larger_nms_threshold() -> None:
    """Quirk (1.4): max(box_nms_thresh, crop_nms_thresh)."""
    a, b = block((0, 0, 20, 20), (40, 30, 40, 30)), block((0, 0, 20, 17))  # IoU of the cleaned boxes: 0.85
    rows = table([(0, 0, 40, 30), (0, 0, 20, 17)], masks=[a, b])
    assert len(kept(with_(box_nms_thresh=0.6, crop_nms_thresh=0.9, min_mask_region_area=10), rows)) == 2
    assert len(kept(with_(box_nms_thresh=0.6, crop_nms_thresh=0.8, min_mask_region_area=10), rows)) == 1


def test_clean_up_changes_pixels_box_and_area_but_no_score() -> None:
    """Quirk (1.4): predicted IoU and stability are not computed again."""
    dotted = block((5, 5, 20, 20), (40, 30, 41, 31), holes=((8, 8, 9, 9),))
    rows = table([(5, 5, 41, 31)], iou=[0.91], stability=[0.97], masks=[dotted])
    got = apply_filter(rows, with_(min_mask_region_area=10), 1)
    assert got.box.tolist() == [[5, 5, 20, 20]] and got.area.tolist() == [256]
    assert got.predicted_iou.tolist() == [np.float32(0.91)] and got.stability_score.tolist() == [np.float32(0.97)]
    assert np.array_equal(decode(got.counts(0), 40, 50), block((5, 5, 20, 20)))


def test_untouched_masks_keep_their_counts() -> None:
    rows = table([(5, 5, 20, 20)])
    assert apply_filter(rows, with_(min_mask_region_area=10), 1).counts(0) == rows.counts(0)


# ---- the official code as oracle


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_small_regions_are_official(seed: int) -> None:
    """postprocess_small_regions on random blobs: kept masks, order, boxes, runs."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((8, 10, 13)) < 0.7
    masks = [np.kron(m, np.ones((4, 4), bool))[:40, :50] ^ (rng.random((40, 50)) < 0.01) for m in coarse]
    masks = [m.astype(bool) for m in masks if m.any()]
    boxes = amg.batched_mask_to_box(torch.from_numpy(np.stack(masks)))
    scores = np.sort(rng.random(len(masks)).astype(np.float32))[::-1]
    rles = amg.mask_to_rle_pytorch(torch.from_numpy(np.stack(masks)))
    data = amg.MaskData(
        rles=rles,
        boxes=boxes.clone(),
        place=np.arange(len(masks)),
    )
    area = int(rng.integers(1, 60))
    theirs = SamAutomaticMaskGenerator.postprocess_small_regions(copy.deepcopy(data), area, 0.7)
    rows = table([tuple(b) for b in boxes.tolist()], iou=scores.tolist(), masks=masks)
    ours = clean_small_regions(rows, with_(min_mask_region_area=area, box_nms_thresh=0.5, crop_nms_thresh=0.7))
    assert ours.mask_id.tolist() == theirs["place"].tolist()
    assert ours.box.tolist() == theirs["boxes"].tolist()
    assert [ours.counts(i) for i in range(len(ours))] == [amg.coco_encode_rle(r)["counts"] for r in theirs["rles"]]
    assert ours.area.tolist() == [amg.area_from_rle(r) for r in theirs["rles"]]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_both_nms_are_official(seed: int) -> None:
    """Crop after crop, then 1 / area over all, as _process_crop and _generate_masks do it."""
    rng = np.random.default_rng(seed)
    crop_of = np.sort(rng.integers(0, 5, 40))
    crop_boxes = np.array([[0, 0, 50, 40], [0, 0, 30, 25], [0, 15, 30, 40], [20, 0, 50, 25], [20, 15, 50, 40]])
    start = rng.integers(0, 20, (40, 2))
    boxes = np.concatenate([start, start + rng.integers(0, 19, (40, 2))], axis=1)
    iou = rng.choice([0.5, 0.6, 0.7, 0.8], 40).astype(np.float32)
    rows = table([tuple(b) for b in boxes], iou=iou.tolist(), crops=crop_of.tolist(),
                 crop_boxes=[tuple(crop_boxes[c]) for c in crop_of])  # fmt: skip
    order = []
    for crop in range(5):
        mine = np.flatnonzero(crop_of == crop)
        local = torch.from_numpy(boxes[mine] - np.tile(crop_boxes[crop][:2], 2)).float()  # the official NMS runs in
        order += mine[official_nms(local, torch.from_numpy(iou[mine]), 0.6).numpy()].tolist()  # the crop's frame
    areas = torch.from_numpy((crop_boxes[:, 2] - crop_boxes[:, 0]) * (crop_boxes[:, 3] - crop_boxes[:, 1]))
    scores = 1 / areas[torch.from_numpy(crop_of[order])]
    theirs = np.array(order)[official_nms(torch.from_numpy(boxes[order]).float(), scores, 0.6).numpy()]
    assert kept(with_(box_nms_thresh=0.6, crop_nms_thresh=0.6), rows, crops=5) == theirs.tolist()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_thresholds_keep_what_float32_keeps(seed: int) -> None:
    """The official comparisons are torch float32 tensors against Python numbers."""
    rng = np.random.default_rng(seed)
    threshold = float(rng.choice([0.6, 0.8, 0.88, 0.9, 0.95]))
    near = np.float32(threshold) + rng.integers(-2, 3, 30).astype(np.float32) * np.float32(2**-24)
    rows = table([WHOLE] * 30, iou=near.tolist(), stability=near.tolist())
    got = predicted_iou(rows, with_(pred_iou_thresh=threshold))
    assert np.array_equal(got, (torch.from_numpy(rows.predicted_iou) > threshold).numpy())
    got = stability(rows, with_(stability_score_thresh=threshold))
    assert np.array_equal(got, (torch.from_numpy(rows.stability_score) >= threshold).numpy())
