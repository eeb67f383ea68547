"""What one click reaches without a model: three guesses, the best of which counts, as of a model's three masks.

Segments of the image alone at three scales (Felzenszwalb & Huttenlocher, "Efficient Graph-Based Image Segmentation",
IJCV 2004; scikit-image's code), the guess is the one at the click; and three discs around the click, which know
nothing but it. The discs' radii are fractions of the image's longer side, chosen in hindsight as the triple that does
best on the very masks it is scored on, so that it is the strongest baseline of its kind. The scales are fixed.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskmill.errors import UserError
from maskmill.prompts.clicks import Mask, Point

RADII = (0.012, 0.016, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15, 0.18, 0.22, 0.25, 0.3)
SCALES, SIGMA, SMALLEST = (50, 200, 800), 0.8, 50  # smallest: pixels of a segment
Ious = NDArray[np.float64]


@dataclass(frozen=True)
class BaselineScores:
    """IoUs of N masks of one image: with the segment of each scale (N x 3), with the disc of each radius (N x R)."""

    segments: Ious
    discs: Ious


def score_baselines(image: NDArray[np.uint8], masks: NDArray[np.bool_], points: list[Point]) -> BaselineScores:
    """H x W x 3 uint8, bool N x H x W, and a click (x, y) on each mask. UserError without scikit-image."""
    maps = [segments(image, scale) for scale in SCALES]
    by_scale = [[segment_iou(labels, m, p) for labels in maps] for m, p in zip(masks, points, strict=True)]
    return BaselineScores(np.array(by_scale), np.stack([disc_ious(m, *p) for m, p in zip(masks, points, strict=True)]))


@dataclass(frozen=True)
class BestGuesses:
    """The best of three guesses for each of N masks, and the radii of the discs among them."""

    segments: Ious
    discs: Ious
    radii: tuple[float, float, float]


def best_guesses(scores: Sequence[BaselineScores]) -> BestGuesses:
    """Of all images together: the radii are those that suit them all."""
    discs = np.concatenate([s.discs for s in scores])
    radii, _ = best_discs(discs)
    best = discs[:, [RADII.index(r) for r in radii]].max(1)
    return BestGuesses(np.concatenate([s.segments for s in scores]).max(1), best, radii)


def segments(image: NDArray[np.uint8], scale: float) -> NDArray[np.int64]:
    """The segment of every pixel (H x W), numbered from 0."""
    try:
        from skimage.segmentation import felzenszwalb
    except ImportError as e:
        raise UserError("the baselines need scikit-image: pip install 'maskmill[train]'") from e
    found: NDArray[np.int64] = felzenszwalb(image, scale=scale, sigma=SIGMA, min_size=SMALLEST)
    return found


def segment_iou(labels: NDArray[np.int64], mask: Mask, point: Point) -> float:
    """IoU of a mask with the segment at (x, y)."""
    segment = labels == labels[point[1], point[0]]
    return np.count_nonzero(segment & mask) / np.count_nonzero(segment | mask)


def disc_ious(mask: Mask, x: int, y: int) -> Ious:
    """IoU of an H x W mask with the disc around (x, y) of each radius in RADII."""
    h, w = mask.shape
    square = ((np.arange(h)[:, None] - y) ** 2 + (np.arange(w)[None] - x) ** 2).ravel()
    # one histogram over the rings between the radii counts every disc's pixels at once
    ring = np.searchsorted((np.array(RADII) * max(h, w)) ** 2, square)
    area = np.bincount(ring, minlength=len(RADII) + 1)[:-1].cumsum()
    inside = np.bincount(ring[mask.ravel()], minlength=len(RADII) + 1)[:-1].cumsum()
    return inside / (area + mask.sum() - inside)


def best_discs(ious: Ious) -> tuple[tuple[float, float, float], float]:
    """The three radii whose best disc has the highest mean IoU over N x R figures, and that mean."""
    triples = itertools.combinations(range(len(RADII)), 3)
    mean, (a, b, c) = max((float(ious[:, t].max(1).mean()), t) for t in triples)
    return (RADII[a], RADII[b], RADII[c]), mean
