"""Candidates + filter = masks, in the order of the contract (paper, appendix B; automatic_mask_generator.py:195-372).

The same function runs inside a build and in a later rerun, so both give the same rows. docs/filters.md tells each step.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from maskmill.config import FilterConfig
from maskmill.filters.overlap import outermost, suppress
from maskmill.filters.pixels import clean_small_regions, disjoint
from maskmill.filters.rules import ON_CHANGED, ON_RAW, above_quantile, best_of_image, sampled
from maskmill.masks.table import MaskTable

Step = Callable[[MaskTable], MaskTable]


def apply_filter(candidates: MaskTable, cfg: FilterConfig, num_crops: int, image_id: int | None = None) -> MaskTable:
    """Every step of the filter, one after another.

    Args: candidates in arrival order (mask_id ascending); num_crops of the image's plan, whether or not they hold any;
    image_id only if the filter has a `sample`.
    Returns: masks in the official output order: within a crop by predicted IoU, smaller crops first.
    """
    masks = candidates
    for _, step in steps(candidates, cfg, num_crops, image_id):
        masks = step(masks)
    return masks


def dropped_by(
    candidates: MaskTable, cfg: FilterConfig, num_crops: int, image_id: int | None = None
) -> tuple[MaskTable, dict[int, str]]:
    """The same masks, and for each candidate that is not among them (by mask_id) the setting that dropped it."""
    masks, why = candidates, {}
    for name, step in steps(candidates, cfg, num_crops, image_id):
        before, masks = masks, step(masks)
        why.update(dict.fromkeys(np.setdiff1d(before.mask_id, masks.mask_id).tolist(), name))
    return masks, why


def steps(candidates: MaskTable, cfg: FilterConfig, num_crops: int, image_id: int | None) -> Iterator[tuple[str, Step]]:
    """What the settings ask for, in order, each step under the name of its setting."""
    assert (np.diff(candidates.mask_id) > 0).all(), "candidates must arrive by mask_id: ties keep that order"
    assert image_id is not None or cfg.sample == 1, "a sample is drawn by image_id"
    for name in ON_RAW:
        yield from rule(name, cfg)
    yield "box_nms_thresh", lambda masks: masks.take(nms_in_crops(masks, cfg))
    if num_crops > 1:
        yield "crop_nms_thresh", lambda masks: masks.take(nms_across_crops(masks, cfg))
    if cfg.min_mask_region_area > 0:
        yield "min_mask_region_area", partial(clean_small_regions, cfg=cfg)
        for name in ON_CHANGED:
            yield from rule(name, cfg)
    if cfg.outermost_thresh < 1:
        yield "outermost_thresh", lambda masks: masks.take(outermost(masks, cfg))
    if cfg.score_quantile > 0:
        yield "score_quantile", lambda masks: only(masks, above_quantile(masks, cfg))
    if cfg.max_masks_per_image > 0:
        yield "max_masks_per_image", lambda masks: only(masks, best_of_image(masks, cfg))
    if cfg.shared_pixels != "keep":
        yield "shared_pixels", partial(disjoint, cfg=cfg)
        for name in ON_CHANGED:
            yield from rule(name, cfg)
    if cfg.sample < 1 and image_id is not None:
        yield "sample", lambda masks: only(masks, sampled(masks, cfg, image_id))


def rule(name: str, cfg: FilterConfig) -> Iterator[tuple[str, Step]]:
    """One rule for single masks, unless it is off."""
    off, stays = ON_RAW[name]
    if getattr(cfg, name) != off:
        yield name, lambda masks: only(masks, stays(masks, cfg))


def only(masks: MaskTable, stays: np.ndarray) -> MaskTable:
    """The masks (N) that are marked (bool N)."""
    return masks if stays.all() else masks.take(np.flatnonzero(stays))


def nms_in_crops(masks: MaskTable, cfg: FilterConfig) -> np.ndarray:
    """Kept indices, crop by crop in plan order, best predicted IoU first."""
    kept = [np.zeros(0, dtype=np.int64)]
    for crop in np.unique(masks.crop_index):
        rows = np.flatnonzero(masks.crop_index == crop)
        kept.append(rows[suppress(masks.take(rows), masks.predicted_iou[rows], cfg, cfg.box_nms_thresh)])
    return np.concatenate(kept)


def nms_across_crops(masks: MaskTable, cfg: FilterConfig) -> np.ndarray:
    """Kept indices; masks of smaller crops win, those of one crop keep their order."""
    areas = (masks.crop_box[:, 2] - masks.crop_box[:, 0]) * (masks.crop_box[:, 3] - masks.crop_box[:, 1])
    return suppress(masks, np.float32(1) / areas.astype(np.float32), cfg, cfg.crop_nms_thresh)
