"""Low-resolution masks on CPU, at full resolution: only the blocks on a contour are evaluated.

For those, first the logits between the two steps are interpolated; the cells between them are decided as blocks are
(fullres_blocks.py). The pixels of the cells that are left are computed with torch's own float operations in torch's own
order, column by column, so that the ends of the runs come out in COCO's order.
"""

from typing import Any

import numpy as np
from numba import boolean, float32, int64, types, uint8
from numba.extending import intrinsic

from maskmill.generate.fullres_blocks import MIXED
from maskmill.masks.jit import compiled, part

# One axis of one step: two source indices and two weights for each output, and the first output of each source index.
AXIS = types.Tuple((int64[:, ::1], float32[:, ::1], int64[::1]))
RESULT = types.Tuple((int64[:, ::1], boolean[::1], int64[:, ::1], int64[::1], int64[::1]))


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c in float32, rounded once."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return float32(float32, float32, float32), build


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
def code_of(v, bounds):
    """Bits 0-2: v clears the threshold from above; bits 3-5: from below. A cell is decided by the bits all share."""
    above = np.uint8(v > bounds[1]) | np.uint8(v > bounds[3]) << np.uint8(1) | np.uint8(v > bounds[5]) << np.uint8(2)
    below = np.uint8(v <= bounds[0]) | np.uint8(v <= bounds[2]) << np.uint8(1) | np.uint8(v <= bounds[4]) << np.uint8(2)
    return above | below << np.uint8(3)


@part
def class_of(code):
    """The class of a cell from the bits that its corners share."""
    if (code | code >> 3) & 7 != 7:
        return MIXED
    return (code & 1) + (code >> 1 & 1) + (code >> 2 & 1)


@part
def list_changes(classes, pixels, changes, n_changes):
    """For each column of blocks the rows that are mixed, or of another class than the row above (0 above the first).

    Returns the columns (from, to) that hold a pixel which may exceed a threshold; only theirs are listed.
    """
    high, wide = classes.shape
    left, right, was_busy = 0, wide, np.uint8(0)
    while left < wide and pixels[1, left] + pixels[2, left] == 0:
        left += 1
    while right > left and pixels[1, right - 1] + pixels[2, right - 1] == 0:
        right -= 1
    for j in range(wide):
        n_changes[j] = 0
    for i in range(high):
        row, busy = classes[i], np.uint8(0)
        for j in range(wide):
            busy |= row[j]
        if busy or was_busy:
            for j in range(left, right):
                if row[j] == MIXED or row[j] != (classes[i - 1, j] if i > 0 else 0):
                    changes[j, n_changes[j]] = i
                    n_changes[j] += 1
        was_busy = busy
    return left, right


@part
def fill(tile, codes, logits, k0, k1, m0, m1, t0, rows, columns, bounds, flat):
    """Logits between the steps that lie between the same four logits: rows k0..k1, columns m0..m1, not none."""
    (ri, rw, _), (ci, cw, _) = rows, columns
    above, below, x, y = logits[ri[0, k0]], logits[ri[1, k0]], ci[0, m0], ci[1, m0]
    a, b, c, d = above[x], above[y], below[x], below[y]
    for k in range(k0, k1):
        up, down = rw[0, k], rw[1, k]
        for m in range(m0, m1):
            v = bilinear(a, b, c, d, up, down, cw[0, m], cw[1, m], flat)
            tile[k, m - m0 + t0] = v
            codes[k, m - m0 + t0] = code_of(v, bounds)


@part
def fill_tile(tile, codes, logits, classes, j, changes, mids_high, mids_wide, rows, columns, bounds, flat):
    """The logits between the steps that the mixed blocks of block column j need, in tile[k, m - the column's first]."""
    first_row, first_column, done = rows[2], columns[2], 0
    m0, m1 = first_column[j], min(first_column[j + 1], mids_wide)
    for i in changes:
        if classes[i, j] != MIXED:
            continue
        for k0, k1 in ((first_row[i], min(first_row[i + 1], mids_high)), (first_row[i + 1], first_row[i + 1] + 1)):
            k0 = max(k0, done)
            if k0 < k1 and k1 <= mids_high:  # the block, and the first row of the one below
                fill(tile, codes, logits, k0, k1, m0, m1, 0, rows, columns, bounds, flat)
                if m1 < mids_wide:
                    fill(tile, codes, logits, k0, k1, m1, m1 + 1, m1 - m0, rows, columns, bounds, flat)
                done = k1


