"""Runs of masks from their words and tile classes (triton_kernels.py), in the column-major order of COCO's encoding.

A bit of a word differs from the pixel before it where a run begins or ends: a run edge. The edges of each column are
counted, the counts summed up on the device, and the edges written where the sums say.
"""

import triton
import triton.language as tl

from maskmill.generate.triton_kernels import (
    FIELDS,
    HEIGHT,
    IMAGE_HEIGHT,
    LEFT,
    MIXED,
    RIGHT,
    SIDE,
    STATS,
    WIDTH,
    X0,
    Y0,
    lowest_bit,
    ones_in,
)


@triton.jit
def words_at(state, words, height, width, across, i, x):
    """Word i of column x for broadcastable i and x; 0 outside the crop."""
    inside = (i >= 0) & (i * SIDE < height) & (x >= 0) & (x < width)
    kind = tl.load(state + i * across + x // SIDE, mask=inside, other=0)
    stored = tl.load(words + i * across * SIDE + x, mask=inside & (kind == MIXED), other=0)
    rows = height - i * SIDE
    full = tl.where(rows >= SIDE, -1, (1 << tl.minimum(tl.maximum(rows, 0), SIDE - 1)) - 1)
    return tl.where(kind == MIXED, stored, tl.where(kind >= 2, full, 0))


@triton.jit
def turns_at(state, words, crop, i, x):
    """Where column x differs from the pixel before it, in word i, as bits; the bit below the crop ends its last run.

    The pixel before a column's first is the last of the column before, if the crop is as high as the image; else it
    lies outside the crop and is 0.
    """
    height, width = tl.load(crop + HEIGHT), tl.load(crop + WIDTH)
    across = (width + SIDE - 1) // SIDE
    word = words_at(state, words, height, width, across, i, x)
    joined = height == tl.load(crop + IMAGE_HEIGHT)
    before = (words_at(state, words, height, width, across, i - 1, x) >> (SIDE - 1)) & 1
    last = x * 0 + height - 1
    foot = words_at(state, words, height, width, across, last // SIDE, tl.where(joined, x - 1, -1)) >> (last % SIDE)
    turns = word ^ ((word << 1) | tl.where(i == 0, foot & 1, before))
    goes_on = joined & (x < width - 1) & (i == height // SIDE)
    turns = tl.where(goes_on, turns & ~(1 << (height % SIDE)), turns)
    return tl.where(x < width, turns, 0)


@triton.jit(do_not_specialize=["max_tiles", "words_a_mask", "max_across"])
def count_edges(
    kept, n_kept, crop_of, crops, state, words, stats, counts, max_tiles, words_a_mask, max_across,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The run edges in each column of each kept mask: counts[slot, x]. Columns outside the box stay as they are: 0."""
    for item in range(tl.program_id(0), tl.load(n_kept).to(tl.int32) * max_across, tl.num_programs(0)):
        slot, j = item // max_across, item % max_across
        mask = tl.load(kept + slot).to(tl.int64)
        first, last = tl.load(stats + mask * STATS + LEFT), tl.load(stats + mask * STATS + RIGHT)
        if (j * SIDE <= last + 1) & (j * SIDE + SIDE > first):
            crop = crops + tl.load(crop_of + mask) * FIELDS
            x = j * SIDE + tl.arange(0, SIDE)
            count = tl.zeros([SIDE], tl.int32)
            for start in range(0, tl.load(crop + HEIGHT) // SIDE + 1, CHUNK):
                i = start + tl.arange(0, CHUNK)
                turns = turns_at(state + mask * max_tiles, words + mask * words_a_mask, crop, i[:, None], x[None, :])
                count += tl.sum(ones_in(turns), axis=0)
            tl.store(counts + slot.to(tl.int64) * max_across * SIDE + x, count)


@triton.jit(do_not_specialize=["max_tiles", "words_a_mask", "max_across", "capacity"])
def write_edges(
    kept, n_kept, crop_of, crops, state, words, counts, ends, edges, capacity, max_tiles, words_a_mask, max_across,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The run edges themselves, as column-major places in the image. `ends` is the running sum of `counts`.

    What lies beyond `capacity` is not written.
    """
    for item in range(tl.program_id(0), tl.load(n_kept).to(tl.int32) * max_across, tl.num_programs(0)):
        slot, j = item // max_across, item % max_across
        x = j * SIDE + tl.arange(0, SIDE)
        count = tl.load(counts + slot.to(tl.int64) * max_across * SIDE + x)
        if tl.max(count) > 0:
            mask = tl.load(kept + slot).to(tl.int64)
            crop = crops + tl.load(crop_of + mask) * FIELDS
            at = tl.load(ends + slot.to(tl.int64) * max_across * SIDE + x) - count
            origin = (x + tl.load(crop + X0)) * tl.load(crop + IMAGE_HEIGHT) + tl.load(crop + Y0)
            for start in range(0, tl.load(crop + HEIGHT) // SIDE + 1, CHUNK):
                i = start + tl.arange(0, CHUNK)
                turns = turns_at(state + mask * max_tiles, words + mask * words_a_mask, crop, i[:, None], x[None, :])
                n = ones_in(turns)
                place = at[None, :] + tl.cumsum(n, 0) - n
                for _ in range(tl.max(n)):
                    edge = origin[None, :] + i[:, None] * SIDE + lowest_bit(turns)
                    tl.store(edges + place, edge, mask=(turns != 0) & (place < capacity))
                    turns &= turns - 1
                    place += 1
                at += tl.sum(n, axis=0)
