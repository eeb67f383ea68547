"""The official steps after the decoder, pixel by pixel, in torch's CUDA arithmetic: the oracle for Triton kernels."""

from dataclasses import dataclass

import numpy as np

from maskmill.generate.gpu_tables import CropSize
from maskmill.masks.rle import runs_of


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float32 a * b + c, rounded once: in float64 the product is exact, and the sum nearly always."""
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)


def interpolate(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 h x w -> height x width: upsample_bilinear2d_out_frame (UpSampleBilinear2d.cu) by its sm_90 code."""
    (y0, y1, v), (x0, x1, u) = neighbours(x.shape[0], height), neighbours(x.shape[1], width)
    v, u, one = v[:, None], u[None, :], np.float32(1)
    upper = fma(one - u, x[y0][:, x0], u * x[y0][:, x1])
    lower = fma(one - u, x[y1][:, x0], u * x[y1][:, x1])
    return fma(one - v, upper, v * lower)


def neighbours(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """UpSample.cuh, area_pixel_compute_source_index: both source indices of each output, weight of the second."""
    scale = np.full(n_out, np.float32(n_in) / np.float32(n_out))
    place = fma(np.arange(n_out, dtype=np.float32) + np.float32(0.5), scale, np.full(n_out, np.float32(-0.5)))
    place = np.where(place < 0, np.float32(0), place)
    first = place.astype(np.int64)
    return first, first + (first < n_in - 1), place - first.astype(np.float32)


def full_resolution(logits: np.ndarray, crop: CropSize, square: int) -> np.ndarray:
    """Sam.postprocess_masks (modeling/sam.py:133-162) for one mask."""
    middle = interpolate(logits, square, square)[: crop.input_size[0], : crop.input_size[1]]
    return interpolate(np.ascontiguousarray(middle), crop.box[3] - crop.box[1], crop.box[2] - crop.box[0])


@dataclass(frozen=True)
class Dense:
    """What the official generator finds for one mask; box in the crop's frame, runs in the image's."""

    inner: int
    outer: int
    area: int
    box: list[int]
    runs: list[int]


def measure(logits: np.ndarray, crop: CropSize, image_size: tuple[int, int], offset: float = 1.0) -> Dense:
    """Counts above +offset, -offset and 0, box and COCO runs of full-resolution logits."""
    mask = logits > 0
    y, x = np.nonzero(mask)
    box = [int(v) for v in (x.min(), y.min(), x.max(), y.max())] if len(x) else [0, 0, 0, 0]
    inner, outer = int((logits > offset).sum()), int((logits > -offset).sum())
    return Dense(inner, outer, len(x), box, runs_of(mask, crop.box[0], crop.box[1], *image_size).tolist())


def runs_from(edges: np.ndarray, image_size: tuple[int, int]) -> list[int]:
    """Places where runs begin and end -> COCO counts."""
    counts = np.diff(np.concatenate([[0], edges, [image_size[0] * image_size[1]]])).tolist()
    return counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts
