"""Random candidates as a model could have made them: blobs inside their crops, tight boxes, scores with ties."""

import numpy as np
from hypothesis import strategies as st

from maskmill.config import FilterConfig, GenerateConfig
from maskmill.generate.grids import crop_plan
from maskmill.masks.rle import CutMask, decode
from maskmill.masks.table import TOKENS, MaskTable

FLOOR_IOU, FLOOR_STABILITY = 0.25, 0.6
PLAIN = GenerateConfig(points_per_side=5, floor_pred_iou=FLOOR_IOU, floor_stability=FLOOR_STABILITY)
CROPS = GenerateConfig(
    points_per_side=4, crop_n_layers=1, floor_pred_iou=FLOOR_IOU, floor_stability=FLOOR_STABILITY
)  # 5 crops


def blobs(seed: int, cfg: GenerateConfig = CROPS, count: int = 30, height: int = 44, width: int = 52) -> MaskTable:
    """Up to `count` candidates, by mask_id: some twins, some with holes and dots, one in twenty without a pixel."""
    rng = np.random.default_rng(seed)
    plan = crop_plan(height, width, cfg)
    first = np.array([crop.first_prompt for crop in plan])
    prompts = sum(len(crop.points) for crop in plan)
    ids = np.sort(rng.choice(prompts * TOKENS, min(count, prompts * TOKENS), replace=False)).astype(np.int64)
    crops = np.searchsorted(first, ids // TOKENS, side="right") - 1
    cuts: list[CutMask] = []
    boxes: list[tuple[int, int, int, int]] = []
    before: dict[int, np.ndarray] = {}
    for crop in crops.tolist():
        x0, y0, x1, y1 = plan[crop].box
        mask = before.get(crop) if rng.random() < 0.3 else None
        mask = blob(rng, y1 - y0, x1 - x0) if mask is None else mask ^ (rng.random(mask.shape) < 0.01)
        before[crop] = mask
        y, x = np.nonzero(mask) if mask.any() else (np.zeros(1, int), np.zeros(1, int))
        top, bottom, left, right = int(y.min()), int(y.max()), int(x.min()), int(x.max())
        boxes.append((x0 + left, y0 + top, x0 + right, y0 + bottom))
        cuts.append(CutMask.cut(mask[top : bottom + 1, left : right + 1], x0 + left, y0 + top, height, width))
    n = len(ids)
    return MaskTable(
        height=height,
        width=width,
        mask_id=ids,
        predicted_iou=rng.choice(np.linspace(0.26, 1.02, 12), n).astype(np.float32),
        stability_score=rng.choice(np.linspace(0.6, 1, 9), n).astype(np.float32),
        box=np.array(boxes, np.int64).reshape(n, 4),
        area=np.array([int(c.inside().sum()) for c in cuts], np.int64),
        point=rng.random((n, 2)) * 40,
        crop_index=crops.astype(np.int32),
        crop_box=np.array([plan[c].box for c in crops], np.int64).reshape(n, 4),
        masks=tuple(cuts),
    )


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """bool height x width: an ellipse with grain, or nothing."""
    y, x = np.mgrid[0:height, 0:width]
    cy, cx = rng.uniform(0, height), rng.uniform(0, width)
    ry, rx = rng.uniform(2, height / 2), rng.uniform(2, width / 2)
    mask = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
    return (mask ^ (rng.random((height, width)) < 0.02)) & (rng.random() > 0.05)  # type: ignore[no-any-return]


def pixels(masks: MaskTable) -> np.ndarray:
    """bool N x H x W."""
    shape = (len(masks), masks.height, masks.width)
    return np.array([decode(masks.counts(i), *shape[1:]) for i in range(len(masks))], bool).reshape(shape)


def mostly(neutral: object, *others: object) -> st.SearchStrategy[object]:
    """Off in half of the cases."""
    return st.one_of(st.just(neutral), st.sampled_from(others))


filters: st.SearchStrategy[FilterConfig] = st.builds(
    FilterConfig,
    pred_iou_thresh=st.floats(FLOOR_IOU, 1),
    stability_score_thresh=st.floats(FLOOR_STABILITY, 1),
    max_area_share=mostly(0.0, 0.95, 0.5, 0.2),
    box_nms_thresh=st.sampled_from((0.7, 1.0, 0.5, 0.0)),
    crop_nms_thresh=st.sampled_from((0.7, 1.0, 0.4)),
    min_mask_region_area=mostly(0, 1, 5, 40),
    min_area=mostly(0, 1, 30, 200),
    max_area=mostly(0, 300, 900),
    min_area_share=mostly(0.0, 0.01, 0.1),
    tokens=mostly((0, 1, 2), (0,), (1, 2)),
    max_aspect_ratio=mostly(0.0, 1.5, 3.0),
    min_border_distance=mostly(0, 1, 4),
    nms_overlap=st.sampled_from(("box", "mask")),
    nms_ios_thresh=mostly(1.0, 0.9, 0.5),
    outermost_thresh=mostly(1.0, 0.9, 0.5),
    score_quantile=mostly(0.0, 0.25, 0.9),
    max_masks_per_image=mostly(0, 1, 5),
    shared_pixels=mostly("keep", "smallest", "best"),
    sample=mostly(1.0, 0.5, 0.1),
)
