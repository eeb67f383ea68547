"""What may be done to an image and its masks before they go to the model."""

import cv2
import numpy as np
from numpy.typing import NDArray

from maskmill.sam.resize import resize


def symmetry(
    image: np.ndarray, masks: np.ndarray, kind: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """H x W x 3 and N x H x W, mirrored by chance, or with `square` turned by quarters too."""
    if kind == "none":
        return image, masks
    turns, mirrored = (int(rng.integers(4)) if kind == "square" else 0), bool(rng.integers(2))
    image, masks = np.rot90(image, turns), np.rot90(masks, turns, (1, 2))
    if mirrored:
        image, masks = image[:, ::-1], masks[..., ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(masks)


def window(
    height: int, width: int, side: int, scale: float, rng: np.random.Generator
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Large-scale jitter (Ghiasi et al., arXiv 2012.07177): the image's size when its longer side is `scale` x `side`,
    and the top-left corner of the window of at most side x side that is taken of it."""
    factor = scale * side / max(height, width)
    h, w = max(1, round(height * factor)), max(1, round(width * factor))
    top, left = (int(rng.integers(0, max(0, n - side) + 1)) for n in (h, w))
    return (h, w), (top, left)


def resized(image: np.ndarray, size: tuple[int, int], corner: tuple[int, int], side: int) -> np.ndarray:
    """The image at `size`, and of it at most side x side from `corner` on."""
    top, left = corner
    return resize(image, *size)[top : top + side, left : left + side]


def resized_mask(mask: np.ndarray, size: tuple[int, int], corner: tuple[int, int], side: int) -> np.ndarray:
    """bool H x W, likewise: a pixel is inside where most of its area was."""
    smaller = size[0] < mask.shape[0]
    filter_ = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    grey = cv2.resize(mask.view(np.uint8) * np.uint8(255), (size[1], size[0]), interpolation=filter_)
    top, left = corner
    return np.asarray(grey[top : top + side, left : left + side] > 127)


def tile(image: np.ndarray, masks: np.ndarray, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """H x W x 3 and N x H x W, both at most side: copies of the image fill side x side, and each mask lies in one of
    them, by chance. A small copy alone in a corner would teach that small things lie in corners."""
    height, width = image.shape[:2]
    top, left = (int(rng.integers(side - n + 1)) for n in (height, width))
    around = (top, side - height - top), (left, side - width - left)
    image, masks = np.pad(image, (*around, (0, 0)), "wrap"), np.pad(masks, ((0, 0), *around), "wrap")
    row, column = (np.arange(side) - top) // height, (np.arange(side) - left) // width  # of the copy that each is of
    for mask in masks:
        y, x = rng.choice(np.argwhere(mask))  # a copy of which only a part is inside has less of a chance
        mask &= (row == row[y])[:, None] & (column == column[x])
    return image, masks


def colour_jitter(pixels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """H x W x 3, 0 to 255, with another contrast, brightness and saturation, and other gains of the channels; sometimes
    grey, or with the channels exchanged."""
    if rng.random() < 0.15:
        pixels = pixels[..., rng.permutation(3)]
    grey = pixels.mean(-1, keepdims=True)
    colour = 0.0 if rng.random() < 0.1 else rng.uniform(0.5, 1.4)
    gains = (rng.uniform(0.7, 1.25) * rng.uniform(0.88, 1.12, 3)).astype(np.float32)
    pixels = (grey + (pixels - grey) * np.float32(colour)) * gains + np.float32(rng.normal(0, 12))
    return np.clip(pixels, 0, 255)
