"""Pillow's 8-bit bilinear resize as compiled loops, equal to it bit for bit (Pillow, src/libImaging/Resample.c).

Two passes, along the rows and then along the columns, with uint8 between them. A pass weights the pixels under a
triangle as wide as the output pixel (or two input pixels, if enlarging) with 22-bit fixed-point weights.

The second pass adds whole rows, which the compiler turns into vector instructions. The first would have to pick single
pixels, so 64 rows at a time are laid side by side: pixel x of all of them is then one row of 192 bytes, and the first
pass adds rows too.
"""

import numpy as np
from numba import int32, int64, types, uint8

from maskmill.masks.jit import compiled, part

ROWS, COLUMNS = 64, 256  # input rows and output columns that are worked on together: they stay in the cache
STRIP = 2 * ROWS
BITS = 22  # of a weight: 8 bits of the pixel and 2 to spare make 32
HALF = np.int32(1 << (BITS - 1))

Image = types.Array(uint8, 3, "C", readonly=True)
Pixels = uint8[:, :, ::1]
Taps = tuple[np.ndarray, np.ndarray, np.ndarray]
Index = np.uint64  # numba then leaves out what indices from the end need


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """H x W x 3 uint8 -> height x width x 3 uint8."""
    between = np.empty((image.shape[0], width, 3), np.uint8)
    along_rows, along_columns = taps(image.shape[1], width), taps(image.shape[0], height)
    for top in range(0, image.shape[0], STRIP):
        strip = np.ascontiguousarray(image[top : top + STRIP])  # a crop of a large image is never copied whole
        resize_rows(strip, *along_rows, between[top : top + STRIP])
    out = np.empty((height, width, 3), np.uint8)
    resize_columns(between, *along_columns, out)
    return out


@compiled(types.Tuple((int64[::1], int64[::1], int32[:, ::1]))(int64, int64))
def taps(size: int, out_size: int) -> Taps:
    """For each output pixel of an axis: its first input pixel, their count, and their weights (rest 0)."""
    scale = size / out_size
    support = max(scale, 1.0)
    inverse = 1.0 / support
    first, count = np.empty(out_size, np.int64), np.empty(out_size, np.int64)
    weights = np.zeros((out_size, int(np.ceil(support)) * 2 + 1), np.int32)
    exact = np.empty(weights.shape[1])
    for x in range(out_size):
        centre = (x + 0.5) * scale
        first[x] = max(int(centre - support + 0.5), 0)
        count[x] = min(int(centre + support + 0.5), size) - first[x]
        total = 0.0
        for k in range(count[x]):
            exact[k] = max(1.0 - abs((k + first[x] - centre + 0.5) * inverse), 0.0)
            total += exact[k]
        for k in range(count[x]):
            weights[x, k] = int(0.5 + exact[k] / total * (1 << BITS))
    return first, count, weights


@part
def add_rows(rows: np.ndarray, weights: np.ndarray, total: np.ndarray, out: np.ndarray) -> None:
    """out = the weighted sum of the rows, rounded."""
    weight, row = weights[0], rows[0]
    for i in range(total.size):
        total[i] = HALF + weight * np.int32(row[i])
    for k in range(1, rows.shape[0]):
        weight, row = weights[k], rows[k]
        for i in range(total.size):
            total[i] += weight * np.int32(row[i])
    for i in range(total.size):
        out[i] = min(total[i] >> BITS, 255)


@part
def lay(image: np.ndarray, top: int, left: int, rows: int, columns: int, side: np.ndarray) -> None:
    """side[x, y] = image[top + y, left + x]"""
    for x in range(columns):
        to = side[x]
        for y in range(rows):
            row = image[Index(top + y)]
            # all three read before the first is written: the compiler then need not fear that one changes the other
            r, g, b = row[Index(left + x), 0], row[Index(left + x), 1], row[Index(left + x), 2]
            to[y, 0], to[y, 1], to[y, 2] = r, g, b


@part
def lay_back(side: np.ndarray, image: np.ndarray, top: int, left: int, rows: int, columns: int) -> None:
    """image[top + y, left + x] = side[x, y]"""
    for y in range(rows):
        row = image[Index(top + y)]
        for x in range(columns):
            r, g, b = side[x, y, 0], side[x, y, 1], side[x, y, 2]
            row[Index(left + x), 0], row[Index(left + x), 1], row[Index(left + x), 2] = r, g, b


@compiled(types.void(Image, int64[::1], int64[::1], int32[:, ::1], Pixels))
def resize_rows(image: np.ndarray, first: np.ndarray, count: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """H x W x 3 -> H x width x 3."""
    height, width = out.shape[0], out.shape[1]
    span = 0
    for left in range(0, width, COLUMNS):
        last = min(left + COLUMNS, width) - 1
        span = max(span, first[last] + count[last] - first[left])
    source, made = np.zeros((span, ROWS, 3), np.uint8), np.empty((COLUMNS, ROWS, 3), np.uint8)
    source_rows, made_rows = source.reshape(span, ROWS * 3), made.reshape(COLUMNS, ROWS * 3)
    total = np.empty(ROWS * 3, np.int32)
    for top in range(0, height, ROWS):
        rows = min(ROWS, height - top)
        for left in range(0, width, COLUMNS):
            columns = min(COLUMNS, width - left)
            begin, last = first[left], left + columns - 1
            lay(image, top, begin, rows, first[last] + count[last] - begin, source)
            for x in range(columns):
                at, n = first[left + x] - begin, count[left + x]
                add_rows(source_rows[at : at + n], weights[left + x], total, made_rows[x])
            lay_back(made, out, top, left, rows, columns)


@compiled(types.void(Pixels, int64[::1], int64[::1], int32[:, ::1], Pixels))
def resize_columns(
    image: np.ndarray, first: np.ndarray, count: np.ndarray, weights: np.ndarray, out: np.ndarray
) -> None:
    """H x width x 3 -> height x width x 3."""
    rows, out_rows = image.reshape(image.shape[0], -1), out.reshape(out.shape[0], -1)
    total = np.empty(rows.shape[1], np.int32)
    for y in range(out.shape[0]):
        add_rows(rows[first[y] : first[y] + count[y]], weights[y], total, out_rows[y])
