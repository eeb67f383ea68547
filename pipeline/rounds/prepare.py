"""Before people begin: every image of a round is embedded once, and confident masks are prefilled. A build like any.

The detector's boxes prompt SAM one by one (paper, section 4: "confident masks"), candidates and filter are those of the
main job, and `mask_id` is three times the box's place among the detector's.
"""

from dataclasses import dataclass

import numpy as np
import torch

from maskmill.config import Config, FilterConfig, GenerateConfig, ModelSection, RunConfig
from maskmill.detect.boxes import Boxes
from maskmill.detect.detector import open_detector
from maskmill.filters.apply import apply_filter
from maskmill.generate.fullres import full_resolution
from maskmill.generate.grids import Crop
from maskmill.masks.table import TOKENS, MaskTable
from maskmill.pipeline.recipe import Recipe
from maskmill.pipeline.rounds.config import PrefillConfig
from maskmill.pipeline.rounds.detectors import look
from maskmill.pipeline.rounds.tools import cached_predictor
from maskmill.pipeline.unit import Job
from maskmill.pipeline.worker import NotTheImage
from maskmill.sam.build import load_model
from maskmill.sam.predictor import Predictor
from maskmill.storage.files import at
from maskmill.training.embeddings import EmbeddingCache

FILTER = "prefilled"


@dataclass(frozen=True)
class PrepareJob(Job):
    """What its workers must know besides. detector: a file, or none: then nothing is prefilled."""

    segmenter: str = "maskmill.pipeline.rounds.prepare:Prepare"
    embeddings: str = ""
    detector: str | None = None
    box_score: float = 0.0


@dataclass(frozen=True)
class PrepareRecipe(Recipe):
    """What decides its rows."""

    detector_sha256: str | None = None
    box_score: float = 0.0

    def fingerprint(self) -> dict[str, object]:
        prefill = {"detector": self.detector_sha256, "box_score": self.box_score}
        return super().fingerprint() | {"prefill": prefill}


def prepare_config(model: ModelSection, prefill: PrefillConfig, run: RunConfig) -> Config:
    """Settings as the main job has them: its floors are the thresholds of what is shown."""
    filter = FilterConfig(prefill.pred_iou_thresh, prefill.stability_score_thresh, box_nms_thresh=prefill.nms_thresh)
    generate = GenerateConfig(floor_pred_iou=prefill.pred_iou_thresh, floor_stability=prefill.stability_score_thresh)
    return Config(model, generate, filter, run)


class Prepare:
    """The segmenter of a preparing build."""

    def __init__(self, job: PrepareJob) -> None:
        self.config = job.config
        torch.set_num_threads(job.config.generate.threads)
        self.model = load_model(job.config.model.name, job.config.model.checkpoint, job.device)
        self.cache = EmbeddingCache(at(job.embeddings), self.model, "float32")
        self.detector = None if job.detector is None else open_detector(job.detector, self.model.device)
        self.box_score = job.box_score

    def __call__(self, image: np.ndarray, image_id: int) -> tuple[MaskTable, MaskTable]:
        """H x W x 3 uint8 -> what the detector's boxes give, and what of it is shown. Embeds the image on the way."""
        try:
            predictor = cached_predictor(self.model, image, self.cache)
        except OSError as e:
            raise NotTheImage(f"the embedding cannot be kept or read: {e}") from e
        if self.detector is None:
            empty = MaskTable.empty(*image.shape[:2])
            return empty, empty
        boxes = look(self.detector, predictor, image, image_id).above(self.box_score)
        candidates = boxed_masks(predictor, boxes, self.config.generate)
        return candidates, apply_filter(candidates, self.config.filter, 1, image_id)


@torch.no_grad()
def boxed_masks(predictor: Predictor, boxes: Boxes, cfg: GenerateConfig) -> MaskTable:
    """One mask for each box: those that reach the floors, as candidates of the main job."""
    height, width = predictor.original_size
    if not len(boxes.scores):
        return MaskTable.empty(height, width)
    low, iou = box_logits(predictor, boxes.xyxy)
    centers = (boxes.xyxy[:, :2] + boxes.xyxy[:, 2:]) / 2
    whole = Crop(0, 0, (0, 0, width, height), centers.astype(np.float64), 0)
    good = iou > cfg.floor_pred_iou
    scored = low[good], iou[good], TOKENS * torch.arange(len(iou), device=iou.device)[good]
    tables = list(full_resolution(predictor.model, scored, whole, predictor.input_size, height, width, cfg))
    return MaskTable.concat(height, width, tables)


@torch.no_grad()
def box_logits(predictor: Predictor, xyxy: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Low-resolution logits N x 4h x 4w and predicted IoU N, of boxes N x 4 in image pixels."""
    scaled = predictor.scale(xyxy.reshape(-1, 2, 2)).reshape(-1, 4)
    boxes = torch.as_tensor(scaled, dtype=torch.float, device=predictor.device)
    model = predictor.model
    parts = []
    for some in torch.split(boxes, 64):
        sparse, dense = model.prompt_encoder(points=None, boxes=some, masks=None)
        low, iou = model.mask_decoder(
            predictor.get_image_embedding(), model.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False
        )
        parts.append((low[:, 0], iou[:, 0]))
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
