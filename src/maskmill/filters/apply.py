"""Candidates + filter = masks, in the order of the contract (paper, appendix B; automatic_mask_generator.py:195-372).

The same function runs inside a build and in a later rerun, so both give the same rows.
"""

from dataclasses import replace

import numpy as np

from maskmill.config import FilterConfig
from maskmill.masks.boxes import nms
from maskmill.masks.regions import remove_small_regions
from maskmill.masks.rle import CutMask, decode
from maskmill.masks.table import MaskTable


def apply_filter(candidates: MaskTable, cfg: FilterConfig, num_crops: int) -> MaskTable:
    """Thresholds, NMS in each crop, NMS across crops, small regions.

    Args: candidates in arrival order (mask_id ascending); num_crops of the image's plan, whether or not they hold any.
    Returns: masks in the official output order: within a crop by predicted IoU, smaller crops first.
    """
    assert (np.diff(candidates.mask_id) > 0).all(), "candidates must arrive by mask_id: ties keep that order"
    masks = candidates.take(np.flatnonzero(passes_thresholds(candidates, cfg)))
    masks = masks.take(nms_in_crops(masks, cfg.box_nms_thresh))
    if num_crops > 1:
        areas = (masks.crop_box[:, 2] - masks.crop_box[:, 0]) * (masks.crop_box[:, 3] - masks.crop_box[:, 1])
        scores = np.float32(1) / areas.astype(np.float32)  # smaller crops win
        masks = masks.take(nms(masks.box, scores, cfg.crop_nms_thresh))
    if cfg.min_mask_region_area > 0:
        masks = clean_small_regions(masks, cfg)
    return masks


def passes_thresholds(masks: MaskTable, cfg: FilterConfig) -> np.ndarray:
    """bool N: predicted IoU above, stability at or above, area share below. 0 switches a threshold off."""
    keep = np.ones(len(masks), dtype=bool)
    if cfg.pred_iou_thresh > 0:
        keep &= masks.predicted_iou > np.float32(cfg.pred_iou_thresh)
    if cfg.stability_score_thresh > 0:
        keep &= masks.stability_score >= np.float32(cfg.stability_score_thresh)
    if cfg.max_area_share > 0:
        keep &= masks.area / (masks.height * masks.width) < cfg.max_area_share
    return keep


def nms_in_crops(masks: MaskTable, iou_threshold: float) -> np.ndarray:
    """Kept indices, crop by crop in plan order, best predicted IoU first."""
    kept = [np.zeros(0, dtype=np.int64)]
    for crop in np.unique(masks.crop_index):
        rows = np.flatnonzero(masks.crop_index == crop)
        kept.append(rows[nms(masks.box[rows], masks.predicted_iou[rows], iou_threshold)])
    return np.concatenate(kept)


def clean_small_regions(masks: MaskTable, cfg: FilterConfig) -> MaskTable:
    """Fill small holes, drop small islands, then NMS once more, where untouched masks win (amg.py:323-372)."""
    if len(masks) == 0:
        return masks
    cleaned = [clean_one(masks, i, cfg.min_mask_region_area) for i in range(len(masks))]
    changed = np.array([c is not None for c in cleaned])
    box, area, pixels = masks.box.copy(), masks.area.copy(), list(masks.masks)
    for i, new in enumerate(cleaned):
        if new is not None:
            box[i], area[i], pixels[i] = new
    masks = replace(masks, box=box, area=area, masks=tuple(pixels))
    scores = np.where(changed, np.float32(0), np.float32(1))
    return masks.take(nms(box, scores, max(cfg.box_nms_thresh, cfg.crop_nms_thresh)))


def clean_one(masks: MaskTable, i: int, min_area: int) -> tuple[tuple[int, int, int, int], int, CutMask] | None:
    """New box, area and pixels of mask i, or None if it stays as it is."""
    pixels, changed = remove_small_regions(decode(masks.counts(i), masks.height, masks.width), min_area)
    if not changed:
        return None
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if len(rows) == 0:  # cannot happen: the largest island always stays
        return (0, 0, 0, 0), 0, CutMask.cut(pixels[:1, :1], 0, 0, masks.height, masks.width)
    x0, y0, x1, y1 = int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])
    inside = pixels[y0 : y1 + 1, x0 : x1 + 1]
    return (x0, y0, x1, y1), int(inside.sum()), CutMask.cut(inside, x0, y0, masks.height, masks.width)
