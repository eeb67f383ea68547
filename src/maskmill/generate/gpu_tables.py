"""What the Triton kernels know about the crops of an image: sizes, places, and the axes of both interpolation steps.

The axes follow torch's CUDA kernel in float32 (UpSample.cuh, area_pixel_compute_source_index: a fused multiply-add, cut
at 0), so the weights are equal to the bit.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from maskmill.sam.common import to_device

SIDE = 32  # as in triton_kernels.py: a tile is SIDE x SIDE pixels


@dataclass(frozen=True)
class CropSize:
    """A crop (XYXY in its image, end exclusive) and its (height, width) inside the square input of the encoder."""

    box: tuple[int, int, int, int]
    input_size: tuple[int, int]


@dataclass(frozen=True)
class Tables:
    """The crops of one image on the device, for logits of one size. Columns of `crops`: see triton_kernels.FIELDS."""

    crops: Tensor  # int32 n x 11
    boxes: Tensor  # int64 n x 4, XYXY
    image: Tensor  # int64 4, XYXY
    ints: Tensor  # int32: the indices of every axis, one behind the other
    floats: Tensor  # float32: their weights
    max_tiles: int  # of any crop
    max_across: int  # tiles across any crop
    words_a_mask: int  # 32-bit words of any crop's pixels
    edges_a_mask: int  # run edges to expect at most: about its height + width in a ragged mask as large as the crop
    span_y: int  # low-resolution rows under a tile, at most
    span_x: int  # columns, rounded up to a power of two


def source_index(n_in: int, n_out: int, cut: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `cut` of n_out outputs of one bilinear axis: first source index (int32), weight of the second."""
    scale = np.float32(n_in) / np.float32(n_out)
    # in float64 the product is exact, so this rounds once, as a fused multiply-add does
    source = (np.float64(scale) * (np.arange(cut) + 0.5) - 0.5).astype(np.float32).clip(min=0)
    first = source.astype(np.int32)
    return first, source - first.astype(np.float32)


def axis(low: int, square: int, cut: int, out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One axis of a crop: `low` logits -> `square` pixels, the first `cut` of them -> `out` pixels.

    One more middle index, a copy of the last, stands for torch's rule that the last pixel has itself as neighbour.

    Returns: int32 indices (middle index of each output; first output of each middle index, and the end; low index of
    each middle index; first middle index of each low index, and the end; first and last low index under each tile),
    float32 weights (of each output, of each middle index), and the spans of the tiles.
    """
    middle, weight = source_index(cut, out, out)
    lowest, middle_weight = source_index(low, square, cut)
    lowest, middle_weight = np.append(lowest, lowest[-1]), np.append(middle_weight, middle_weight[-1])
    starts = np.arange(0, out, SIDE)
    first = lowest[middle[starts]]
    last = np.minimum(lowest[middle[np.minimum(starts + SIDE, out) - 1] + 1] + 1, low - 1)
    first_output = np.searchsorted(middle, np.arange(cut + 1))
    first_middle = np.searchsorted(lowest, np.arange(low + 1))
    return (
        np.concatenate([middle, first_output, lowest, first_middle, first, last]).astype(np.int32),
        np.concatenate([weight, middle_weight]),
        last - first + 1,
    )


def padded(indices: np.ndarray, tiles: int) -> np.ndarray:
    """Row indices with an empty span for the tile below the crop, if its height is a multiple of SIDE."""
    first, last = indices[-2 * tiles : -tiles], indices[-tiles:]
    return np.concatenate([indices[: -2 * tiles], first, [0], last, [-1]]).astype(np.int32)


@lru_cache(maxsize=32)
def make_tables(
    image_size: tuple[int, int], crops: tuple[CropSize, ...], low: int, square: int, device: torch.device
) -> Tables:
    """The tables for the crops of a (height, width) image, from low x low logits of a square x square input."""
    rows, boxes, ints, floats, spans = [], [], [], [], []
    ends = [0, 0]
    for crop in crops:
        x0, y0, x1, y1 = crop.box
        height, width = y1 - y0, x1 - x0
        row = [height, width, *crop.input_size, x0, y0, image_size[0]]
        for side, size in enumerate((height, width)):
            indices, weights, span = axis(low, square, crop.input_size[side], size)
            ints.append(padded(indices, len(span)) if side == 0 and size % SIDE == 0 else indices)
            floats.append(weights)
            spans.append(int(span.max()))
            row += ends
            ends = [ends[0] + len(ints[-1]), ends[1] + len(weights)]
        rows.append(row)
        boxes.append(crop.box)
    down = [row[0] // SIDE + 1 for row in rows]
    across = [-(-row[1] // SIDE) for row in rows]
    return Tables(
        crops=upload(np.array(rows, np.int32), device),
        boxes=upload(np.array(boxes, np.int64), device),
        image=upload(np.array([0, 0, image_size[1], image_size[0]], np.int64), device),
        ints=upload(np.concatenate(ints), device),
        floats=upload(np.concatenate(floats), device),
        max_tiles=max(d * a for d, a in zip(down, across, strict=True)),
        max_across=max(across),
        words_a_mask=max(d * a * SIDE for d, a in zip(down, across, strict=True)),
        edges_a_mask=max(row[0] + row[1] for row in rows),
        span_y=max(spans[0::2]),
        span_x=1 << (max(spans[1::2]) - 1).bit_length(),
    )


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device that does not make the host wait for it."""
    return to_device(torch.from_numpy(array), device)
