"""Image + model -> candidates: encode each crop, prompt it with its grid, keep what passes the floor.

Follows SamAutomaticMaskGenerator._process_crop and _process_batch (automatic_mask_generator.py:225-321) up to the NMS,
which belongs to the filter. Two things differ, neither in the result: masks below the floor in predicted IoU are
dropped before they are upsampled, and upsampling goes in pieces, so memory does not grow with the number of masks.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from maskmill.config import GenerateConfig
from maskmill.generate.grids import Crop, crop_plan
from maskmill.masks.rle import CutMask
from maskmill.masks.table import TOKENS, MaskTable
from maskmill.masks.tensors import mask_to_box, near_crop_edge
from maskmill.sam.sam import Sam

# Full-resolution logits held at a time: 64 Mpx of float32 are 256 MiB; an image larger than that goes mask by mask.
PIXELS_AT_A_TIME = 64 * 1024 * 1024


@torch.inference_mode()
def find_candidates(model: Sam, image: np.ndarray, cfg: GenerateConfig) -> MaskTable:
    """All candidates of an H x W x 3 uint8 RGB image, by mask_id."""
    height, width = image.shape[:2]
    parts = [part for crop in crop_plan(height, width, cfg) for part in crop_candidates(model, image, crop, cfg)]
    return MaskTable.concat(height, width, parts)


def crop_candidates(model: Sam, image: np.ndarray, crop: Crop, cfg: GenerateConfig) -> Iterator[MaskTable]:
    """One table for each batch of points that leaves any."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = crop.box
    if x1 <= x0 or y1 <= y0:  # crops of a very small image can be empty
        return
    embedding, input_size = model.encode(image[y0:y1, x0:x1])
    dense_pe = model.prompt_encoder.get_dense_pe()
    for start in range(0, len(crop.points), cfg.points_per_batch):
        points = crop.points[start : start + cfg.points_per_batch]
        low_res, iou = decode_points(model, embedding, dense_pe, input_size, crop, points, cfg.points_per_batch)
        passed = iou.flatten() > cfg.floor_pred_iou if cfg.floor_pred_iou > 0 else torch.ones_like(iou).flatten() > 0
        index = passed.nonzero().flatten()
        ids = (crop.first_prompt + start) * TOKENS + index
        scored = (low_res.flatten(0, 1)[index], iou.flatten()[index], ids)
        yield from upsampled(model, scored, crop, input_size, height, width, cfg)


def decode_points(
    model: Sam,
    embedding: Tensor,
    dense_pe: Tensor,
    input_size: tuple[int, int],
    crop: Crop,
    points: np.ndarray,
    capacity: int,
) -> tuple[Tensor, Tensor]:
    """Masks of n points (float64 n x 2, crop pixels): logits n x 3 x 4h x 4w and predicted IoU n x 3.

    The batch is always `capacity` long: matrix products of another size may round otherwise, and a row must not depend
    on its neighbours.
    """
    scaled = points * np.array([input_size[1] / crop.width, input_size[0] / crop.height])
    padded = np.concatenate([scaled, np.repeat(scaled[-1:], capacity - len(scaled), axis=0)])
    coords = torch.as_tensor(padded, device=model.device)[:, None, :]
    labels = torch.ones(coords.shape[:2], dtype=torch.int, device=model.device)
    sparse, dense = model.prompt_encoder(points=(coords, labels), boxes=None, masks=None)
    masks, iou = model.mask_decoder(embedding, dense_pe, sparse, dense, multimask_output=True)
    return masks[: len(points)], iou[: len(points)]


def upsampled(
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
    pixels = max(crop.width * crop.height, model.img_size**2)
    step = max(1, PIXELS_AT_A_TIME // pixels)
    for start in range(0, len(ids), step):
        piece = slice(start, start + step)
        logits = model.postprocess_masks(low_res[piece][None], input_size, (crop.height, crop.width))[0]
        table = score_masks(logits, iou[piece], ids[piece], crop, height, width, cfg)
        if len(table):
            yield table


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
    cuts = tuple(cut(masks[i], box[i], crop, height, width) for i in range(len(box)))
    mask_id = ids.cpu().numpy().astype(np.int64)
    n = len(mask_id)
    return MaskTable(
        height=height,
        width=width,
        mask_id=mask_id,
        predicted_iou=iou.float().cpu().numpy(),
        stability_score=stability.float().cpu().numpy(),
        box=box + shift.cpu().numpy(),
        area=areas.astype(np.int64),
        point=crop.points[mask_id // TOKENS - crop.first_prompt] + np.array(crop.box[:2]),
        crop_index=np.full(n, crop.index, np.int32),
        crop_box=np.tile(np.array(crop.box, np.int64), (n, 1)),
        masks=cuts,
    )


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
