"""Automatic masks against the truth: matched one to one, at IoU >= 0.5."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskmill.errors import UserError
from maskmill.pipeline.rounds.watch import At
from maskmill.storage.annotated import AnnotatedSet, plain_name

MATCHED = 0.5


def automatic_quality(automatic: AnnotatedSet | None, truth: AnnotatedSet, say: At) -> dict[str, Any]:
    """The paper's shares (section 5: above 90% and 75% IoU) of matched pairs, and how many objects are found.
    automatic: None if there is not one mask."""
    places = {} if automatic is None else {plain_name(name): i for i, name in enumerate(automatic.names)}
    ious: list[float] = []
    masks = objects = 0
    for n, name in enumerate(truth.names):
        wanted = truth.read(n)
        say(n, len(truth.names))
        objects += len(wanted.counts)
        if automatic is None or plain_name(name) not in places:  # not one mask there
            continue
        found = automatic.read(places[plain_name(name)])
        if found.image.shape != wanted.image.shape:
            raise UserError(f"image {name} has another size in the automatic build: give the same images")
        masks += len(found.counts)
        ious += match(found.counts, wanted.counts, list(wanted.image.shape[:2]))
    values = np.array(ious)
    share = {str(t): round(float((values > t).mean()), 5) if len(values) else None for t in (0.75, 0.9)}
    return {
        "images": len(truth.names), "objects": objects, "masks": masks, "matched": len(values),
        "recall": round(len(values) / max(1, objects), 5), "above": share,
        "mean_iou": round(float(values.mean()), 5) if len(values) else None,
    }  # fmt: skip


def match(found: tuple[str, ...], wanted: tuple[str, ...], size: list[int]) -> list[float]:
    """IoU of each pair, the best pair first."""
    if not found or not wanted:
        return []
    a, b = ([{"size": size, "counts": c.encode()} for c in some] for some in (found, wanted))
    table = np.asarray(coco_mask.iou(a, b, [0] * len(b)))
    out = []
    while table.max() >= MATCHED:
        i, j = np.unravel_index(int(table.argmax()), table.shape)
        out.append(float(table[i, j]))
        table[i, :] = table[:, j] = -1
    return out
