"""The steps of a filter that change pixels: small regions, and masks that share no pixel."""

from dataclasses import replace

import numpy as np

from maskmill.config import FilterConfig
from maskmill.filters.overlap import suppress
from maskmill.filters.rules import ranked
from maskmill.masks.regions import Box, clean_regions
from maskmill.masks.rle import compress_edges, edges_of
from maskmill.masks.table import MaskTable

Cut = tuple[Box, int, str]  # box, area, counts


def clean_small_regions(masks: MaskTable, cfg: FilterConfig) -> MaskTable:
    """Fill small holes, drop small islands, then NMS once more, where untouched masks win (amg.py:323-372)."""
    if len(masks) == 0:
        return masks
    changed = clean_regions(counts_of(masks), masks.height, masks.width, cfg.min_mask_region_area)
    scores = np.ones(len(masks), dtype=np.float32)
    scores[list(changed)] = 0
    masks = with_pixels(masks, changed)
    return masks.take(suppress(masks, scores, cfg, max(cfg.box_nms_thresh, cfg.crop_nms_thresh)))


def disjoint(masks: MaskTable, cfg: FilterConfig) -> MaskTable:
    """Every pixel goes to the smallest mask that covers it, or to the best by predicted IoU, as shared_pixels says.

    Equal ones by mask_id. What is left of a mask keeps its scores and gets a new box and area; a mask that is left
    nothing is dropped.
    """
    from maskmill.filters.paint import divide

    if len(masks) == 0:
        return masks
    first = np.lexsort((masks.mask_id, masks.area)) if cfg.shared_pixels == "smallest" else ranked(masks)
    edges, ends = edges_of(counts_of(masks), masks.height, masks.width)
    edges, ends, boxes, areas = divide(edges, ends, first, masks.height, masks.width)
    counts = compress_edges(edges, ends, masks.height, masks.width)
    x0, y0, x1, y1 = boxes.T.tolist()
    less = np.flatnonzero(areas < masks.area).tolist()
    masks = with_pixels(masks, {i: ((x0[i], y0[i], x1[i], y1[i]), int(areas[i]), counts[i]) for i in less})
    return masks.take(np.flatnonzero(masks.area > 0))


def counts_of(masks: MaskTable) -> list[str]:
    """Every mask's compressed counts."""
    return [masks.counts(i) for i in range(len(masks))]


def with_pixels(masks: MaskTable, changed: dict[int, Cut]) -> MaskTable:
    """The same masks, some with another box, area and pixels. Scores stay."""
    box, area, pixels = masks.box.copy(), masks.area.copy(), list(masks.masks)
    for i, new in changed.items():
        box[i], area[i], pixels[i] = new
    return replace(masks, box=box, area=area, masks=tuple(pixels))