@part
def find_segments(classes, j, changes, n_columns, codes, t0, t1, first_mid, first_row, segments):
    """One column between the steps (n_columns output columns) as decided segments and mixed cells, from the top.

    segments[0]: the first output row of each, and the end. segments[1]: its class, or -1 - k for the mixed cell at row
    k. Returns how many there are.
    """
    starts, what, mids, n = segments[0], segments[1], len(first_row) - 1, 1
    starts[0], what[0] = 0, 0
    for i in changes:
        kind = np.int64(classes[i, j])
        if kind != MIXED:
            if what[n - 1] != kind:
                starts[n], what[n] = first_row[first_mid[i]], kind
                n += 1
            continue
        for k in range(first_mid[i], first_mid[i + 1]):
            pixels = (first_row[k + 1] - first_row[k]) * n_columns
            if pixels == 0:
                continue
            cell = MIXED
            if pixels > 2:  # fewer are evaluated as fast as they are decided
                below = min(k + 1, mids - 1)
                cell = class_of(codes[k, t0] & codes[k, t1] & codes[below, t0] & codes[below, t1])
            if cell == MIXED or what[n - 1] != cell:
                starts[n], what[n] = first_row[k], -1 - k if cell == MIXED else cell
                n += 1
    starts[n] = first_row[mids]
    return n


@part
def count_over(k, code, first, last, weights, y0, y1, margin, threshold):
    """How many pixels on the straight way from one logit to another exceed threshold k; -1 if that is not sure.

    code: the bits that both logits share.
    """
    if code >> k & 1:
        return y1 - y0
    if code >> (k + 3) & 1:
        return 0
    n, clear = 0, True
    for y in range(y0, y1):
        over = first * weights[0, y] + last * weights[1, y] - threshold
        n += over > 0
        clear &= abs(over) > margin
    return n if clear else -1


@part
def trace_column(n, segments, tile, t0, t1, left, right, rows, thresholds, margin, bounds, flat, edges, at, counts):
    """One output column: the rows where its mask begins and ends go into `edges` from `at`; returns their end.

    counts: grows by the pixels above the highest threshold and above the lowest.
    """
    (ri, rw, _), starts, what = rows, segments[0], segments[1]
    on, inner, outer = False, 0, 0
    for s in range(n):
        kind, y0, y1 = what[s], starts[s], starts[s + 1]
        if kind >= 0:
            inner += (y1 - y0) * (kind >= 3)
            outer += (y1 - y0) * (kind >= 1)
            if (kind >= 2) != on and y1 > y0:
                on = not on
                edges[at] = y0
                at += 1
            continue
        k, below = -1 - kind, ri[1, y0]
        a, b, c, d = tile[k, t0], tile[k, t1], tile[below, t0], tile[below, t1]
        first, last = a * left + b * right, c * left + d * right
        code = code_of(first, bounds) & code_of(last, bounds)
        n0 = count_over(0, code, first, last, rw, y0, y1, margin, thresholds[0])
        n1 = count_over(1, code, first, last, rw, y0, y1, margin, thresholds[1])
        n2 = count_over(2, code, first, last, rw, y0, y1, margin, thresholds[2])
        if n0 >= 0 and n1 >= 0 and n2 >= 0:
            inner, outer = inner + n2, outer + n0
            falls = first > last
            turn = y0 + n1 if falls else y1 - n1
            if (n1 > 0 if falls else n1 == y1 - y0) != on:
                on = not on
                edges[at] = y0
                at += 1
            if y0 < turn < y1:
                on = not on
                edges[at] = turn
                at += 1
            continue
        for y in range(y0, y1):
            v = bilinear(a, b, c, d, rw[0, y], rw[1, y], left, right, flat)
            inner += v > thresholds[2]
            outer += v > thresholds[0]
            if (v > thresholds[1]) != on:
                on = not on
                edges[at] = y
                at += 1
    if on:
        edges[at] = starts[n]
        at += 1
    counts[0] += inner
    counts[1] += outer
    return at


@part
def place_column(edges, first, column, at, x, base, box, counts):
    """edges[column:at], rows of output column x, become places in the image; box and area grow. Returns the new end.

    edges[first:column] are the mask's so far: a run that goes on from the column before is joined to it.
    """
    if at == column:
        return at
    box[0], box[2] = min(box[0], x), x
    box[1], box[3] = min(box[1], edges[column]), max(box[3], edges[at - 1] - 1)
    for e in range(column, at):
        counts[2] += edges[e] if (e - column) % 2 else -edges[e]
        edges[e] += base
    if column == first or edges[column - 1] != edges[column]:
        return at
    for e in range(column + 1, at):
        edges[e - 2] = edges[e]
    return at - 2


@part
def longer(edges, at):
    """Twice the room, with the first `at` copied."""
    grown = np.empty(2 * len(edges), np.int64)
    for e in range(at):
        grown[e] = edges[e]
    return grown


@part
def stays_below(inner, outer, floor):
    """Whether inner / outer is below the floor, in float32 as torch divides; without an outer pixel it is 0."""
    return floor > 0 and (outer == 0 or np.float32(inner) / np.float32(outer) < floor)


