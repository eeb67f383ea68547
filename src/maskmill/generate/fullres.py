"""Low-resolution logits -> candidates at full resolution: stability, box, crop edge, runs.

These are the steps of SamAutomaticMaskGenerator._process_batch (automatic_mask_generator.py:266-321) after the gate on
predicted IoU. On CPU they take no full-resolution logits and give what the official code makes of the same
low-resolution logits, bit for bit, wherever torch runs its kernels for AVX2 or AVX-512. Elsewhere it may round in
another order; then a pixel may flip whose logit lies within 2**-18 of its mask's largest logit from 0 (a few in a
million of those on a contour). float64 takes the plain path, which is also the oracle of the tests; CUDA has gpu.py.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from maskmill.config import GenerateConfig
from maskmill.generate.gpu_tables import source_index
from maskmill.generate.grids import Crop
from maskmill.masks.rle import CutMask, compress_edges
from maskmill.masks.table import TOKENS, MaskTable
from maskmill.masks.tensors import mask_to_box, near_crop_edge
from maskmill.sam.sam import Sam

Axis = tuple[np.ndarray, np.ndarray, np.ndarray]

# Pixels at full resolution that are worked on at a time. The plain path holds their float32 logits (256 MiB); on CPU
# it bounds the room for run edges. An image larger than that goes mask by mask.
PIXELS_AT_A_TIME = 64 * 1024 * 1024


def full_resolution(
    model: Sam,
    scored: tuple[Tensor, Tensor, Tensor],
    crop: Crop,
    input_size: tuple[int, int],
    height: int,
    width: int,
    cfg: GenerateConfig,
) -> Iterator[MaskTable]:
    """Logits K x 4h x 4w, IoU K and mask_id K -> tables of those that are stable and away from inner crop edges."""
    low_res, iou, ids = scored
    loops = low_res.device.type == "cpu" and low_res.dtype == torch.float32 and cfg.stability_score_offset >= 0
    step = max(1, PIXELS_AT_A_TIME // max(crop.width * crop.height, model.img_size**2))
    for start in range(0, len(ids), step):
        piece = slice(start, start + step)
        if loops:
            table = by_loops(
                low_res[piece], iou[piece], ids[piece], model.img_size, crop, input_size, height, width, cfg
            )
        else:
            logits = model.postprocess_masks(low_res[piece][None], input_size, (crop.height, crop.width))[0]
            table = score_masks(logits, iou[piece], ids[piece], crop, height, width, cfg)
        if len(table):
            yield table


def by_loops(
    low_res: Tensor,
    iou: Tensor,
    ids: Tensor,
    img_size: int,
    crop: Crop,
    input_size: tuple[int, int],
    height: int,
    width: int,
    cfg: GenerateConfig,
) -> MaskTable:
    """`postprocess_masks` and `score_masks` in one, for float32 logits on CPU."""
    from maskmill.generate.fullres_blocks import decide  # these compile once for each machine: seconds
    from maskmill.generate.fullres_trace import trace

    low = low_res.contiguous().numpy()
    size = crop.height, crop.width
    first = tuple(axis(low.shape[-1], img_size, middle) for middle in input_size)
    last = tuple(axis(middle, side, side) for middle, side in zip(input_size, size, strict=True))
    levels = np.array([-1, 0, 1]) * cfg.stability_score_offset + Sam.mask_threshold
    thresholds = levels.astype(np.float32)
    blocks = decide(low, low.view(np.int32), thresholds, *map(block_sizes, first, last))
    place, floor = np.array([*crop.box[:2], height], np.int64), np.float32(cfg.floor_stability)
    flat = channels_last(img_size, img_size), channels_last(*size)
    counts, stable, box, edges, ends = trace(low, *blocks, (*first, *last), place, thresholds, floor, *flat)
    box += np.array([*crop.box[:2]] * 2)
    near = near_crop_edge(torch.from_numpy(box), crop.box, height, width, cfg.crop_edge_tolerance).numpy()
    kept = np.flatnonzero(stable & ~near)
    inner, outer, area = counts.T
    stability = np.where(outer > 0, inner.astype(np.float32) / np.maximum(outer, 1).astype(np.float32), np.float32(0))
    masks = compress_edges(edges, ends, height, width)
    return as_table(
        ids.numpy()[kept], iou.float().numpy()[kept], stability[kept], box[kept], area[kept],
        [masks[i] for i in kept.tolist()], crop, height, width,
    )  # fmt: skip


def axis(n_in: int, n_out: int, cut: int) -> Axis:
    """The first `cut` of n_out outputs of one bilinear axis.

    Returns: both source indices (int64 2 x cut) and weights (float32 2 x cut) of each output, and for each source index
    the first output that begins there or later (int64 n_in + 1).
    """
    first, weight = source_index(n_in, n_out, cut)
    first = first.astype(np.int64)
    second = first if n_in == n_out else np.minimum(first + 1, n_in - 1)
    return np.stack([first, second]), np.stack([1 - weight, weight]), np.searchsorted(first, np.arange(n_in + 1))


def block_sizes(middle: Axis, last: Axis) -> np.ndarray:
    """Outputs of an axis for each first source index of the first step, as far as there are any: int64."""
    return np.diff(last[2][middle[2][: middle[0][0, -1] + 2]])


def channels_last(height: int, width: int) -> bool:
    """Whether torch makes an output of this size, three masks deep as in the official code, by its channels-last
    kernel.

    From upsample_bilinear2d_kernel_impl_float and _use_channels_last_kernel_2d (aten/src/ATen/native/cpu/
    UpSampleKernel.cpp). The kernels add in another order.
    """
    return torch.get_num_threads() == 1 or height + width <= 128


def score_masks(
    logits: Tensor, iou: Tensor, ids: Tensor, crop: Crop, height: int, width: int, cfg: GenerateConfig
) -> MaskTable:
    """Full-resolution logits K x h x w of one crop -> the table of the masks that pass stability and crop edge."""
    stability = stability_score(logits, Sam.mask_threshold, cfg.stability_score_offset)
    keep = stability >= cfg.floor_stability if cfg.floor_stability > 0 else torch.ones_like(stability) > 0
    masks = logits[keep] > Sam.mask_threshold
    iou, ids, stability = iou[keep], ids[keep], stability[keep]
    boxes = mask_to_box(masks)
    shift = torch.tensor([crop.box[0], crop.box[1]] * 2, device=boxes.device)
    inner = ~near_crop_edge(boxes + shift, crop.box, height, width, cfg.crop_edge_tolerance)
    masks, boxes, iou, ids, stability = masks[inner], boxes[inner], iou[inner], ids[inner], stability[inner]
    areas = masks.sum(dim=(1, 2)).cpu().numpy()
    box = boxes.cpu().numpy()
    cuts = [cut(masks[i], box[i], crop, height, width) for i in range(len(box))]
    columns = ids.cpu().numpy(), iou.float().cpu().numpy(), stability.float().cpu().numpy()
    return as_table(*columns, box + shift.cpu().numpy(), areas, cuts, crop, height, width)


def stability_score(logits: Tensor, threshold: float, offset: float) -> Tensor:
    """IoU of the masks at threshold +- offset, N x H x W -> float32 N (utils/amg.py:156-176).

    Counts are int64 (the official int16 rows overflow beyond 32767 px); a mask empty at both levels scores 0, not NaN.
    """
    inner = (logits > threshold + offset).sum(dim=(1, 2))
    outer = (logits > threshold - offset).sum(dim=(1, 2))
    return torch.where(outer > 0, inner / outer.clamp(min=1), torch.zeros((), device=logits.device))


def cut(mask: Tensor, box: np.ndarray, crop: Crop, height: int, width: int) -> CutMask:
    """bool h x w of the crop -> the packed pixels of its box, placed in the image."""
    x0, y0, x1, y1 = (int(v) for v in box)
    inside = mask[y0 : y1 + 1, x0 : x1 + 1].cpu().numpy()
    return CutMask.cut(inside, crop.box[0] + x0, crop.box[1] + y0, height, width)


def as_table(
    mask_id: np.ndarray,
    iou: np.ndarray,
    stability: np.ndarray,
    box: np.ndarray,
    area: np.ndarray,
    masks: Sequence[CutMask | str],
    crop: Crop,
    height: int,
    width: int,
) -> MaskTable:
    """N masks of one crop as columns; boxes in the image's frame."""
    n = len(mask_id)
    return MaskTable(
        height=height,
        width=width,
        mask_id=mask_id.astype(np.int64),
        predicted_iou=iou,
        stability_score=stability,
        box=box,
        area=area.astype(np.int64),
        point=crop.points[mask_id // TOKENS - crop.first_prompt] + np.array(crop.box[:2]),
        crop_index=np.full(n, crop.index, np.int32),
        crop_box=np.tile(np.array(crop.box, np.int64), (n, 1)),
        masks=tuple(masks),
    )
