"""Small holes and islands of a mask (paper, appendix B; segment-anything, utils/amg.py:267-291)."""

import cv2
import numpy as np


def remove_small_regions(mask: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """Fill holes, then drop islands, of fewer than `min_area` pixels (8-connected, background too).

    Args: mask bool H x W. Returns: the cleaned mask and whether anything changed. If every island is small, the largest
    one stays.
    """
    filled, holes_changed = fill_small_holes(mask, min_area)
    cleaned, islands_changed = drop_small_islands(filled, min_area)
    return cleaned, holes_changed or islands_changed


def fill_small_holes(mask: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """Background components smaller than `min_area` become foreground."""
    labels, sizes = components(~mask)
    small = sizes < min_area
    small[0] = False  # label 0 is the mask itself
    return (mask | small[labels], True) if small.any() else (mask, False)


def drop_small_islands(mask: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """Foreground components smaller than `min_area` become background, unless nothing would be left."""
    labels, sizes = components(mask)
    keep = sizes >= min_area
    keep[0] = False
    if keep[1:].all():
        return mask, False
    if not keep.any():
        keep[1 + int(np.argmax(sizes[1:]))] = True
    return keep[labels], True


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8-connected components: int32 labels H x W (0 = outside the mask) and the size of each label."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return labels, stats[:, cv2.CC_STAT_AREA].copy()
