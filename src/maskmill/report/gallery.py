"""Which masks a report shows, and their pictures: some of every stratum, and the suspicious ones."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np
from PIL import Image

from maskmill.masks.rle import decode
from maskmill.report.detail import Detail
from maskmill.report.stats import HUGE, SIZE_EDGES, TINY, Masks

EACH = 6  # pictures of a group
HOLED, DUPLICATE = 0.05, 0.8  # hole share, and IoU of two masks, from which they are suspicious
PICTURE = (320, 240)  # width, height
MARGIN = 0.35  # of the box, around it
RINGS = ((255, 214, 10), (0, 229, 255))


@dataclass(frozen=True)
class Pick:
    """One picture to draw: a mask, or two that are nearly the same, with what is said below it."""

    image_id: int
    mask_ids: tuple[int, ...]
    height: int
    width: int
    counts: tuple[str, ...]
    words: str


@dataclass(frozen=True)
class Group:
    """Pictures under one heading. `found`: how many masks there are of the kind."""

    title: str
    about: str
    picks: tuple[Pick, ...]
    found: int


def strata(detail: Detail, rng: np.random.Generator) -> Iterator[Group]:
    """By size, by score, by crop layer; groups without masks are left out."""
    masks = detail.masks
    size = masks.relative_size
    for low, high in pairwise(SIZE_EDGES.tolist()):
        words = f"relative size {low:g} to {high:g}" if np.isfinite(high) else f"relative size from {low:g}"
        yield some(detail, np.flatnonzero((size >= low) & (size < high)), "By size", words, rng)
    known = np.flatnonzero(~np.isnan(masks.predicted_iou))
    by_score = known[np.argsort(masks.predicted_iou[known], kind="stable")]
    for name, rows in zip(("lowest", "middle", "highest"), np.array_split(by_score, 3), strict=True):
        yield some(detail, rows, "By score", f"{name} third of the predicted IoU", rng)
    layers = np.unique(masks.layer)
    for layer in layers if len(layers) > 1 else ():
        words = "whole image" if layer == 0 else f"crop layer {layer}"
        yield some(detail, np.flatnonzero(masks.layer == layer), "By crop layer", words, rng)


def some(detail: Detail, rows: np.ndarray, title: str, about: str, rng: np.random.Generator) -> Group:
    """A few of `rows`, from different images as far as there are so many."""
    rows = rng.permutation(rows)
    _, first = np.unique(detail.masks.image_id[rows], return_index=True)
    order = [*sorted(first), *sorted(set(range(len(rows))) - set(first.tolist()))]
    return Group(title, about, tuple(one(detail, int(rows[i])) for i in order[:EACH]), len(rows))


def extreme_rows(masks: Masks) -> np.ndarray:
    """The rows that `huge` and `tiny` show."""
    order = np.argsort(masks.area, kind="stable"), np.argsort(-masks.share, kind="stable")
    rows = np.concatenate([part[:EACH] for part in order])
    return np.unique(rows[(masks.area[rows] < TINY) | (masks.share[rows] >= HUGE)])


def suspects(sample: Masks, extremes: Detail, detail: Detail) -> Iterator[Group]:
    """Huge and tiny masks of the sample (its `extreme_rows` as `extremes`), holed and doubled ones of `detail`."""
    share, area = extremes.masks.share, extremes.masks.area
    huge = worst(extremes, "Huge", f"cover {HUGE:.0%} of their image or more", share >= HUGE, share, "{:.0%} covered")
    yield replace(huge, found=int((sample.share >= HUGE).sum()))
    tiny = worst(extremes, "Tiny", f"fewer than {TINY} pixels", area < TINY, -area, "")
    yield replace(tiny, found=int((sample.area < TINY).sum()))
    holes = np.zeros(len(detail.masks))
    holes[detail.decoded] = detail.holes
    about = f"{HOLED:.0%} or more of what they enclose is hole"
    yield worst(detail, "Holed", about, holes >= HOLED, holes, "{:.0%} hole")
    pairs = [pair for pair in detail.pairs if pair[2] >= DUPLICATE]
    picks = tuple(one(detail, i, j, words=f"overlap {iou:.2f}") for i, j, iou in pairs[:EACH])
    yield Group("Near-duplicates", f"pairs of masks of one image with IoU {DUPLICATE:g} or more", picks, len(pairs))


def worst(detail: Detail, title: str, about: str, which: np.ndarray, badness: np.ndarray, words: str) -> Group:
    """The rows `which` (bool N) with the highest `badness`, each with its value."""
    rows = np.flatnonzero(which)
    rows = rows[np.argsort(-badness[rows], kind="stable")]
    picks = tuple(one(detail, int(i), words=words.format(badness[i])) for i in rows[:EACH])
    return Group(title, about, picks, len(rows))


def one(detail: Detail, *rows: int, words: str = "") -> Pick:
    """The pick of one row, or of two."""
    masks, i = detail.masks, rows[0]
    return Pick(
        image_id=int(masks.image_id[i]),
        mask_ids=tuple(int(masks.mask_id[r]) for r in rows),
        height=int(masks.height[i]),
        width=int(masks.width[i]),
        counts=tuple(detail.counts[r] for r in rows),
        words=", ".join([*([words] if words else []), *facts(masks, i)]),
    )


def facts(masks: Masks, i: int) -> Iterator[str]:
    """Scores and size of mask i."""
    if not np.isnan(masks.predicted_iou[i]):
        yield f"predicted IoU {masks.predicted_iou[i]:.2f}"
    if not np.isnan(masks.stability_score[i]):
        yield f"stability {masks.stability_score[i]:.2f}"
    yield f"{masks.area[i]:,} px"


def draw(pick: Pick, image: np.ndarray | None) -> str:
    """The pick as a data URI: its surroundings darkened, its edge drawn; on grey without image (H x W x 3 uint8)."""
    masks = [decode(c, pick.height, pick.width) for c in pick.counts]
    if image is None or image.shape[:2] != (pick.height, pick.width):
        image = np.full((pick.height, pick.width, 3), 128, np.uint8)
    x0, y0, x1, y1 = window(np.logical_or.reduce(masks))
    scale = min(PICTURE[0] / (x1 - x0), PICTURE[1] / (y1 - y0))
    size = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    out = cv2.resize(image[y0:y1, x0:x1], size, interpolation=how)
    small = [resize_mask(mask[y0:y1, x0:x1], size) for mask in masks]
    outside = ~np.logical_or.reduce(small)
    grey = out[outside].mean(axis=1, keepdims=True)
    out[outside] = (0.35 * out[outside] + 0.2 * grey + 10).astype(np.uint8)
    for mask, ring in zip(small, RINGS, strict=False):
        wide = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
        out[wide & ~cv2.erode(mask.astype(np.uint8), np.ones((2, 2), np.uint8), borderValue=0).view(bool)] = ring
    data = io.BytesIO()
    Image.fromarray(out).save(data, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool h x w -> bool of `size`; what covers any part of a pixel still shows."""
    resized = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return resized >= min(0.5, float(resized.max()))  # type: ignore[no-any-return]


def window(mask: np.ndarray) -> Sequence[int]:
    """x0, y0, x1, y1 of what is shown around a mask: its box with a margin, as wide as PICTURE where there is room."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return 0, 0, width, height
    w = max(32.0, (columns[-1] - columns[0] + 1) * (1 + 2 * MARGIN))
    h = max(24.0, (rows[-1] - rows[0] + 1) * (1 + 2 * MARGIN))
    w, h = max(w, h * PICTURE[0] / PICTURE[1]), max(h, w * PICTURE[1] / PICTURE[0])
    x0, x1 = interval((columns[0] + columns[-1] + 1) / 2, w, width)
    y0, y1 = interval((rows[0] + rows[-1] + 1) / 2, h, height)
    return x0, y0, x1, y1


def interval(middle: float, length: float, end: int) -> tuple[int, int]:
    """`length` around `middle`, moved into [0, end]."""
    size = min(end, round(length))
    start = min(max(0, round(middle - size / 2)), end - size)
    return start, start + size
