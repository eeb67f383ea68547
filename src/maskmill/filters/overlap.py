"""Non-maximum suppression as the settings ask for it: by boxes as SA-1B was made, or by the pixels themselves.

Pixels are compared as run-length codes, and only where the boxes leave a chance that a threshold is passed.
"""

from dataclasses import replace

import numpy as np
from pycocotools import mask as coco

from maskmill.config import FilterConfig
from maskmill.masks.boxes import BLOCK, nms
from maskmill.masks.table import MaskTable


def suppress(masks: MaskTable, scores: np.ndarray, cfg: FilterConfig, iou_threshold: float) -> np.ndarray:
    """Indices of the masks that stay, best score first; equal scores keep their order.

    A pair loses its lower score if its IoU is > iou_threshold, or its intersection over the smaller one is
    > nms_ios_thresh; nms_overlap says whether of boxes or of pixels.
    """
    if cfg.nms_overlap == "box":
        return nms(masks.box, scores, iou_threshold, cfg.nms_ios_thresh)
    return mask_nms(masks, scores, iou_threshold, cfg.nms_ios_thresh)


def outermost(masks: MaskTable, cfg: FilterConfig) -> np.ndarray:
    """Indices, in their order, of the masks of which at most the share outermost_thresh lies inside a larger kept one.

    That is NMS by intersection over the smaller mask, the larger one winning; of two equally large ones the first.
    """
    return np.sort(mask_nms(masks, masks.area.astype(np.float64), np.inf, cfg.outermost_thresh))


def mask_nms(masks: MaskTable, scores: np.ndarray, iou_threshold: float, ios_threshold: float) -> np.ndarray:
    """Greedy NMS by pixels. Areas and intersections are whole numbers, compared as float64 quotients.

    Two masks without a pixel do not overlap. Returns indices of the kept masks, best score first.
    """
    order = np.argsort(-scores, kind="stable")
    masks = with_counts(masks.take(order))
    alive = np.ones(len(masks), dtype=bool)
    for start in range(0, len(masks), BLOCK):
        rows = start + np.flatnonzero(alive[start : start + BLOCK])
        most = most_in_common(masks, rows, start)
        near = exceeds(most, masks.area[rows, None], masks.area[start:], iou_threshold, ios_threshold)
        near &= np.arange(start, len(masks)) > rows[:, None]  # only those after it
        for row, mine in zip(rows.tolist(), near, strict=True):
            if alive[row]:
                others = start + np.flatnonzero(mine & alive[start:])
                common = in_common(masks, row, others)
                lost = exceeds(common, masks.area[row], masks.area[others], iou_threshold, ios_threshold)
                alive[others[lost]] = False
    return order[alive]


def exceeds(
    common: np.ndarray, area: np.ndarray, others: np.ndarray, iou_threshold: float, ios_threshold: float
) -> np.ndarray:
    """bool: whether so many `common` pixels of masks of these areas pass a threshold."""
    with np.errstate(invalid="ignore"):
        over: np.ndarray = common / (area + others - common) > iou_threshold
        return over | (common / np.minimum(area, others) > ios_threshold)


def most_in_common(masks: MaskTable, rows: np.ndarray, start: int) -> np.ndarray:
    """What boxes and areas allow at most, of `rows` with all masks from `start`: int64 R x (N - start)."""
    a, b = masks.box[rows, None], masks.box[None, start:]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    inside = np.maximum(sides[..., 0], 0) * np.maximum(sides[..., 1], 0)
    return np.minimum(inside, np.minimum(masks.area[rows, None], masks.area[start:]))


def in_common(masks: MaskTable, i: int, others: np.ndarray) -> np.ndarray:
    """Pixels that mask i shares with each of `others`: int64. Asked of pycocotools as a share of the other's area."""
    if len(others) == 0:
        return np.zeros(0, dtype=np.int64)
    share = coco.iou([rle(masks, int(j)) for j in others], [rle(masks, i)], [1])[:, 0]
    return np.rint(share * masks.area[others]).astype(np.int64)


def rle(masks: MaskTable, i: int) -> dict[str, object]:
    """Mask i as pycocotools takes it."""
    return {"size": [masks.height, masks.width], "counts": masks.counts(i).encode("ascii")}


def with_counts(masks: MaskTable) -> MaskTable:
    """The same masks, each encoded once."""
    return replace(masks, masks=tuple(masks.counts(i) for i in range(len(masks))))
