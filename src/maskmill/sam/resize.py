"""Pixels at the encoder's size (segment-anything, utils/transforms.py, apply_image): Pillow's bilinear resize."""

import functools
import importlib.util
import logging
from collections.abc import Callable

import numpy as np
from PIL import Image

log = logging.getLogger("maskmill")

Resize = Callable[[np.ndarray, int, int], np.ndarray]
_LONGEST = 1 << 24  # beyond, Pillow's float32 box no longer holds a side exactly


def fitted(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) after the long side is scaled to `side` (utils/transforms.py, get_preprocess_shape)."""
    scale = side * 1.0 / max(height, width)
    # a 1-pixel short side of a very long image must not round to nothing
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """H x W x 3 uint8 -> height x width x 3 uint8, as the installed Pillow's `resize(..., BILINEAR)`, bit for bit.

    Antialiased: SAM was trained on it, and other libraries' bilinear filters give other masks. With numba installed
    it takes about a quarter of Pillow's time.
    """
    if _covered(image, height, width) and (compiled := _compiled()) is not None:
        return image.copy() if image.shape == (height, width, 3) else compiled(image, height, width)
    return by_pillow(image, height, width)


def by_pillow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _covered(image: np.ndarray, height: int, width: int) -> bool:
    """Whether every Pillow begins with the rows; the order decides how values round. Since 13 it begins with the
    columns where the height shrinks by more than twice as many pixels as the width (so in photos taller than 2:1),
    in 12.3 where the height is above 100 widths."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or max(image.shape) >= _LONGEST:
        return False
    (h, w), tall = image.shape[:2], image.shape[0] > 100 * image.shape[1]
    return not tall and h - height <= max(0, 2 * (w - width))


@functools.cache
def _compiled() -> Resize | None:
    """The compiled loops if numba is there, after one look whether the installed Pillow still does as they do."""
    if importlib.util.find_spec("numba") is None:
        return None
    from maskmill.sam.resize_cpu import resize_bilinear  # compiles once for each machine: seconds

    rng = np.random.default_rng(0)
    for size, out in (((61, 83), (29, 40)), ((83, 61), (40, 29)), ((29, 40), (61, 83)), ((9, 400), (1, 40))):
        noise = rng.integers(0, 256, (*size, 3), np.uint8)
        if not np.array_equal(resize_bilinear(noise, *out), by_pillow(noise, *out)):
            log.warning("this Pillow resizes unlike those before it: it does all of that itself, slower")
            return None
    return resize_bilinear
