"""Image + model -> candidates: encode each crop, prompt it with its grid, keep what passes the floor.

Follows SamAutomaticMaskGenerator._process_crop and _process_batch (automatic_mask_generator.py:225-321) up to the NMS,
which belongs to the filter. Masks below the floor in predicted IoU are dropped before the decoder upscales them.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from maskmill.config import GenerateConfig
from maskmill.errors import UserError
from maskmill.generate.fullres import full_resolution
from maskmill.generate.grids import Crop, crop_plan
from maskmill.masks.table import TOKENS, MaskTable
from maskmill.sam.sam import Sam
from maskmill.sam.transformer import SharedImage


@torch.inference_mode()
def find_candidates(model: Sam, image: np.ndarray, cfg: GenerateConfig) -> MaskTable:
    """All candidates of an H x W x 3 uint8 RGB image, by mask_id. UserError: the model has another precision."""
    if cfg.precision != model.precision:
        raise UserError(
            f"generate.precision is {cfg.precision!r}, but the model's weights are {model.precision}: "
            f"load_model(..., precision={cfg.precision!r})"
        )
    if model.device.type == "cuda":
        from maskmill.generate import gpu_image  # needs Triton, which only machines with a GPU must have

        with torch.cuda.device(model.device):  # Triton launches on the current device, whatever the tensors' is
            return gpu_image.find_candidates(model, image, cfg)
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
    shared = model.share(embedding)
    for start in range(0, len(crop.points), cfg.points_per_batch):
        points = crop.points[start : start + cfg.points_per_batch]
        low_res, iou, place = decode_points(model, shared, input_size, crop, points, cfg)
        scored = (low_res, iou, (crop.first_prompt + start) * TOKENS + place)
        yield from full_resolution(model, scored, crop, input_size, height, width, cfg)


def decode_points(
    model: Sam,
    shared: SharedImage,
    input_size: tuple[int, int],
    crop: Crop,
    points: np.ndarray,
    cfg: GenerateConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of n points (float64 n x 2, crop pixels) whose predicted IoU exceeds the floor.

    Points go through the decoder a fixed number at a time, the last ones filled up: matrix products of another size may
    round otherwise, and a row must not depend on its neighbours.
    Returns: logits float32 K x 4h x 4w, predicted IoU K, place K among the n x 3 masks (int64, ascending).
    """
    scaled = points * np.array([input_size[1] / crop.width, input_size[0] / crop.height])
    size = shared.batch_size(cfg.points_per_batch)
    parts = []
    for start in range(0, len(scaled), size):
        some = scaled[start : start + size]
        filled = np.concatenate([some, np.repeat(some[-1:], size - len(some), axis=0)])
        coords = torch.as_tensor(filled, device=model.device)[:, None, :]
        labels = torch.ones(coords.shape[:2], dtype=torch.int, device=model.device)
        sparse, _ = model.prompt_encoder(points=(coords, labels), boxes=None, masks=None)
        low_res, iou, place = model.mask_decoder.predict_passing(shared, sparse, cfg.floor_pred_iou)
        n = int((place < TOKENS * len(some)).sum())
        parts.append((low_res[:n], iou[:n], TOKENS * start + place[:n]))
    low_res, iou, place = (torch.cat(column) for column in zip(*parts, strict=True))
    return low_res, iou, place
