"""Pixels that several masks cover, given to one of them, on run edges: the loops."""

import numpy as np
from numba import int64, types

from maskmill.masks.jit import compiled

RESULT = types.Tuple((int64[::1], int64[::1], int64[:, ::1], int64[::1]))  # type: ignore[no-untyped-call]


@compiled(RESULT(int64[::1], int64[::1], int64[::1], int64, int64))
def divide(
    edges: np.ndarray, ends: np.ndarray, first: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """N masks, edges[ends[i] : ends[i + 1]] each, and their order, who comes first keeping its pixels.

    Returns: the edges of what is left of each, and where they begin (N + 1); boxes (N x 4, XYXY inclusive) and areas.
    """
    owner = np.full(height * width, -1, np.int32)
    for k in range(len(first) - 1, -1, -1):  # the first is painted last
        i = first[k]
        for e in range(ends[i], ends[i + 1], 2):
            for p in range(edges[e], edges[e + 1]):
                owner[p] = i
    # an owner changes only where some mask has an edge, which then ends one run and begins another
    out, at = np.empty(2 * len(edges), np.int64), 0
    ends_out = np.zeros(len(ends), np.int64)
    boxes, areas = np.zeros((len(first), 4), np.int64), np.zeros(len(first), np.int64)
    for i in range(len(first)):
        begun, top, bottom = at, height, -1
        for e in range(ends[i], ends[i + 1], 2):
            mine, y = False, edges[e] % height
            for p in range(edges[e], edges[e + 1]):
                if owner[p] == i:
                    areas[i] += 1
                    top, bottom = min(top, y), max(bottom, y)
                if (owner[p] == i) != mine:
                    out[at] = p
                    at, mine = at + 1, not mine
                y = y + 1 if y + 1 < height else 0
            if mine:
                out[at] = edges[e + 1]
                at += 1
        ends_out[i + 1] = at
        if at > begun:
            boxes[i, 0], boxes[i, 1] = out[begun] // height, top
            boxes[i, 2], boxes[i, 3] = (out[at - 1] - 1) // height, bottom
    return out[:at].copy(), ends_out, boxes, areas
