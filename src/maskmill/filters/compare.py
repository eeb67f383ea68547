"""Two filters over the same candidates: what the second drops, what it adds, and which rule is why."""

from dataclasses import dataclass

import numpy as np

from maskmill.config import FilterConfig
from maskmill.filters.apply import dropped_by
from maskmill.masks.table import MaskTable


@dataclass(frozen=True)
class Difference:
    """On one image. Masks are named by mask_id."""

    a: MaskTable
    b: MaskTable
    went: dict[int, str]  # masks of a that b has not -> the setting of b that dropped them
    came: dict[int, str]  # masks of b that a has not -> the setting of a that dropped them
    changed: tuple[int, ...]  # in both, with other pixels


def compare(candidates: MaskTable, a: FilterConfig, b: FilterConfig, num_crops: int, image_id: int) -> Difference:
    """Both filters on the candidates of one image (by mask_id)."""
    (in_a, not_a), (in_b, not_b) = (dropped_by(candidates, cfg, num_crops, image_id) for cfg in (a, b))
    ids_a, ids_b = in_a.mask_id.tolist(), in_b.mask_id.tolist()
    places = {i: n for n, i in enumerate(ids_b)}
    both = [(n, places[i]) for n, i in enumerate(ids_a) if i in places]
    return Difference(
        in_a,
        in_b,
        {i: not_b[i] for i in ids_a if i in not_b},
        {i: not_a[i] for i in ids_b if i in not_a},
        tuple(ids_a[n] for n, m in both if in_a.area[n] != in_b.area[m] or in_a.counts(n) != in_b.counts(m)),
    )


def shares(masks: MaskTable, ids: dict[int, str] | None = None) -> np.ndarray:
    """The share of the image that each mask covers, or each of those with these ids: float64 N."""
    chosen = slice(None) if ids is None else np.isin(masks.mask_id, list(ids))
    covered: np.ndarray = masks.area[chosen] / (masks.height * masks.width)
    return covered
