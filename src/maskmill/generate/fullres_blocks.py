"""Low-resolution masks on CPU: which blocks of full-resolution pixels are decided without looking at a pixel.

A pixel of the two-step interpolation lies between the logits around it. Where those all lie on one side of each
threshold, so does the pixel; its class is the number of thresholds that it exceeds.

A margin keeps rounding out of this. One step rounds a pixel at most 8 times (weights, products, sums), each time by
2**-24 of the largest logit, so two steps are off by less than 2**-19 of it; logits count as above or below a threshold
only if they clear it by 2**-18 of the largest. A mask with a logit that is not finite has an infinite margin, and no
block of it is decided that could hold a pixel above a threshold.
"""

import math

import numpy as np
from numba import float32, int16, int32, int64, types

from maskmill.masks.jit import compiled, part

MIXED = 4  # the class of a block that is not decided


@part
def margin_of(bits):
    """Of a mask's logits as int32: 2**-18 of the largest magnitude, or up to twice that."""
    largest = np.int32(0)
    for i in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            largest = max(largest, bits[i, j] & np.int32(0x7FFFFFFF))
    exponent = largest >> 23
    return np.float32(np.inf) if exponent == 255 else np.float32(math.ldexp(1.0, exponent - 126 - 18))


@part
def classify(logits, margin, thresholds, above, below, classes):
    """The class of each block. Outputs whose first source index is (i, j) depend on logits[i : i + 3, j : j + 3]."""
    size, (high, wide) = logits.shape[0], classes.shape
    a0, a1, a2 = thresholds[0] + margin, thresholds[1] + margin, thresholds[2] + margin
    b0, b1, b2 = thresholds[0] - margin, thresholds[1] - margin, thresholds[2] - margin
    for i in range(high + 2):
        source = logits[min(i, size - 1)]
        for j in range(min(wide + 2, size)):
            v = source[j]
            above[i, j] = np.uint8(v > a0) + np.uint8(v > a1) + np.uint8(v > a2)
            below[i, j] = np.uint8(v > b0) + np.uint8(v > b1) + np.uint8(v > b2)
        for j in range(size, wide + 2):
            above[i, j], below[i, j] = above[i, size - 1], below[i, size - 1]
    for i in range(high):
        for j in range(wide):
            least, most = above[i, j], below[i, j]
            for di in range(3):
                for dj in range(3):
                    least = min(least, above[i + di, j + dj])
                    most = max(most, below[i + di, j + dj])
            classes[i, j] = least if least == most else np.uint8(MIXED)


@part
def count(classes, heights, widths, pixels):
    """Pixels of each column of blocks: decided above the highest threshold, above the lowest, not decided."""
    high, outer, mixed = pixels[0], pixels[1], pixels[2]
    for i in range(classes.shape[0]):
        n = heights[i]
        for j in range(classes.shape[1]):
            kind = classes[i, j]
            high[j] += n if kind == 3 else 0
            outer[j] += n if kind != 0 and kind != MIXED else 0
            mixed[j] += n if kind == MIXED else 0
    for j in range(classes.shape[1]):
        high[j], outer[j], mixed[j] = high[j] * widths[j], outer[j] * widths[j], mixed[j] * widths[j]


@part
def list_changes(classes, pixels, changes, n_changes):
    """For each column of blocks those that are mixed, or of another class than the one above (0 above the first).

    Columns without a pixel that may exceed a threshold stay empty.
    """
    high, wide = classes.shape
    left, right, was_busy = 0, wide, np.uint8(0)
    while left < wide and pixels[1, left] + pixels[2, left] == 0:
        left += 1
    while right > left and pixels[1, right - 1] + pixels[2, right - 1] == 0:
        right -= 1
    for i in range(high):
        row, busy = classes[i], np.uint8(0)
        for j in range(wide):
            busy |= row[j]
        if busy or was_busy:
            for j in range(left, right):
                if row[j] == MIXED or row[j] != (classes[i - 1, j] if i > 0 else 0):
                    changes[j, n_changes[j]] = i << 3 | row[j]
                    n_changes[j] += 1
        was_busy = busy


@compiled(
    types.Tuple((float32[::1], int64[:, :, ::1], int16[:, :, ::1], int64[:, ::1]))(
        float32[:, :, ::1], int32[:, :, ::1], float32[::1], int64[::1], int64[::1]
    )
)
def decide(
    low: np.ndarray, bits: np.ndarray, thresholds: np.ndarray, heights: np.ndarray, widths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """K masks (float32 K x L x L logits, and the same as int32) by blocks.

    Args: thresholds: ascending, float32 3. heights, widths: pixels of the h rows and w columns of blocks, h, w <= L.
    Returns: margins (float32 K); pixels of each column of blocks, decided above the highest threshold, decided above
    the lowest, and not decided (int64 K x 3 x w); and the changes down each column of blocks, row << 3 | class (int16
    K x w x h), with their number (int64 K x w).
    """
    n_masks, high, wide = low.shape[0], len(heights), len(widths)
    above, below = np.empty((high + 2, wide + 2), np.uint8), np.empty((high + 2, wide + 2), np.uint8)
    classes, margins = np.empty((high, wide), np.uint8), np.empty(n_masks, np.float32)
    pixels = np.zeros((n_masks, 3, wide), np.int64)
    changes, n_changes = np.empty((n_masks, wide, high), np.int16), np.zeros((n_masks, wide), np.int64)
    for k in range(n_masks):
        margins[k] = margin_of(bits[k])
        classify(low[k], margins[k], thresholds, above, below, classes)
        count(classes, heights, widths, pixels[k])
        list_changes(classes, pixels[k], changes[k], n_changes[k])
    return margins, pixels, changes, n_changes
