"""Masks at full resolution from low-resolution logits, without full-resolution logits: the loops for CUDA.

`gpu.py` launches these kernels in the order of this file, then those of triton_runs.py. A mask is cut into tiles of
32 x 32 pixels of its crop. Every pixel of the two-step interpolation lies between the low-resolution logits around it,
so a tile whose logits all lie on one side of each threshold is decided whole; the others are evaluated, by one warp,
a column to a thread. One column of one tile is one 32-bit word of mask pixels: runs are found by bit operations.

The arithmetic is that of torch's CUDA kernel (aten/src/ATen/native/cuda/UpSampleBilinear2d.cu,
upsample_bilinear2d_out_frame) as its sm_90 code in torch 2.11 has it: fma(w0, a, w1 * b) along x, then along y, with
w0 = 1 - w1. The fused multiply-add is written out, so the compiler has nothing left to contract and the logits are
equal to the bit. A margin keeps rounding out of the decisions about whole tiles: one such step rounds by at most
2.5 * 2**-24 of the largest logit (the product, the sum, w0), four in a row by 10 * 2**-24; the margin is 16 * 2**-24.
"""

import triton
import triton.language as tl

SIDE = tl.constexpr(32)  # pixels of a tile, and bits of a word
MIXED = tl.constexpr(4)  # a tile's class is the number of thresholds that its pixels exceed, or MIXED

# Columns of `crops`, int32: the size of the crop and of its part of the square input, its place in the image, the
# image's height, where the axes' tables begin (int32 and float32, rows and columns).
FIELDS = tl.constexpr(11)
HEIGHT, WIDTH, MID_HEIGHT, MID_WIDTH, X0, Y0 = (tl.constexpr(i) for i in range(6))
IMAGE_HEIGHT, ROW_INTS, ROW_FLOATS, COLUMN_INTS, COLUMN_FLOATS = (tl.constexpr(i) for i in range(6, 11))

# Columns of `stats`, int32: pixels above threshold + offset, above threshold - offset, above threshold; the box; pixels
# of mixed tiles.
STATS = tl.constexpr(8)
INNER, OUTER, AREA, LEFT, TOP, RIGHT, BOTTOM, UNDECIDED = (tl.constexpr(i) for i in range(8))

MARGIN = tl.constexpr(2.0**-20)
TINY = tl.constexpr(2.0**-120)  # where the margin itself would underflow
SURE = tl.constexpr(1 - 2.0**-16)  # keeps a float32 estimate of the stability on the safe side


@triton.jit
def tile_grid(crop):
    """Tiles of a crop, down and across. The last row of tiles always has at least one row below the crop."""
    return tl.load(crop + HEIGHT) // SIDE + 1, (tl.load(crop + WIDTH) + SIDE - 1) // SIDE


@triton.jit
def lerp(a, b, w0, w1):
    """torch's order: w1 * b is rounded, w0 * a + it is rounded once."""
    return tl.fma(w0, a, w1 * b)


