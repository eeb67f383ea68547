"""What the modules of a scene share: array types and the finished sample."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]  # H x W x 3 RGB in [0, 1], or H x W for a field or an alpha
Mask = NDArray[np.bool_]
Points = NDArray[np.float64]  # N x 2: x, y
Rng = np.random.Generator

SMALLEST = 36  # pixels: a smaller visible piece is no target
SMALLEST_PART = 100  # nor a smaller part: people outline tiny things, but seldom tiny parts


@dataclass(frozen=True)
class Sample:
    """`image` H x W x 3 uint8 RGB; `masks` K x H x W bool, the visible pixels of every target; `parents` K int64: the
    mask that a part lies inside, or -1."""

    image: NDArray[np.uint8]
    masks: Mask
    parents: NDArray[np.int64]


def chance(rng: Rng, share: float) -> bool:
    """True in this share of calls; draws one number in any case, so that a share of 0 keeps the stream in step."""
    return bool(rng.random() < share)


def between(rng: Rng, low: float, high: float) -> float:
    """Log-uniform in [low, high]: sizes and zooms."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def blurred(image: Image, sigma: float) -> Image:
    """Gaussian blur; a wide one at a lower resolution, which looks the same."""
    step = min(4, int(sigma / 1.2))
    if step < 2:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)
    h, w = image.shape[:2]
    small = cv2.resize(image, (max(1, w // step), max(1, h // step)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / step)
    return np.asarray(cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR), np.float32)
