"""A detector from its file, whichever kind it is."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from upath import UPath

from maskmill.detect import rtdetr
from maskmill.detect.boxes import Boxes, Detector, Seen
from maskmill.detect.foreign import ListedBoxes, read_detections
from maskmill.detect.head import BoxHead, detect
from maskmill.detect.train import load_head, metadata
from maskmill.errors import UserError
from maskmill.storage.files import at, read_bytes


@dataclass(frozen=True)
class HeadDetector:
    """A box head as a detector: it looks at the embedding alone."""

    head: BoxHead

    def __call__(self, seen: Seen) -> Boxes:
        size = (seen.image.shape[0], seen.image.shape[1])
        return detect(self.head, seen.embedding, seen.input_size, size, seen.img_size)


def open_detector(path: str | Path | UPath, device: torch.device) -> Detector:
    """A head's or an RT-DETR's .safetensors, or a COCO results file (.json). UserError if it is none of them."""
    if str(path).endswith(".json"):
        return ListedBoxes(read_detections(path))
    data = read_bytes(at(path))
    try:
        about = metadata(data)
        if rtdetr.KEY in about:
            return rtdetr.RtDetr.load(data, about[rtdetr.KEY], device)
    except (KeyError, ValueError, TypeError, RuntimeError, json.JSONDecodeError) as e:
        raise UserError(f"{path} is not a detector of maskmill: {e}") from e
    return HeadDetector(load_head(path, device))
