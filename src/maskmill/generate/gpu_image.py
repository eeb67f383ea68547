"""One image on a CUDA device: crops in batches, their prompts in batches, everything else as gpu.py has it.

Crops of one layer go through the encoder together, at most 16, and their prompts through the decoder,
`points_per_batch` at a time: the 16 small crops of SA-1B's plan are one batch of 1024. What is in a batch depends on
the image's size alone, never on other images. The host waits for the device once a batch, to learn which masks passed
the predicted-IoU floor, and once an image, for the candidates; other threads' images keep the device busy meanwhile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskmill.config import GenerateConfig
from maskmill.generate.gpu import Candidates, Pending, Rules, Scored, fetch, launch
from maskmill.generate.gpu_tables import CropSize, make_tables, upload
from maskmill.generate.grids import Crop, crop_plan
from maskmill.masks.rle import compress_edges
from maskmill.masks.table import TOKENS, MaskTable
from maskmill.sam.sam import Sam
from maskmill.sam.transformer import SharedImage

MAX_CROPS = 16  # in the encoder together: what SA-1B's plan needs, whatever room its prompts would have


@dataclass(frozen=True)
class Batch:
    """The points start..stop of each of some crops of a layer that follow one another in the plan."""

    first: int  # its first crop's place in the plan
    crops: tuple[Crop, ...]
    start: int
    stop: int

    def prompts(self) -> np.ndarray:
        """The place of each prompt among all of the image, int64, crop after crop."""
        within = np.arange(self.start, self.stop)
        return np.concatenate([crop.first_prompt + within for crop in self.crops])


def batches(plan: Sequence[Crop], capacity: int) -> Iterator[list[Batch]]:
    """The plan in groups of crops that are encoded together, each cut into batches of at most `capacity` points. All
    crops have points, those of a layer equally many."""
    first = 0
    while first < len(plan):
        points = len(plan[first].points)
        fitting = plan[first : first + max(1, min(MAX_CROPS, capacity // points))]
        crops = tuple(crop for crop in fitting if crop.layer == fitting[0].layer)
        yield [Batch(first, crops, i, min(i + capacity, points)) for i in range(0, points, capacity)]
        first += len(crops)


@torch.inference_mode()
def find_candidates(model: Sam, image: np.ndarray, cfg: GenerateConfig) -> MaskTable:
    """All candidates of an H x W x 3 uint8 RGB image, by mask_id."""
    height, width = image.shape[:2]
    plan = [crop for crop in crop_plan(height, width, cfg) if crop.width > 0 and crop.height > 0 and len(crop.points)]
    if not plan:
        return MaskTable.empty(height, width)
    sizes = tuple(CropSize(crop.box, model.input_size(crop.height, crop.width)) for crop in plan)
    low = 4 * model.prompt_encoder.image_embedding_size[0]
    tables = make_tables((height, width), sizes, low, model.img_size, model.device)
    rules = Rules(model.mask_threshold, cfg.stability_score_offset, cfg.floor_stability, cfg.crop_edge_tolerance)
    pending: list[Pending] = []
    for group in batches(plan, cfg.points_per_batch):
        shared = model.share(encode(model, image, group[0].crops))
        for batch in group:
            scored = decode(model, shared, batch, sizes[batch.first : batch.first + len(batch.crops)], cfg)
            pending += launch(scored, tables, rules)
    return MaskTable.concat(height, width, [table(part, plan, height, width) for part in fetch(pending)])


def encode(model: Sam, image: np.ndarray, crops: Sequence[Crop]) -> Tensor:
    """Embeddings of G crops of an H x W x 3 uint8 image, G x C x h x w."""
    pixels = []
    for crop in crops:
        x0, y0, x1, y1 = crop.box
        resized = upload(model.resize(image[y0:y1, x0:x1]), model.device)
        pixels.append(model.preprocess(resized.permute(2, 0, 1)))
    return model.image_encoder(torch.stack(pixels))


def decode(model: Sam, shared: SharedImage, batch: Batch, sizes: Sequence[CropSize], cfg: GenerateConfig) -> Scored:
    """The masks of a batch of prompts whose predicted IoU exceeds the floor."""
    scaled = []
    for crop, size in zip(batch.crops, sizes, strict=True):
        scale = np.array([size.input_size[1] / crop.width, size.input_size[0] / crop.height])
        scaled.append(crop.points[batch.start : batch.stop] * scale)
    coords = upload(np.concatenate(scaled)[:, None], model.device)
    labels = torch.ones(coords.shape[:2], dtype=torch.int, device=model.device)
    sparse, _ = model.prompt_encoder(points=(coords, labels), boxes=None, masks=None)
    logits, iou, place = model.mask_decoder.predict_passing(shared, sparse, cfg.floor_pred_iou)
    prompt, token = np.divmod(place.numpy(), TOKENS)
    where = np.stack([batch.prompts()[prompt] * TOKENS + token, batch.first + prompt // len(scaled[0])])
    ids, crop_of = upload(where, model.device)
    return Scored(logits, torch.ones_like(ids, dtype=torch.bool), iou, ids, crop_of.int())


def table(part: Candidates, plan: Sequence[Crop], height: int, width: int) -> MaskTable:
    """Candidates as columns, in the image's frame."""
    boxes = np.array([crop.box for crop in plan], np.int64)[part.crop]
    prompts = np.concatenate([crop.first_prompt + np.arange(len(crop.points)) for crop in plan])
    points = np.concatenate([crop.points + np.array(crop.box[:2]) for crop in plan])
    return MaskTable(
        height=height,
        width=width,
        mask_id=part.mask_id,
        predicted_iou=part.iou,
        stability_score=part.inner.astype(np.float32) / np.maximum(part.outer, 1).astype(np.float32),
        box=part.box + np.tile(boxes[:, :2], 2),
        area=part.area,
        point=points[np.searchsorted(prompts, part.mask_id // TOKENS)],
        crop_index=np.array([crop.index for crop in plan], np.int32)[part.crop],
        crop_box=boxes,
        masks=tuple(compress_edges(part.edges, part.ends, height, width)),
    )