@triton.jit
def ones_in(word):
    """Bits set in each int32 (the right shifts are arithmetic; what they drag in is masked)."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return (word * 0x01010101) >> 24


@triton.jit
def lowest_bit(word):
    """Place of the lowest set bit of each int32; 32 for 0."""
    return ones_in((word & -word) - 1)


@triton.jit
def highest_bit(word):
    """Place of the highest set bit of each int32; -1 for 0."""
    word |= word >> 1
    word |= word >> 2
    word |= word >> 4
    word |= word >> 8
    word |= word >> 16
    return ones_in(word) - 1


@triton.jit
def classes_of(low, high, inner_at, mask_at, outer_at):
    """The class of tiles whose logits lie in [low, high]. An infinite logit makes an infinite margin, so MIXED."""
    margin = tl.maximum(tl.abs(low), tl.abs(high)) * MARGIN + TINY
    low -= margin
    high += margin
    least = (low > outer_at).to(tl.int32) + (low > mask_at).to(tl.int32) + (low > inner_at).to(tl.int32)
    most = (high > outer_at).to(tl.int32) + (high > mask_at).to(tl.int32) + (high > inner_at).to(tl.int32)
    return tl.where(least == most, least, MIXED)


@triton.jit(do_not_specialize=["size", "max_tiles", "span_y"])
def classify(
    logits, size, alive, crop_of, crops, ints, state, stats, inner_at, mask_at, outer_at, max_tiles, span_y,
    TILES: tl.constexpr, SPAN_X: tl.constexpr,
):  # fmt: skip
    """One program a mask: the class of each tile, and what the decided tiles add to the mask's stats."""
    mask = tl.program_id(0)
    if tl.load(alive + mask) == 0:
        return
    crop = crops + tl.load(crop_of + mask) * FIELDS
    height, width = tl.load(crop + HEIGHT), tl.load(crop + WIDTH)
    down, across = tile_grid(crop)
    row_spans = ints + tl.load(crop + ROW_INTS) + height + 2 * tl.load(crop + MID_HEIGHT) + size + 3
    column_spans = ints + tl.load(crop + COLUMN_INTS) + width + 2 * tl.load(crop + MID_WIDTH) + size + 3
    source = logits + mask.to(tl.int64) * size * size
    zeros = tl.zeros([TILES], tl.int32)
    inner, outer, area, undecided = zeros, zeros, zeros, zeros
    left, top, right, bottom = zeros + width, zeros + height, zeros - 1, zeros - 1
    for start in range(0, down * across, TILES):
        tile = start + tl.arange(0, TILES)
        i, j = tile // across, tile % across
        high = tl.minimum(tl.maximum(height - i * SIDE, 0), SIDE)
        wide = tl.minimum(width - j * SIDE, SIDE)
        used = (tile < down * across) & (high > 0)
        r0 = tl.load(row_spans + i, mask=used, other=0)
        r1 = tl.load(row_spans + down + i, mask=used, other=-1)
        c0 = tl.load(column_spans + j, mask=used, other=0)
        c1 = tl.load(column_spans + across + j, mask=used, other=-1)
        column = c0[:, None] + tl.arange(0, SPAN_X)[None, :]
        lowest = tl.full([TILES, SPAN_X], float("inf"), tl.float32)
        highest = tl.full([TILES, SPAN_X], float("-inf"), tl.float32)
        for start_y in range(0, span_y, 4):
            for r in tl.static_range(4):  # so that many loads are under way at a time
                row = (r0 + start_y + r)[:, None]
                here = (row <= r1[:, None]) & (column <= c1[:, None])
                value = tl.load(source + row * size + column, mask=here, other=0.0)
                known = value == value  # a NaN leaves its tiles to be evaluated
                lowest = tl.minimum(lowest, tl.where(here, tl.where(known, value, float("-inf")), float("inf")))
                highest = tl.maximum(highest, tl.where(here, tl.where(known, value, float("inf")), float("-inf")))
        kind = classes_of(tl.min(lowest, axis=1), tl.max(highest, axis=1), inner_at, mask_at, outer_at)
        kind = tl.where(used, kind, 0)
        tl.store(state + mask.to(tl.int64) * max_tiles + tile, kind.to(tl.int8), mask=tile < down * across)
        pixels = high * wide
        inner += tl.where(kind == 3, pixels, 0)
        outer += tl.where((kind > 0) & (kind < MIXED), pixels, 0)
        undecided += tl.where(kind == MIXED, pixels, 0)
        full = (kind == 2) | (kind == 3)
        area += tl.where(full, pixels, 0)
        left = tl.minimum(left, tl.where(full, j * SIDE, width))
        top = tl.minimum(top, tl.where(full, i * SIDE, height))
        right = tl.maximum(right, tl.where(full, j * SIDE + wide - 1, -1))
        bottom = tl.maximum(bottom, tl.where(full, i * SIDE + high - 1, -1))
    row = stats + mask * STATS
    tl.store(row + INNER, tl.sum(inner))
    tl.store(row + OUTER, tl.sum(outer))
    tl.store(row + AREA, tl.sum(area))
    tl.store(row + UNDECIDED, tl.sum(undecided))
    tl.store(row + LEFT, tl.min(left))
    tl.store(row + TOP, tl.min(top))
    tl.store(row + RIGHT, tl.max(right))
    tl.store(row + BOTTOM, tl.max(bottom))


@triton.jit(do_not_specialize=["max_tiles"])
def list_mixed(alive, crop_of, crops, state, stats, floor, work, n_work, max_tiles, TILES: tl.constexpr):
    """One program a mask: its mixed tiles go on the list, or the mask dies if it cannot reach the stability floor."""
    mask = tl.program_id(0)
    if tl.load(alive + mask) == 0:
        return
    most_inner = tl.load(stats + mask * STATS + INNER) + tl.load(stats + mask * STATS + UNDECIDED)
    least_outer = tl.load(stats + mask * STATS + OUTER).to(tl.float32)
    if (floor > 0) & ((most_inner == 0) | (most_inner.to(tl.float32) < least_outer * floor * SURE)):
        tl.store(alive + mask, 0)
    else:
        down, across = tile_grid(crops + tl.load(crop_of + mask) * FIELDS)
        for start in range(0, down * across, TILES):
            tile = start + tl.arange(0, TILES)
            kind = tl.load(state + mask.to(tl.int64) * max_tiles + tile, mask=tile < down * across, other=0)
            mixed = (kind == MIXED).to(tl.int32)
            count = tl.sum(mixed)
            if count > 0:
                place = tl.atomic_add(n_work, count, sem="relaxed") + tl.cumsum(mixed, 0) - 1
                tl.store(work + place, mask * max_tiles + tile, mask=mixed > 0)


@triton.jit
def low_row(source, size, row, first, w0, w1):
    """Low-resolution row `row`, interpolated along x: between column `first` and the next."""
    upper = source + tl.minimum(row, size - 1) * size
    return lerp(tl.load(upper + first), tl.load(upper + tl.minimum(first + 1, size - 1)), w0, w1)


