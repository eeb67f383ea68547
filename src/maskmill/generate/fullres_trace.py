"""Low-resolution masks on CPU, at full resolution: only the blocks on a contour are evaluated.

For those, first the logits between the two steps are interpolated; the cells between them are decided as blocks are
(fullres_blocks.py). In the cells that are left, a column of pixels runs straight from one logit to another. Pixels near
a threshold are computed with torch's own float operations in torch's own order. All goes column by column, so that the
ends of the runs come out in COCO's order.
"""

from typing import Any

import numpy as np
from numba import boolean, float32, int16, int64, types

from maskmill.generate.fullres_blocks import MIXED
from maskmill.masks.jit import compiled, fma, part, with_room

FEW = 3  # pixels that are computed as fast as they are counted between two logits
# One axis of one step: two source indices and two weights for each output, and the first output of each source index.
AXIS = types.Tuple((int64[:, ::1], float32[:, ::1], int64[::1]))
AXES = types.UniTuple(AXIS, 4)
RESULT = types.Tuple((int64[:, ::1], boolean[::1], int64[:, ::1], int64[::1], int64[::1]))
BLOCKS = (float32[::1], int64[:, :, ::1], int16[:, :, ::1], int64[:, ::1])


@part
def bilinear(a, b, c, d, up, down, left, right, flat):
    """One output of torch's upsample_bilinear2d from the corners a b / c d and their weights.

    `flat` is the kernel for channels-last tensors, else the generic one (aten/src/ATen/native/cpu/UpSampleKernel.cpp),
    both as they are compiled for CPUs with fused multiply-add.
    """
    if flat:
        return fma(d, down * right, fma(c, down * left, fma(a, up * left, b * (up * right))))
    return fma(fma(a, left, b * right), up, fma(c, left, d * right) * down)


@part
def code_of(v, margin, low, middle, high):
    """Bits 0-2: v clears the low, middle, high threshold from above; bits 3-5: from below."""
    above = (v > low + margin) | (v > middle + margin) << 1 | (v > high + margin) << 2
    below = (v <= low - margin) | (v <= middle - margin) << 1 | (v <= high - margin) << 2
    return np.uint8(above | below << 3)


@part
def class_of(code):
    """The class of a cell from the bits that its four logits share; where one is NaN, they share none."""
    if (code | code >> 3) & 7 != 7:
        return MIXED
    return (code & 1) + (code >> 1 & 1) + (code >> 2 & 1)


@part
def fill(tile, codes, logits, k0, k1, m0, m1, t0, rows, columns, levels, flat):
    """Logits between the steps that lie between the same four logits: rows k0..k1, columns m0..m1, not none."""
    (ri, rw, _), (ci, cw, _), (margin, low, middle, high) = rows, columns, levels
    above, below, x, y = logits[ri[0, k0]], logits[ri[1, k0]], ci[0, m0], ci[1, m0]
    a, b, c, d = above[x], above[y], below[x], below[y]
    for k in range(k0, k1):
        for m in range(m0, m1):
            v = bilinear(a, b, c, d, rw[0, k], rw[1, k], cw[0, m], cw[1, m], flat)
            tile[k, m - m0 + t0], codes[k, m - m0 + t0] = v, code_of(v, margin, low, middle, high)


@part
def fill_tile(tile, codes, logits, j, changes, mids_high, mids_wide, rows, columns, levels, flat):
    """The logits between the steps that the mixed blocks of block column j need, in tile[k, m - the column's first]."""
    first_row, first_column, done = rows[2], columns[2], 0
    m0, m1 = first_column[j], min(first_column[j + 1], mids_wide)
    for change in changes:
        i = change >> 3
        if change & 7 != MIXED:
            continue
        for k0, k1 in ((first_row[i], min(first_row[i + 1], mids_high)), (first_row[i + 1], first_row[i + 1] + 1)):
            k0 = max(k0, done)
            if k0 < k1 and k1 <= mids_high:  # the block, then the first row of the one below
                fill(tile, codes, logits, k0, k1, m0, m1, 0, rows, columns, levels, flat)
                if m1 < mids_wide:
                    fill(tile, codes, logits, k0, k1, m1, m1 + 1, m1 - m0, rows, columns, levels, flat)
                done = k1


