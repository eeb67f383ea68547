"""Large images as someone sees them who zooms in: each mask in the part of the image that holds it."""

import math
from dataclasses import replace

import numpy as np

from maskmill.masks.rle import encode
from maskmill.prompts.clicks import extent
from maskmill.storage.annotated import Annotated

Window = tuple[int, int, int, int]  # XYXY, the last two exclusive


def parts(found: Annotated, side: int | None) -> list[Annotated]:
    """The windows of an image (name and ids stay) that hold any of its masks, each mask in one of them.

    Windows are `side` pixels square, at the most half of that apart. A mask is in the one that holds all of it and
    whose middle is nearest to its box's; one that fits into none stays with the whole image. An image that is no larger
    than a window is the only part, as it is: so without `side`.
    """
    height, width = found.image.shape[:2]
    if side is None or max(height, width) <= side:
        return [found]
    held: dict[Window, list[int]] = {}
    for n, mask in enumerate(found.masks):
        x0, y0, x1, y1 = extent(mask)
        at_x, at_y = place(x0, x1 + 1, width, side), place(y0, y1 + 1, height, side)
        box = (0, 0, width, height)
        if at_x is not None and at_y is not None:
            box = (at_x, at_y, min(at_x + side, width), min(at_y + side, height))
        held.setdefault(box, []).append(n)
    return [cut(found, box, held[box]) for box in sorted(held)]


def place(low: int, high: int, length: int, side: int) -> int | None:
    """Where along `length` pixels the window begins that holds [low, high) nearest to its middle; None if none does."""
    if length <= side:
        return 0
    steps = math.ceil((length - side) / (side / 2))
    starts = [round(n * (length - side) / steps) for n in range(steps + 1)]
    holding = [s for s in starts if s <= low and high <= s + side]
    return min(holding, key=lambda s: abs(2 * s + side - low - high), default=None)


def cut(found: Annotated, box: Window, kept: list[int]) -> Annotated:
    """One window with some of the masks, all of which lie in it."""
    x0, y0, x1, y1 = box
    masks = found.masks[kept][:, y0:y1, x0:x1]
    assert masks.sum() == found.masks[kept].sum(), "a mask reaches out of its window"
    return replace(
        found,
        image=np.ascontiguousarray(found.image[y0:y1, x0:x1]),
        ids=tuple(found.ids[n] for n in kept),
        counts=tuple(encode(np.ascontiguousarray(m)) for m in masks),
        categories=tuple(found.categories[n] for n in kept),
        crowds=(),
    )