@triton.jit(do_not_specialize=["size", "max_tiles", "words_a_mask"])
def evaluate(
    work, n_work, logits, size, crop_of, crops, ints, floats, words, stats, inner_at, mask_at, outer_at, max_tiles,
    words_a_mask,
):  # fmt: skip
    """Every listed tile: its words, and what it adds to its mask's stats. A fixed number of programs share the list.

    Goes down the tile row by row: low-resolution rows, between each two of them the rows between the steps, between
    each two of those the pixels. `a` and `b` are the two middle columns on which a pixel's column depends.
    """
    for item in range(tl.program_id(0), tl.load(n_work), tl.num_programs(0)):
        place = tl.load(work + item)
        mask, tile = place // max_tiles, place % max_tiles
        crop = crops + tl.load(crop_of + mask) * FIELDS
        height, width = tl.load(crop + HEIGHT), tl.load(crop + WIDTH)
        mid_height, mid_width = tl.load(crop + MID_HEIGHT), tl.load(crop + MID_WIDTH)
        across = (width + SIDE - 1) // SIDE
        i, j = tile // across, tile % across
        source = logits + mask.to(tl.int64) * size * size

        columns, column_weights = ints + tl.load(crop + COLUMN_INTS), floats + tl.load(crop + COLUMN_FLOATS)
        x = j * SIDE + tl.arange(0, SIDE)
        inside = x < width
        a = tl.load(columns + x, mask=inside, other=0)
        a0 = tl.load(columns + width + mid_width + 1 + a)
        b0 = tl.load(columns + width + mid_width + 2 + a)
        a_right, b_right = tl.load(column_weights + width + a), tl.load(column_weights + width + 1 + a)
        right = tl.load(column_weights + x, mask=inside, other=0.0)
        a_left, b_left, left = 1.0 - a_right, 1.0 - b_right, 1.0 - right

        rows, row_weights = ints + tl.load(crop + ROW_INTS), floats + tl.load(crop + ROW_FLOATS)
        first_output, low_index = rows + height, rows + height + mid_height + 1
        first_middle = low_index + mid_height + 1
        y0, y1 = i * SIDE, tl.minimum(i * SIDE + SIDE, height)
        k0, k1 = tl.load(rows + y0), tl.load(rows + y1 - 1) + 2
        low0, low1 = tl.load(low_index + k0), tl.load(low_index + k1 - 1) + 1

        inner, outer, word = tl.zeros([SIDE], tl.int32), tl.zeros([SIDE], tl.int32), tl.zeros([SIDE], tl.int32)
        before = tl.zeros([SIDE], tl.float32)
        a_above = low_row(source, size, low0, a0, a_left, a_right)
        b_above = low_row(source, size, low0, b0, b_left, b_right)
        for low in range(low0, low1):
            a_below = low_row(source, size, low + 1, a0, a_left, a_right)
            b_below = low_row(source, size, low + 1, b0, b_left, b_right)
            first, last = tl.load(first_middle + low), tl.load(first_middle + low + 1)
            for k in range(tl.maximum(first, k0), tl.minimum(last, k1)):
                w1 = tl.load(row_weights + height + k)
                a_here, b_here = lerp(a_above, a_below, 1.0 - w1, w1), lerp(b_above, b_below, 1.0 - w1, w1)
                here = lerp(a_here, b_here, left, right)
                begin, end = tl.load(first_output + tl.maximum(k, 1) - 1), tl.load(first_output + k)
                for y in range(tl.maximum(begin, y0), tl.minimum(end, y1)):
                    w1 = tl.load(row_weights + y)
                    value = lerp(before, here, 1.0 - w1, w1)
                    inner += (value > inner_at).to(tl.int32)
                    outer += (value > outer_at).to(tl.int32)
                    word |= (value > mask_at).to(tl.int32) << (y - y0)
                before = here
            a_above, b_above = a_below, b_below

        word = tl.where(inside, word, 0)
        tl.store(words + mask.to(tl.int64) * words_a_mask + i * across * SIDE + x, word)
        row = stats + mask * STATS
        tl.atomic_add(row + INNER, tl.sum(tl.where(inside, inner, 0)), sem="relaxed")
        tl.atomic_add(row + OUTER, tl.sum(tl.where(inside, outer, 0)), sem="relaxed")
        area = tl.sum(ones_in(word))
        if area > 0:
            tl.atomic_add(row + AREA, area, sem="relaxed")
            tl.atomic_min(row + LEFT, tl.min(tl.where(word != 0, x, width)), sem="relaxed")
            tl.atomic_max(row + RIGHT, tl.max(tl.where(word != 0, x, -1)), sem="relaxed")
            tl.atomic_min(row + TOP, y0 + tl.min(lowest_bit(word)), sem="relaxed")
            tl.atomic_max(row + BOTTOM, y0 + tl.max(highest_bit(word)), sem="relaxed")