@compiled(
    RESULT(
        float32[:, :, ::1], uint8[:, :, ::1], float32[::1], int64[:, :, ::1], AXIS, AXIS, AXIS, AXIS, int64[::1],
        float32[::1], float32, boolean, boolean,
    )
)  # fmt: skip
def trace(
    low: np.ndarray, classes: np.ndarray, margins: np.ndarray, pixels: np.ndarray, mid_rows: Any, mid_columns: Any,
    rows: Any, columns: Any, place: np.ndarray, thresholds: np.ndarray, floor: np.float32, flat1: bool, flat2: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """K masks of one crop.

    Args: low: float32 K x L x L logits; classes, margins, pixels: what `decide` gives. mid_rows, mid_columns: the axes
    of the first step; rows, columns: of the second. place: (x, y) of the crop in the image and the image's height.
    thresholds: of the outer count, the mask and the inner count. floor: a mask is given up once its stability is sure
    to be lower; 0 = never. flat1, flat2: torch's kernel in each step.
    Returns: inner count, outer count and area (K x 3); whether the stability reaches the floor (K; the other results
    are unfinished where not); box (K x 4, XYXY inclusive, crop frame; 0 if empty); run edges of all masks, as places in
    the image, column-major, and where each mask's begin (K + 1).
    """
    n_masks, high, wide = classes.shape
    (first_mid, first_mid_column), (ci, cw, first_column) = (mid_rows[2], mid_columns[2]), columns
    mids_high, mids_wide, height, widest = len(rows[2]) - 1, len(first_column) - 1, rows[0].shape[1], 0
    for j in range(wide):
        widest = max(widest, first_mid_column[j + 1] - first_mid_column[j])
    tile, codes = np.empty((mids_high, widest + 1), np.float32), np.empty((mids_high, widest + 1), np.uint8)
    segments = np.empty((2, mids_high + high + 2), np.int64)
    changes, n_changes = np.empty((wide, high), np.int64), np.empty(wide, np.int64)
    counts, stable = np.zeros((n_masks, 3), np.int64), np.zeros(n_masks, np.bool_)
    boxes, ends = np.zeros((n_masks, 4), np.int64), np.zeros(n_masks + 1, np.int64)
    edges = np.empty(4 * (height + 2), np.int64)
    for mask in range(n_masks):
        logits, kinds, margin, ahead = low[mask], classes[mask], margins[mask], pixels[mask]
        found, box, at, alive = counts[mask], boxes[mask], ends[mask], True
        t0, t1, t2 = thresholds[0], thresholds[1], thresholds[2]
        bounds = (t0 - margin, t0 + margin, t1 - margin, t1 + margin, t2 - margin, t2 + margin)
        most_inner, least_outer = 0, 0  # what is still ahead adds at most, at least
        for j in range(wide):
            most_inner, least_outer = most_inner + ahead[0, j] + ahead[2, j], least_outer + ahead[1, j]
        box[0], box[1], box[2], box[3] = ci.shape[1], height, -1, -1
        left, right = list_changes(kinds, ahead, changes, n_changes)
        for j in range(left, right):
            alive = least_outer + found[1] == 0 or not stays_below(most_inner + found[0], least_outer + found[1], floor)
            if not alive:
                break
            most_inner, least_outer = most_inner - ahead[0, j] - ahead[2, j], least_outer - ahead[1, j]
            mine, m0 = changes[j, : n_changes[j]], first_mid_column[j]
            fill_tile(
                tile, codes, logits, kinds, j, mine, mids_high, mids_wide, mid_rows, mid_columns, bounds, flat1,
            )  # fmt: skip
            for m in range(m0, first_mid_column[j + 1]):
                n_columns, t0, t1 = first_column[m + 1] - first_column[m], m - m0, min(m + 1, mids_wide - 1) - m0
                if n_columns == 0:
                    continue
                n = find_segments(kinds, j, mine, n_columns, codes, t0, t1, first_mid, rows[2], segments)
                for x in range(first_column[m], first_column[m + 1]):
                    if at + height + 2 > len(edges):
                        edges = longer(edges, at)
                    column, t1 = at, ci[1, x] - m0
                    at = trace_column(
                        n,
                        segments,
                        tile,
                        t0,
                        t1,
                        cw[0, x],
                        cw[1, x],
                        rows,
                        thresholds,
                        margin,
                        bounds,
                        flat2,
                        edges,
                        at,
                        found,
                    )
                    base = (x + place[0]) * place[2] + place[1]
                    at = place_column(edges, ends[mask], column, at, x, base, box, found)
        stable[mask] = alive and not stays_below(found[0], found[1], floor)
        if box[2] < 0:
            box[0], box[1], box[2], box[3] = 0, 0, 0, 0
        ends[mask + 1] = at if stable[mask] else ends[mask]
    return counts, stable, boxes, edges, ends
