"""How many objects a box detector finds: average recall, as of masks (evaluate/proposals.py), on boxes."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskmill.config import ModelSection
from maskmill.detect.head import Boxes
from maskmill.detect.train import load_detector
from maskmill.evaluate.run import number
from maskmill.masks.boxes import xyxy_to_xywh
from maskmill.pipeline.rounds.prepare import detected
from maskmill.pipeline.rounds.tools import cached_predictor
from maskmill.pipeline.rounds.watch import At
from maskmill.sam.build import load_model
from maskmill.storage.annotated import Annotated, AnnotatedSet
from maskmill.storage.files import at
from maskmill.training.embeddings import EmbeddingCache

MOST = 100  # boxes of an image


def box_recall(path: Path, model: ModelSection, embeddings: Path, truth: AnnotatedSet, say: At) -> dict[str, Any]:
    """AR of up to 100 boxes an image (mean over IoU 0.50 to 0.95), recall at 0.50, and AP, of a detector on a set."""
    sam = load_model(model.name, model.checkpoint)
    cache, head = EmbeddingCache(at(embeddings), sam, "float32"), load_detector(path, sam.device)
    images: list[tuple[Annotated, Boxes]] = []
    for n in range(len(truth.names)):
        say(n, len(truth.names))
        found = truth.read(n)
        images.append((found, detected(head, cached_predictor(sam, found.image, cache), 0.0)))
    return scores(images)


def scores(images: list[tuple[Annotated, Boxes]]) -> dict[str, Any]:
    """By COCOeval."""
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for n, (wanted, boxes) in enumerate(images, start=1):
        size = list(wanted.image.shape[:2])
        for counts in wanted.counts:
            box = coco_mask.toBbox({"size": size, "counts": counts.encode()}).tolist()
            truth.append(record(n, len(truth) + 1, box) | {"iscrowd": 0})
        for box, score in zip(xyxy_to_xywh(boxes.xyxy).tolist(), boxes.scores.tolist(), strict=True):
            found.append(record(n, len(found) + 1, box) | {"score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(coco(len(images), truth), coco(len(images), found), "bbox")
        run.params.useCats = 0
        run.params.maxDets = [MOST]
        run.evaluate()
        run.accumulate()
    recall, precision = run.eval["recall"][:, 0, 0, 0], run.eval["precision"][:, :, 0, 0, 0]
    return {"recall": mean(recall), "recall_50": mean(recall[:1]), "precision": mean(precision)}


def record(image: int, number: int, box: list[float]) -> dict[str, Any]:
    """One annotation of COCO's."""
    return {"id": number, "image_id": image, "category_id": 1, "bbox": box, "area": box[2] * box[3]}


def coco(images: int, annotations: list[dict[str, Any]]) -> Any:
    """A COCO object in memory."""
    out = COCO()
    out.dataset = {
        "images": [{"id": n} for n in range(1, images + 1)], "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }  # fmt: skip
    out.createIndex()
    return out


def mean(values: np.ndarray) -> float | None:
    """Of what is defined (-1: it is not); None of nothing."""
    good = values[values >= 0]
    return number(float(good.mean())) if len(good) else None
