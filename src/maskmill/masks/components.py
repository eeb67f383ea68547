"""Small holes and islands of many masks at once, on run edges: the loops.

A mask is cut into the vertical segments of its columns, ones and zeros alike, in column-major order. Segments of
neighbouring columns that touch, corners included, are joined by union-find; no pixel is visited. Empty columns left and
right of the mask are one segment with the column beside it, which is longer than its column then.
"""

import numpy as np
from numba import boolean, int64, types

from maskmill.masks.jit import compiled, part

RESULT = types.Tuple((boolean[::1], int64[::1], int64[::1], int64[:, ::1], int64[::1]))


@part
def cut_columns(edges, height, width, top, bottom, value, first_of):
    """Edges of one mask -> rows top..bottom (exclusive) and 0 or 1 of each segment, and where each column's begin.

    Returns the first of the columns that were cut, and their number.
    """
    left, right = 0, 0
    if len(edges) > 0:
        left, right = max(edges[0] // height - 1, 0), min((edges[-1] - 1) // height + 1, width - 1)
    n, edge, on = 0, 0, 0
    for x in range(left, right + 1):
        first_of[x - left] = n
        at, end = x * height, (x + 1) * height
        while at < end:
            while edge < len(edges) and edges[edge] <= at:
                edge, on = edge + 1, 1 - on
            stop = min(end, edges[edge]) if edge < len(edges) else end
            top[n], bottom[n], value[n] = at - x * height, stop - x * height, on
            at, n = stop, n + 1
    first_of[right + 1 - left] = n
    top[0] -= left * height
    bottom[n - 1] += (width - 1 - right) * height
    return left, right + 1 - left


@part
def root(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@part
def join(wanted, left, n_columns, width, top, bottom, value, first_of, parent, size, key):
    """8-connected components of the segments of one value: parent leads to a root, which has the component's size.

    key: the place of a component's first 2 x 2 block of pixels, row-major. No two have the same, and OpenCV labels
    8-connected components in this order.
    """
    for c in range(n_columns):
        for i in range(first_of[c], first_of[c + 1]):
            parent[i], size[i], key[i] = i, bottom[i] - top[i], (top[i] // 2) * width + (left + c) // 2
    for c in range(1, n_columns):
        a, b = first_of[c - 1], first_of[c]
        a_end, b_end = b, first_of[c + 1]
        a, b = a + (value[a] != wanted), b + (value[b] != wanted)
        while a < a_end and b < b_end:
            if top[b] <= bottom[a] and top[a] <= bottom[b]:
                one, two = root(parent, a), root(parent, b)
                if one != two:
                    one, two = min(one, two), max(one, two)
                    parent[two] = one
                    size[one] += size[two]
                    key[one] = min(key[one], key[two])
            if bottom[a] < bottom[b]:  # values alternate down a column
                a += 2
            else:
                b += 2


@part
def fill_holes(n, min_area, value, parent, size):
    """Small components of zeros become ones. Returns whether there were any."""
    changed = False
    for i in range(n):
        if value[i] == 0 and size[root(parent, i)] < min_area:
            value[i] = 1
            changed = True
    return changed


@part
def drop_islands(n, min_area, value, parent, size, key):
    """Small components of ones become zeros, unless none would be left: then the largest stays, of equals the first.

    Returns whether there were any small ones; as in the official code also if the only one stays.
    """
    small, best = False, -1
    for i in range(n):
        if value[i] == 1 and parent[i] == i:
            small |= size[i] < min_area
            if best < 0 or size[i] > size[best] or (size[i] == size[best] and key[i] < key[best]):
                best = i
    for i in range(n if small else 0):
        if value[i] == 1:
            mine = root(parent, i)
            if mine != best and size[mine] < min_area:
                value[i] = 0
    return small


@part
def gather_edges(left, n_columns, height, top, bottom, value, first_of, edges, at):
    """The inverse of `cut_columns`, into `edges` from `at`. Returns their end."""
    on, end = 0, 0
    for c in range(n_columns):
        for i in range(first_of[c], first_of[c + 1]):
            if value[i] != on:
                edges[at] = (left + c) * height + top[i]
                at, on = at + 1, value[i]
            end = (left + c) * height + bottom[i]
    if on:
        edges[at] = end
        at += 1
    return at


@part
def measure(left, n_columns, height, top, bottom, value, first_of, box):
    """The box (XYXY, inclusive) and the area of the ones, of which there is at least one."""
    box[0], box[1], box[2], box[3], area = np.int64(2**62), height, -1, -1, 0
    for c in range(n_columns):
        for i in range(first_of[c], first_of[c + 1]):
            if value[i] == 1:
                area += bottom[i] - top[i]
                box[0], box[2] = min(box[0], left + c + top[i] // height), left + c + (bottom[i] - 1) // height
                box[1], box[3] = min(box[1], max(top[i], 0)), max(box[3], min(bottom[i], height) - 1)
    return area


@compiled(RESULT(int64[::1], int64[::1], int64, int64, int64))
def clean(
    edges: np.ndarray, ends: np.ndarray, height: int, width: int, min_area: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fill holes, then drop islands, of fewer than min_area pixels, in N masks: edges[ends[i] : ends[i + 1]] each.

    Returns: which masks had any (N); the edges of those and where each mask's begin (N + 1); box (N x 4, XYXY
    inclusive) and area (N), zero for the others.
    """
    n_masks, room = len(ends) - 1, 0
    for i in range(n_masks):
        room = max(room, ends[i + 1] - ends[i] + width + 1)
    top, bottom, value = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    parent, size, key = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    first_of = np.empty(width + 1, np.int64)
    changed, ends_out = np.zeros(n_masks, np.bool_), np.zeros(n_masks + 1, np.int64)
    boxes, areas = np.zeros((n_masks, 4), np.int64), np.zeros(n_masks, np.int64)
    out = np.empty(len(edges) + 2 * n_masks, np.int64)
    for i in range(n_masks):
        at = ends_out[i]
        ends_out[i + 1] = at
        left, n_columns = cut_columns(edges[ends[i] : ends[i + 1]], height, width, top, bottom, value, first_of)
        filled, dropped = False, False
        for wanted in range(2):
            join(wanted, left, n_columns, width, top, bottom, value, first_of, parent, size, key)
            if wanted == 1:
                dropped = drop_islands(first_of[n_columns], min_area, value, parent, size, key)
            elif fill_holes(first_of[n_columns], min_area, value, parent, size):
                filled = True
                end = gather_edges(left, n_columns, height, top, bottom, value, first_of, out, at)
                left, n_columns = cut_columns(out[at:end], height, width, top, bottom, value, first_of)
        changed[i] = filled or dropped
        if changed[i]:
            ends_out[i + 1] = gather_edges(left, n_columns, height, top, bottom, value, first_of, out, at)
            areas[i] = measure(left, n_columns, height, top, bottom, value, first_of, boxes[i])
    return changed, out, ends_out, boxes, areas
