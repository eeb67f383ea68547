"""The paper's measure of quality (section 5): how far are automatic masks from the same masks, corrected by people?

SA-1B: 94% of pairs above 90% IoU, 97% above 75%, on 500 images (about 50,000 masks).
"""

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from maskmill.errors import UserError
from maskmill.evaluate.bootstrap import Estimate, estimate
from maskmill.storage.annotated import AnnotatedSet, plain_name

BOUNDS = (0.9, 0.75)


@dataclass(frozen=True)
class Audit:
    """Pairs are masks with the same id in the same image. removed: automatic masks that the corrected set lacks;
    added: masks that people drew anew. Neither is a pair."""

    images: int
    ious: np.ndarray
    above: dict[float, Estimate]
    mean: Estimate
    removed: int
    added: int


def audit(automatic: AnnotatedSet, corrected: AnnotatedSet, resamples: int = 1000, seed: int = 0) -> Audit:
    """Compare two sets. Images are matched by name, the corrected ones may be a part of all."""
    places = {plain_name(name): i for i, name in enumerate(automatic.names)}
    if strangers := [name for name in corrected.names if plain_name(name) not in places]:
        raise UserError(
            f"{len(strangers)} corrected images are not among the automatic ones (first: {strangers[0]}; there: "
            f"{automatic.names[0]}): give both sets the same names"
        )
    ious: list[float] = []
    groups: list[int] = []
    removed = added = 0
    for n, name in enumerate(corrected.names):
        before, after = automatic.read(places[plain_name(name)]), corrected.read(n)
        if before.image.shape != after.image.shape:
            sizes = [f"{a.image.shape[1]}x{a.image.shape[0]}" for a in (before, after)]
            raise UserError(f"image {name} is {sizes[0]}, its corrected one {sizes[1]}: they must be the same image")
        size = list(after.image.shape[:2])
        was, now = (dict(zip(a.ids, a.counts, strict=True)) for a in (before, after))
        pairs = sorted(was.keys() & now.keys())
        removed, added = removed + len(was) - len(pairs), added + len(now) - len(pairs)
        ious += [pair_iou(was[i], now[i], size) for i in pairs]
        groups += [n] * len(pairs)
    if not ious:
        raise UserError("no mask has the same id in both sets: corrected masks must keep the ids of the automatic ones")
    values, where = np.array(ious), np.array(groups)
    above = {t: estimate((values > t).astype(float), where, resamples, seed) for t in BOUNDS}
    return Audit(len(corrected.names), values, above, estimate(values, where, resamples, seed), removed, added)


def pair_iou(a: str, b: str, size: list[int]) -> float:
    """IoU of two compressed masks."""
    one, two = ({"size": size, "counts": c.encode()} for c in (a, b))
    return float(coco_mask.iou([one], [two], [0])[0, 0])
