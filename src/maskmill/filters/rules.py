"""The rules of a filter that keep or drop whole masks. Each is pure: one image's masks and the settings in, bool N out.

Their order, and what each is for: docs/filters.md. Scores are compared in float32, as the official generator does it; a
mask without a score (an import) passes no threshold and ranks last.
"""

from collections.abc import Callable

import numpy as np

from maskmill.config import FilterConfig
from maskmill.masks.table import TOKENS, MaskTable

Rule = Callable[[MaskTable, FilterConfig], np.ndarray]


def predicted_iou(masks: MaskTable, cfg: FilterConfig) -> np.ndarray:
    """Above pred_iou_thresh (automatic_mask_generator.py:295)."""
    return masks.predicted_iou > np.float32(cfg.pred_iou_thresh)


def stability(masks: MaskTable, cfg: FilterConfig) -> np.ndarray:
    """At or above stability_score_thresh (automatic_mask_generator.py:303)."""
    return masks.stability_score >= np.float32(cfg.stability_score_thresh)


def area_share_below(masks: MaskTable, cfg: FilterConfig) -> np.ndarray:
    """Less than max_area_share of the whole image (paper, appendix B: 95%)."""
    return masks.area / (masks.height * masks.width) < cfg.max_area_share


def area_share_at_least(masks: MaskTable, cfg: FilterConfig) -> np.ndarray:
    """At least min_area_share of the whole image."""
    return masks.area / (masks.height * masks.width) >= cfg.min_area_share


def area_at_least(masks: MaskTable, cfg: FilterConfig) -> np.ndarray:
    """At least min_area pixels."""
    return masks.area >= cfg.min_area


def area_at_most(masks: MaskTable, cfg: FilterConfig) -> np.ndarray:
    """At most max_area pixels."""
    return masks.area <= cfg.max_area


def of_tokens(masks: MaskTable, cfg: FilterConfig) -> np.ndarray:
    """One of these of the three masks that SAM gives for a point (paper, section 3: whole, part, subpart)."""
    return np.isin(masks.mask_id % TOKENS, cfg.tokens)


def aspect_ratio(masks: MaskTable, cfg: FilterConfig) -> np.ndarray:
    """The box's longer side is at most max_aspect_ratio times the shorter one; sides in whole pixels."""
    sides = masks.box[:, 2:] - masks.box[:, :2] + 1
    return sides.max(axis=1) <= cfg.max_aspect_ratio * sides.min(axis=1)


def border_distance(masks: MaskTable, cfg: FilterConfig) -> np.ndarray:
    """At least min_border_distance pixels lie between the box and each edge of the image; 1: it does not touch."""
    ends = np.array([masks.width, masks.height]) - 1 - masks.box[:, 2:]
    return np.minimum(masks.box[:, :2], ends).min(axis=1) >= cfg.min_border_distance


# Each setting with the value that switches its rule off, in order.
ON_RAW: dict[str, tuple[object, Rule]] = {
    "pred_iou_thresh": (0, predicted_iou),
    "stability_score_thresh": (0, stability),
    "max_area_share": (0, area_share_below),
    "min_area_share": (0, area_share_at_least),
    "min_area": (0, area_at_least),
    "max_area": (0, area_at_most),
    "tokens": ((0, 1, 2), of_tokens),
    "max_aspect_ratio": (0, aspect_ratio),
    "min_border_distance": (0, border_distance),
}
# The same once more where pixels were changed, so that no mask of the result breaks them. max_area_share is SA-1B's, on
# the raw mask alone.
ON_CHANGED = ("min_area_share", "min_area", "max_area")


def ranked(masks: MaskTable) -> np.ndarray:
    """Indices, best predicted IoU first; equal scores by mask_id."""
    return np.lexsort((masks.mask_id, -masks.predicted_iou))


def above_quantile(masks: MaskTable, cfg: FilterConfig) -> np.ndarray:
    """All but the lowest floor(score_quantile * N) predicted IoUs of the image."""
    lowest = int(cfg.score_quantile * len(masks) + 1e-9)  # 0.29 * 100 is 28.999999999999996
    return marked(len(masks), ranked(masks)[: len(masks) - lowest])


def best_of_image(masks: MaskTable, cfg: FilterConfig) -> np.ndarray:
    """The max_masks_per_image highest predicted IoUs."""
    return marked(len(masks), ranked(masks)[: cfg.max_masks_per_image])


def marked(n: int, index: np.ndarray) -> np.ndarray:
    """bool N that is True at `index`."""
    flags = np.zeros(n, dtype=bool)
    flags[index] = True
    return flags


def sampled(masks: MaskTable, cfg: FilterConfig, image_id: int) -> np.ndarray:
    """A share `sample` of all masks, the same ones wherever and whenever; a smaller share is a part of a larger one."""
    return lottery(image_id, masks.mask_id) < cfg.sample


def lottery(image_id: int, mask_id: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each mask (int64 N -> float64 N) that follows from the two ids alone."""
    seed = scramble(np.array([image_id], np.int64).view(np.uint64))
    return (scramble(seed + mask_id.view(np.uint64)) >> np.uint64(11)) * 2.0**-53


def scramble(x: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, each bit of the result hanging on all bits (splitmix64: Steele, Lea, Flood 2014, figure 19)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)  # arrays wrap around without a word
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
