"""COCO strings of many masks at once, as run edges: the loops.

The edges of a mask are the column-major pixel indices where its runs of ones begin and end, ascending, in pairs. Six
bits a character from 48: five of value, one that says more follow; from the fourth run on, a run is stored as its
difference to the run two before (cocoapi, common/maskApi.c, rleToString and rleFrString).
"""

import numpy as np
from numba import int64, types, uint8

from maskmill.masks.jit import compiled, part, with_room

MOST = 13  # characters that one 64-bit number takes


@part
def put_number(out, at, value):
    """One signed number as characters; returns their end."""
    more = True
    while more:
        code = value & 31
        value >>= 5
        more = value != (-1 if code & 16 else 0)
        out[at] = (code | 32 if more else code) + 48
        at += 1
    return at


@compiled(types.Tuple((uint8[::1], int64[::1]))(int64[::1], int64[::1], int64))
def write(edges: np.ndarray, ends: np.ndarray, n_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges of N masks, those of mask i in edges[ends[i] : ends[i + 1]] -> all characters, where each mask's end."""
    out, ends_out, at = np.empty(256, np.uint8), np.zeros(len(ends), np.int64), 0
    for i in range(len(ends) - 1):
        first, last = ends[i], ends[i + 1]
        out = with_room(out, at, MOST * (last - first + 1))
        before, one_back, two_back = 0, 0, 0
        for e in range(first, last + 1):
            edge = edges[e] if e < last else n_pixels
            run = edge - before
            if e == last and run == 0 and last > first:
                break  # no empty run at the end
            at = put_number(out, at, run - two_back if e - first > 2 else run)
            before, one_back, two_back = edge, run, one_back
        ends_out[i + 1] = at
    return out[:at].copy(), ends_out


@compiled(types.Tuple((int64[::1], int64[::1], int64))(uint8[::1], int64[::1], int64))
def read(text: np.ndarray, ends: np.ndarray, n_pixels: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The inverse of `write`, for any COCO string; the third value is the first mask not of that size, or -1."""
    edges, ends_out, at = np.empty(len(text) + len(ends), np.int64), np.zeros(len(ends), np.int64), 0
    for i in range(len(ends) - 1):
        first, place, n_runs = at, 0, 0
        value, shift, one_back, two_back = 0, 0, 0, 0
        for c in range(ends[i], ends[i + 1]):
            code = np.int64(text[c]) - 48
            if code < 0 or code > 63 or shift > 55:
                return edges[:0].copy(), ends_out, i
            value |= (code & 31) << shift
            shift += 5
            if code & 32:
                continue
            if code & 16:
                value -= 1 << shift
            run = value + two_back if n_runs > 2 else value
            place += run
            if run < 0 or place > n_pixels:
                return edges[:0].copy(), ends_out, i
            if at > first and edges[at - 1] == place:  # an empty run: its neighbours are one
                at -= 1
            else:
                edges[at] = place
                at += 1
            value, shift, one_back, two_back, n_runs = 0, 0, run, one_back, n_runs + 1
        if shift != 0 or place != n_pixels:
            return edges[:0].copy(), ends_out, i
        if (at - first) % 2 and edges[at - 1] == n_pixels:  # ends in zeros
            at -= 1
        elif (at - first) % 2:  # ends in ones and an empty run of zeros
            edges[at] = n_pixels
            at += 1
        ends_out[i + 1] = at
    return edges[:at].copy(), ends_out, -1