@part
def find_segments(changes, codes, t0, t1, first_mid, first_row, starts, what):
    """One column between the steps as decided segments and mixed cells, from the top. Returns how many there are.

    starts: the first output row of each, and the end. what: its class, or, of a mixed cell, -1 - (row << 6 | code).
    """
    mids, n = len(first_row) - 1, 1
    starts[0], what[0] = 0, 0
    for change in changes:
        i, kind = change >> 3, change & 7
        if kind != MIXED:
            if what[n - 1] != kind:
                starts[n], what[n] = first_row[first_mid[i]], kind
                n += 1
            continue
        for k in range(first_mid[i], first_mid[i + 1]):
            if first_row[k] == first_row[k + 1]:
                continue
            below = min(k + 1, mids - 1)
            code = codes[k, t0] & codes[k, t1] & codes[below, t0] & codes[below, t1]
            cell = class_of(code)
            if cell == MIXED or what[n - 1] != cell:
                starts[n], what[n] = first_row[k], -1 - (k << 6 | code) if cell == MIXED else cell
                n += 1
    starts[n] = first_row[mids]
    return n


@part
def count_over(first, last, code, weights, y0, y1, margin):
    """How many of the pixels on the straight way from one number to another are above 0; -1 if that is not sure.

    code: of the cell, for this threshold: bit 0 if all of its pixels are, bit 3 if none is.
    """
    if code & 1 or (first > margin and last > margin):
        return y1 - y0
    if code & 8 or (first < -margin and last < -margin):
        return 0
    n, clear = 0, True
    for y in range(y0, y1):
        v = first * weights[0, y] + last * weights[1, y]
        n += v > 0
        clear &= abs(v) > margin
    return n if clear else -1


@part
def trace_column(n, starts, what, tile, t0, t1, left, right, rows, levels, flat, edges, at, counts):
    """One output column: the rows where its mask begins and ends go into `edges` from `at`; returns their end.

    counts: grows by the pixels above the highest threshold and above the lowest.
    """
    (ri, rw, _), (margin, low, middle, high), on, inner, outer = rows, levels, False, 0, 0
    for s in range(n):
        kind, y0, y1 = what[s], starts[s], starts[s + 1]
        if kind >= 0:
            inner, outer = inner + (y1 - y0) * (kind >= 3), outer + (y1 - y0) * (kind >= 1)
            now = kind >= 2 if y1 > y0 else on
            edges[at] = y0  # written in any case, kept if it is one: no jump to guess
            at, on = at + (now != on), now
            continue
        k, code, below = (-1 - kind) >> 6, (-1 - kind) & 63, ri[1, y0]
        a, b, c, d = tile[k, t0], tile[k, t1], tile[below, t0], tile[below, t1]
        if y1 - y0 > FEW:
            first, last = a * left + b * right, c * left + d * right
            n0 = count_over(first - low, last - low, code, rw, y0, y1, margin)
            n1 = count_over(first - middle, last - middle, code >> 1, rw, y0, y1, margin)
            n2 = count_over(first - high, last - high, code >> 2, rw, y0, y1, margin)
            if n0 >= 0 and n1 >= 0 and n2 >= 0:
                inner, outer, falls = inner + n2, outer + n0, first > last
                begins, turn = (n1 > 0, y0 + n1) if falls else (n1 == y1 - y0, y1 - n1)
                turns = y0 < turn < y1
                edges[at] = y0
                at += begins != on
                edges[at] = turn
                at, on = at + turns, begins != turns
                continue
        for y in range(y0, y1):
            v = bilinear(a, b, c, d, rw[0, y], rw[1, y], left, right, flat)
            inner, outer, now = inner + (v > high), outer + (v > low), v > middle
            edges[at] = y
            at, on = at + (now != on), now
    edges[at] = starts[n]
    counts[0], counts[1] = counts[0] + inner, counts[1] + outer
    return at + on


@part
def place_column(edges, first, column, at, x, base, box, counts):
    """edges[column:at], rows of output column x, become places in the image; box and area grow. Returns the new end.

    edges[first:column] are the mask's so far: a run that goes on from the column before is joined to it.
    """
    if at == column:
        return at
    box[0], box[1] = min(box[0], x), min(box[1], edges[column])
    box[2], box[3] = x, max(box[3], edges[at - 1] - 1)
    for e in range(column, at):
        counts[2] += edges[e] if (e - column) % 2 else -edges[e]
        edges[e] += base
    if column == first or edges[column - 1] != edges[column]:
        return at
    for e in range(column + 1, at):
        edges[e - 2] = edges[e]
    return at - 2


