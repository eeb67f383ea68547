"""Whose boxes prefill: the round's own detector, trained on all masks so far, or someone else's boxes from a file."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskmill.config import ModelSection
from maskmill.detect.boxes import Boxes, Detector, Seen
from maskmill.detect.detector import open_detector
from maskmill.detect.foreign import read_detections, write_detections
from maskmill.detect.rtdetr import new_model, train_rtdetr
from maskmill.detect.train import DetectorTraining, save_head, train_detector
from maskmill.errors import UserError
from maskmill.evaluate.box_recall import box_scores
from maskmill.masks.rle import decode
from maskmill.pipeline.rounds.config import PrefillConfig
from maskmill.pipeline.rounds.pack import packed_id
from maskmill.pipeline.rounds.tools import cached_predictor
from maskmill.pipeline.rounds.watch import At
from maskmill.prompts.clicks import extent
from maskmill.sam.build import load_model
from maskmill.sam.predictor import Predictor
from maskmill.sam.sam import Sam
from maskmill.storage.annotated import Annotated, AnnotatedSet, open_annotated
from maskmill.storage.files import at, exists, sha256_file
from maskmill.training.embeddings import EmbeddingCache


def take_detections(prefill: PrefillConfig, images: AnnotatedSet, path: Path) -> dict[str, object]:
    """PATH: the boxes of `prefill.detections`, by the number that the engine gives an image. Returns what identifies
    them. UserError, before any work, if they are of other images, or if RT-DETR cannot be begun with."""
    if prefill.detections is None:
        if prefill.kind == "rtdetr":
            new_model(prefill.rtdetr)
        return {}
    if not exists(at(prefill.detections)):
        raise UserError(f"prefill.detections: {prefill.detections!r} does not exist: give a COCO results file")
    given: dict[str, object] = {"detections_sha256": sha256_file(at(prefill.detections))}
    if exists(at(path)):
        return given
    found = read_detections(prefill.detections)
    known = {images.image_id(i): name for i, name in enumerate(images.names)}
    if not found.keys() & known.keys():
        raise UserError(
            f"{prefill.detections}: none of its {len(found)} image ids is one of the set's (such as "
            f"{next(iter(known))}): give detections for the same images"
        )
    write_detections({packed_id(known[i]): boxes for i, boxes in found.items() if i in known}, path)
    return given


def make_detector(
    path: Path, builds: Sequence[Path], model: ModelSection, embeddings: Path, prefill: PrefillConfig, say: At
) -> Path:
    """PATH: a detector that learned from all masks of these builds. Stopped."""
    if exists(at(path)):
        return path
    sam = load_model(model.name, model.checkpoint)
    cache = EmbeddingCache(at(embeddings), sam, "float32")
    sets = [open_annotated(str(build)) for build in builds]
    places = [(images, i) for images in sets for i in range(len(images.names))]
    if prefill.kind == "rtdetr":
        shown = [partial(pixels_and_boxes, *place) for place in places]
        train_rtdetr(shown, prefill.rtdetr, sam.device, heard(prefill.rtdetr.training, say)).save(path)
    else:
        seen = [partial(embedding_and_boxes, *place, sam, cache) for place in places]
        head = train_detector(seen, prefill.detector, prefill.training, sam.device, heard(prefill.training, say))
        save_head(head, path)
    return path


def heard(training: DetectorTraining, say: At) -> Callable[[int, float], None]:
    """Steps of a training as progress."""
    return lambda step, loss: say(step + 1, training.steps)


def pixels_and_boxes(images: AnnotatedSet, i: int) -> tuple[np.ndarray, Tensor]:
    """Image H x W x 3 uint8, and boxes N x 4 XYXY in its pixels, end exclusive."""
    found = images.read(i)
    height, width = found.image.shape[:2]
    masks = [decode(c, height, width) for c in found.counts]
    boxes = torch.tensor([extent(m) for m in masks if m.any()], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += 1  # corners are pixels, both inclusive
    return found.image, boxes


def embedding_and_boxes(
    images: AnnotatedSet, i: int, sam: Sam, cache: EmbeddingCache
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedding C x h x w and boxes N x 4 of one image, in units of the input's side."""
    image, boxes = pixels_and_boxes(images, i)
    predictor = cached_predictor(sam, image, cache)
    scale = torch.tensor([predictor.input_size[1] / image.shape[1], predictor.input_size[0] / image.shape[0]]).repeat(2)
    return predictor.get_image_embedding()[0].cpu(), boxes * (scale / sam.img_size)


def look(detector: Detector, predictor: Predictor, image: np.ndarray, image_id: int) -> Boxes:
    """The boxes of an embedded image."""
    embedding, size = predictor.get_image_embedding(), predictor.model.img_size
    return detector(Seen(image_id, image, embedding, predictor.input_size, size))


def measure_detector(
    path: Path, held_out: AnnotatedSet, model: ModelSection, embeddings: Path, prefill: PrefillConfig, say: At
) -> dict[str, Any]:
    """Average recall and precision of its boxes on the held-out part, and how many reach prefill.box_score. Stopped."""
    sam = load_model(model.name, model.checkpoint)
    cache, detector = EmbeddingCache(at(embeddings), sam, "float32"), open_detector(path, sam.device)
    seen: list[tuple[Annotated, Boxes]] = []
    for i in range(len(held_out.names)):
        say(i, len(held_out.names))
        found = held_out.read(i)
        boxes = look(detector, cached_predictor(sam, found.image, cache), found.image, packed_id(found.name))
        seen.append((found, boxes))
    shown = sum(len(boxes.above(prefill.box_score).scores) for _, boxes in seen)
    kind = "detections" if prefill.detections else prefill.kind
    return {"kind": kind, **box_scores(seen), "boxes_per_image": round(shown / len(seen), 4)}
