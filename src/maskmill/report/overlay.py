"""Pictures of masks: an image beside the same image with every mask in a colour of its own."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

GOLDEN = 0.618033988749895  # hues a golden ratio apart stay distinct, however many there are
GAP = 6


def colour(i: int) -> np.ndarray:
    """The i-th colour: float64 RGB of 0-255."""
    hue = (0.07 + i * GOLDEN) % 1.0
    light, saturation = 0.5 + 0.12 * (i % 3 - 1), 0.85
    return np.array(colorsys.hls_to_rgb(hue, light, saturation)) * 255


def overlay(
    image: np.ndarray, masks: Sequence[np.ndarray], alpha: float = 0.5, colours: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """H x W x 3 uint8 with bool H x W masks on it, the largest below, each with an outline.

    colours: RGB of 0-255, one for each mask; by default they follow from the order of sizes.
    """
    out = image.astype(np.float64)
    for i, n in enumerate(sorted(range(len(masks)), key=lambda n: -int(masks[n].sum()))):
        mask, ink = masks[n], colour(i) if colours is None else colours[n]
        out[mask] = (1 - alpha) * out[mask] + alpha * ink
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0).view(bool)
        out[mask & ~inner] = 0.3 * out[mask & ~inner] + 0.7 * np.minimum(255, ink * 1.3)
    return out.round().astype(np.uint8)


def side_by_side(image: np.ndarray, masks: Sequence[np.ndarray], height: int) -> np.ndarray:
    """The image and its overlay, scaled to `height` pixels."""
    return panels([image, overlay(image, masks)], height)


def panels(pictures: Sequence[np.ndarray], height: int) -> np.ndarray:
    """Pictures of one size beside each other, scaled to `height` pixels."""
    full, long = pictures[0].shape[:2]
    width = max(1, round(long * height / full))
    filter_ = cv2.INTER_AREA if height < full else cv2.INTER_CUBIC
    gap = np.full((height, GAP, 3), 255, np.uint8)
    scaled = [cv2.resize(picture, (width, height), interpolation=filter_) for picture in pictures]
    return np.concatenate([part for picture in scaled for part in (gap, picture)][1:], axis=1)


def sheet(pictures: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Pictures of one height in rows of at most `width` pixels, on white."""
    rows: list[list[np.ndarray]] = [[]]
    for picture in pictures:
        used = sum(p.shape[1] + 3 * GAP for p in rows[-1])
        if rows[-1] and used + picture.shape[1] > width:
            rows.append([])
        rows[-1].append(picture)
    full = max(sum(p.shape[1] for p in row) + 3 * GAP * (len(row) - 1) for row in rows)
    return np.concatenate([strip(row, full) for row in rows])


def strip(row: Sequence[np.ndarray], width: int) -> np.ndarray:
    """One row of the sheet, padded with white."""
    height = row[0].shape[0]
    out = np.full((height + 3 * GAP, width, 3), 255, np.uint8)
    x = 0
    for picture in row:
        out[:height, x : x + picture.shape[1]] = picture
        x += picture.shape[1] + 3 * GAP
    return out