@part
def stays_below(inner, outer, floor):
    """Whether inner / outer is below the floor, in float32 as torch divides; without an outer pixel it is 0."""
    return floor > 0 and (outer == 0 or np.float32(inner) / np.float32(outer) < floor)


@compiled(RESULT(float32[:, :, ::1], *BLOCKS, AXES, int64[::1], float32[::1], float32, boolean, boolean))
def trace(
    low: np.ndarray, margins: np.ndarray, pixels: np.ndarray, changes: np.ndarray, n_changes: np.ndarray, axes: Any,
    place: np.ndarray, thresholds: np.ndarray, floor: np.float32, flat1: bool, flat2: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """K masks of one crop.

    Args: low: float32 K x L x L logits, and all that `decide` gives of them. axes: rows and columns of the first step,
    then of the second. place: (x, y) of the crop in the image and the image's height. thresholds: of the outer count,
    the mask and the inner count. floor: a mask is given up once its stability is sure to be lower; 0 = never. flat1,
    flat2: torch's kernel in each step.
    Returns: inner count, outer count and area (K x 3); whether the stability reaches the floor (K; the other results
    are unfinished where not); box (K x 4, XYXY inclusive, crop frame; 0 if empty); run edges of all masks, as places in
    the image, column-major, and where each mask's begin (K + 1).
    """
    mid_rows, mid_columns, rows, columns = axes
    n_masks, wide, high = changes.shape
    (first_mid, first_mid_column), (ci, cw, first_column) = (mid_rows[2], mid_columns[2]), columns
    mids_high, mids_wide, height, widest = len(rows[2]) - 1, len(first_column) - 1, rows[0].shape[1], 0
    for j in range(wide):
        widest = max(widest, first_mid_column[j + 1] - first_mid_column[j])
    tile, codes = np.empty((mids_high, widest + 1), np.float32), np.empty((mids_high, widest + 1), np.uint8)
    starts, what = np.empty(mids_high + high + 2, np.int64), np.empty(mids_high + high + 2, np.int64)
    counts, stable = np.zeros((n_masks, 3), np.int64), np.zeros(n_masks, np.bool_)
    boxes, ends = np.zeros((n_masks, 4), np.int64), np.zeros(n_masks + 1, np.int64)
    edges = np.empty(4 * (height + 2), np.int64)
    for mask in range(n_masks):
        logits, ahead, found, box = low[mask], pixels[mask], counts[mask], boxes[mask]
        levels = (margins[mask], thresholds[0], thresholds[1], thresholds[2])
        at, alive, most_inner, least_outer = ends[mask], True, 0, 0  # what is ahead adds at most, at least
        for j in range(wide):
            most_inner, least_outer = most_inner + ahead[0, j] + ahead[2, j], least_outer + ahead[1, j]
        box[0], box[1], box[2], box[3] = ci.shape[1], height, -1, -1
        for j in range(wide):
            if n_changes[mask, j] == 0:  # nothing above any threshold
                continue
            alive = least_outer + found[1] == 0 or not stays_below(most_inner + found[0], least_outer + found[1], floor)
            if not alive:
                break
            most_inner, least_outer = most_inner - ahead[0, j] - ahead[2, j], least_outer - ahead[1, j]
            mine, m0 = changes[mask, j, : n_changes[mask, j]], first_mid_column[j]
            fill_tile(tile, codes, logits, j, mine, mids_high, mids_wide, mid_rows, mid_columns, levels, flat1)
            for m in range(m0, first_mid_column[j + 1]):
                if first_column[m] == first_column[m + 1]:
                    continue
                t0, t1 = m - m0, min(m + 1, mids_wide - 1) - m0
                n = find_segments(mine, codes, t0, t1, first_mid, rows[2], starts, what)
                for x in range(first_column[m], first_column[m + 1]):
                    edges, column, t1 = with_room(edges, at, height + 4), at, ci[1, x] - m0
                    at = trace_column(
                        n, starts, what, tile, t0, t1, cw[0, x], cw[1, x], rows, levels, flat2, edges, at, found
                    )
                    base = (x + place[0]) * place[2] + place[1]
                    at = place_column(edges, ends[mask], column, at, x, base, box, found)
        stable[mask] = alive and not stays_below(found[0], found[1], floor)
        if box[2] < 0:
            box[0], box[1], box[2], box[3] = 0, 0, 0, 0
        ends[mask + 1] = at if stable[mask] else ends[mask]
    return counts, stable, boxes, edges, ends
