"""Small mask tables for tests: every mask fills its box."""

from collections.abc import Sequence

import numpy as np

from maskmill.masks.rle import CutMask
from maskmill.masks.table import TOKENS, MaskTable

Box = tuple[int, int, int, int]


def table(
    boxes: Sequence[Box],
    iou: Sequence[float] | None = None,
    stability: Sequence[float] | None = None,
    crops: Sequence[int] | None = None,
    crop_boxes: Sequence[Box] | None = None,
    mask_id: Sequence[int] | None = None,
    masks: Sequence[np.ndarray] | None = None,
    height: int = 40,
    width: int = 50,
) -> MaskTable:
    """Masks that fill `boxes` (XYXY, inclusive), or the bool H x W `masks`, whose boxes these must then be."""
    n = len(boxes)
    box = np.array(boxes, np.int64).reshape(n, 4)
    whole = masks or [np.ones((y1 - y0 + 1, x1 - x0 + 1), bool) for x0, y0, x1, y1 in boxes]
    cut = [m[b[1] : b[3] + 1, b[0] : b[2] + 1] if masks else m for m, b in zip(whole, boxes, strict=True)]
    ids = np.array(mask_id if mask_id is not None else range(n), np.int64)
    return MaskTable(
        height=height,
        width=width,
        mask_id=ids,
        predicted_iou=np.array(iou or [0.9] * n, np.float32),
        stability_score=np.array(stability or [0.96] * n, np.float32),
        box=box,
        area=np.array([int(c.sum()) for c in cut], np.int64),
        point=np.stack([ids // TOKENS + 0.5, ids // TOKENS + 0.25], axis=1).reshape(n, 2),
        crop_index=np.array(crops or [0] * n, np.int32),
        crop_box=np.array(crop_boxes or [(0, 0, width, height)] * n, np.int64).reshape(n, 4),
        masks=tuple(CutMask.cut(c, b[0], b[1], height, width) for c, b in zip(cut, boxes, strict=True)),
    )
