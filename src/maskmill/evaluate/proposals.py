"""Automatic masks as object proposals (SAM, section 7.3 and appendix D.3): average recall and precision.

Matching is pycocotools' own. No categories; the score of a mask is the mean of its confidence and its stability.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskmill.evaluate.bootstrap import Estimate, ratio
from maskmill.evaluate.config import EvaluateConfig
from maskmill.generate.generator import MaskGenerator
from maskmill.sam.sam import Sam

SIZES = ("all", "small", "medium", "large")  # COCO's and LVIS's: below 32^2, below 96^2, and above
FEW, MANY = 100, 1000


@dataclass(frozen=True)
class ProposalScores:
    """Recall of up to 1000 masks an image, precision of up to 100; means over IoU 0.50 to 0.95. NaN: no such mask."""

    recall: dict[str, float]
    recall_interval: Estimate
    precision: dict[str, float]
    masks_per_image: float


@dataclass
class Proposals:
    """Human and automatic masks, image by image."""

    sizes: list[tuple[int, int]] = field(default_factory=list)  # of images: height, width
    truth: list[dict[str, Any]] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        size: tuple[int, int],
        truth: list[str],
        found: list[str],
        scores: np.ndarray,
        crowds: Sequence[str] = (),
    ) -> None:
        """One image (height, width): compressed counts of its masks (it may have none), and of the automatic ones with
        scores. Automatic masks in a crowd are neither right nor wrong."""
        self.sizes.append(size)
        image = len(self.sizes)
        for counts, crowd in [*((c, 0) for c in truth), *((c, 1) for c in crowds)]:
            self.truth.append(record(image, len(self.truth) + 1, size, counts) | {"iscrowd": crowd})
        for counts, score in zip(found, scores.tolist(), strict=True):
            self.found.append(record(image, len(self.found) + 1, size, counts) | {"score": score})

    def evaluate(self, cfg: EvaluateConfig) -> ProposalScores:
        """By COCOeval, all as one category."""
        with contextlib.redirect_stdout(io.StringIO()):
            truth, found = (coco(self.sizes, annotations) for annotations in (self.truth, self.found))
            run = COCOeval(truth, found, "segm")
            run.params.useCats = 0
            run.params.maxDets = [FEW, MANY]
            run.evaluate()
            run.accumulate()
        recall = {name: mean(run.eval["recall"][:, 0, a, 1]) for a, name in enumerate(SIZES)}
        precision = {name: mean(run.eval["precision"][:, :, 0, a, 0]) for a, name in enumerate(SIZES)}
        counted = [recalled(e) for e in run.evalImgs[: len(self.sizes)] if e is not None]  # the first are of all sizes
        hits, counts = (np.array(x, float) for x in zip(*counted, strict=True))
        interval = ratio(hits, counts, cfg.resamples, cfg.seed)
        return ProposalScores(recall, interval, precision, len(self.found) / max(1, len(self.sizes)))


def automatic(model: Sam, image: np.ndarray, cfg: EvaluateConfig) -> tuple[list[str], np.ndarray]:
    """The paper's masks for H x W x 3 uint8: a grid, no crops, no thresholds, NMS; counts, and scores to rank by."""
    generator = MaskGenerator(
        model,
        points_per_side=cfg.points_per_side,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        box_nms_thresh=cfg.nms,
    )
    table = generator.masks(image)
    scores = (table.predicted_iou + np.nan_to_num(table.stability_score)) / 2
    best = np.argsort(-scores, kind="stable")[:MANY]
    return [table.counts(int(i)) for i in best], scores[best]


def record(image: int, number: int, size: tuple[int, int], counts: str) -> dict[str, Any]:
    """One annotation of COCO's."""
    from pycocotools import mask as coco_mask

    rle = {"size": list(size), "counts": counts.encode()}
    area, box = float(coco_mask.area(rle)), coco_mask.toBbox(rle).tolist()
    return {"id": number, "image_id": image, "category_id": 1, "segmentation": rle, "area": area, "bbox": box}


def coco(
    sizes: list[tuple[int, int]], annotations: list[dict[str, Any]], categories: Sequence[str] = ("object",)
) -> Any:
    """A COCO object in memory; images and categories are numbered from 1."""
    out = COCO()
    out.dataset = {
        "images": [{"id": i + 1, "height": h, "width": w} for i, (h, w) in enumerate(sizes)],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(categories)],
    }
    out.createIndex()
    return out


def recalled(entry: dict[str, Any]) -> tuple[float, int]:
    """Masks of one image that were found, the mean over IoUs, and how many there are."""
    counted = ~np.asarray(entry["gtIgnore"], bool)
    hits = (np.asarray(entry["gtMatches"]) > 0)[:, counted]
    return float(hits.sum(1).mean()) if counted.any() else 0.0, int(counted.sum())


def mean(values: np.ndarray) -> float:
    """COCO marks what cannot be said by -1."""
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")
