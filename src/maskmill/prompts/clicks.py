"""Where a simulated annotator clicks: pure functions on bool masks (SAM, section 7.1 and appendix D.1; appendix A).

Points are (x, y) pixel centers as whole numbers, boxes XYXY with inclusive corners, on the grid of the mask.
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Point = tuple[int, int]
Rule = Literal["deepest", "largest", "random"]
FOREGROUND, BACKGROUND = 1, 0


def extent(mask: Mask) -> tuple[int, int, int, int]:
    """XYXY of the mask's pixels. ValueError if it has none."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        raise ValueError("the mask is empty: it has neither point nor box")
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def deepest(mask: Mask) -> tuple[Point, float]:
    """The pixel farthest from the mask's boundary, and how far it is from the nearest pixel outside.

    Beyond the image's border all is outside. Of equals the first in reading order. ValueError for an empty mask.
    """
    x0, y0, x1, y1 = extent(mask)
    inside = np.pad(mask[y0 : y1 + 1, x0 : x1 + 1].view(np.uint8), 1)  # what lies farther out is never nearest
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    # Its last bit depends on where the array lies in memory, so that equals would change places from run to run. The
    # squares of distances between pixels are whole numbers: rounded to them, equals are equal (below 1,000 pixels).
    squared = np.rint(np.square(depth, dtype=np.float64))
    y, x = np.unravel_index(int(squared.argmax()), squared.shape)
    return (int(x) + x0, int(y) + y0), float(np.sqrt(squared[y, x]))


def random_point(mask: Mask, rng: np.random.Generator) -> Point:
    """Any pixel of the mask, each as likely. ValueError for an empty mask."""
    places = np.flatnonzero(mask)
    if not len(places):
        raise ValueError("the mask is empty: it has no point")
    y, x = divmod(int(rng.choice(places)), mask.shape[1])
    return x, y


def largest_part(mask: Mask) -> Mask:
    """The 8-connected component with the most pixels; of equals the first in reading order."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    if count == 1:
        return mask
    return np.asarray(labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()))


def next_click(target: Mask, answer: Mask, rule: Rule, rng: np.random.Generator) -> tuple[Point, int] | None:
    """A click where the answer is wrong, with its label (1: the object was missed, 0: too much was taken).

    `deepest`: farthest from the boundary of the error region (the paper's evaluation; missed and surplus pixels are
    regions of their own). `largest`: the same, but within the largest connected region of errors, which is the one that
    a person sees first. `random`: anywhere in the error (the paper's training). None if there is no error.
    """
    wrong = target ^ answer
    if not wrong.any():
        return None
    if rule == "random":
        x, y = random_point(wrong, rng)
        return (x, y), int(target[y, x])
    found: list[tuple[float, Point, int]] = []
    for region, label in ((target & ~answer, FOREGROUND), (answer & ~target, BACKGROUND)):
        if region.any():
            part = largest_part(region) if rule == "largest" else region
            point, depth = deepest(part)
            found.append((float(part.sum()) if rule == "largest" else depth, point, label))
    _, point, label = max(found, key=lambda f: f[0])  # of equals the missed part
    return point, label


def moved(point: Point, sd: float, shape: tuple[int, int], rng: np.random.Generator) -> Point:
    """A click that misses its aim by a Gaussian of `sd` pixels in x and in y; it stays in the image (height, width)."""
    x, y = np.rint(np.array(point) + rng.normal(0, sd, 2)).astype(int)
    return int(np.clip(x, 0, shape[1] - 1)), int(np.clip(y, 0, shape[0] - 1))


def noised_box(
    box: NDArray[np.float64],
    shape: tuple[int, int],
    rng: np.random.Generator,
    share: float = 0.1,
    most: float = 20.0,
) -> NDArray[np.float64]:
    """Boxes (... x 4, XYXY) as people draw them (appendix A): each coordinate off by a Gaussian whose deviation is
    `share` of the box's side, by `most` pixels at the most; within the image (height, width)."""
    side = (box[..., 2:] - box[..., :2])[..., [0, 1, 0, 1]]
    off = np.clip(rng.normal(0, 1, box.shape) * share * side, -most, most)
    limit = np.array([shape[1] - 1, shape[0] - 1] * 2, float)
    drawn = np.clip(box + off, 0, limit)
    low, high = np.minimum(drawn[..., :2], drawn[..., 2:]), np.maximum(drawn[..., :2], drawn[..., 2:])
    return np.concatenate([low, high], -1)
