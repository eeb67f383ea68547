"""Image + model -> candidates: encode each crop, prompt it with its grid, keep what passes the floor.

Follows SamAutomaticMaskGenerator._process_crop and _process_batch (automatic_mask_generator.py:225-321) up to the NMS,
which belongs to the filter. Masks below the floor in predicted IoU are dropped before full resolution (fullres.py).
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from maskmill.config import GenerateConfig
from maskmill.generate.fullres import full_resolution
from maskmill.generate.grids import Crop, crop_plan
from maskmill.masks.table import TOKENS, MaskTable
from maskmill.sam.sam import Sam


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
        yield from full_resolution(model, scored, crop, input_size, height, width, cfg)


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
