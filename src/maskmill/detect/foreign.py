"""Boxes that someone else's detector found: a COCO results file (any of R-CNN, YOLO, DETR writes one)."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from upath import UPath

from maskmill.detect.boxes import Boxes, Seen
from maskmill.errors import UserError
from maskmill.storage.files import at, read_bytes, to_json, write_bytes


def read_detections(path: str | Path | UPath) -> dict[int, Boxes]:
    """`[{"image_id", "bbox": [x, y, width, height], "score", ...}, ...]` -> the boxes of each image, best first.

    Categories are ignored: boxes of all classes stand for objects. UserError names the first record that is wrong.
    """
    try:
        records = json.loads(read_bytes(at(path)))
    except FileNotFoundError as e:
        raise UserError(f"{path} does not exist: give a COCO detections file") from e
    except ValueError as e:
        raise UserError(f"{path} is not JSON: {e}") from e
    if not isinstance(records, list):
        raise UserError(f"{path} is no COCO detections file: it must be a list of records with image_id, bbox, score")
    found: dict[int, list[tuple[float, list[float]]]] = {}
    for n, record in enumerate(records):
        try:
            x, y, width, height = (float(v) for v in record["bbox"])
            score, image = float(record["score"]), int(record["image_id"])
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f"{path}, record {n}: {e!r}; expected image_id, bbox [x, y, w, h] and score") from e
        if not (width > 0 and height > 0 and np.isfinite([x, y, width, height, score]).all()):
            raise UserError(f"{path}, record {n}: bbox {record['bbox']}, score {score}: no such box")
        found.setdefault(image, []).append((score, [x, y, x + width, y + height]))
    return {image: ordered(rows) for image, rows in found.items()}


def ordered(rows: list[tuple[float, list[float]]]) -> Boxes:
    """Best first; equals keep their order."""
    scores = np.array([score for score, _ in rows], np.float32)
    order = np.argsort(-scores, kind="stable")
    return Boxes(np.array([box for _, box in rows], np.float32)[order], scores[order])


@dataclass(frozen=True)
class ListedBoxes:
    """Boxes of a file as a detector: it knows images by their number alone."""

    found: dict[int, Boxes]

    def __call__(self, seen: Seen) -> Boxes:
        """Cut at the image's border; what is no wider or higher than a pixel then is left out."""
        boxes = self.found.get(seen.image_id)
        if boxes is None:
            return Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
        height, width = seen.image.shape[:2]
        inside = boxes.xyxy.clip(0, np.array([width, height] * 2, np.float32))
        whole = (inside[:, 2:] - inside[:, :2] >= 1).all(1)
        return Boxes(inside[whole], boxes.scores[whole])


def write_detections(found: dict[int, Boxes], path: str | Path | UPath) -> None:
    """The COCO results file that `read_detections` reads; every bit of a box comes back."""
    records = [
        {"image_id": image, "category_id": 1, "bbox": corner(box), "score": float(score)}
        for image, boxes in found.items()
        for box, score in zip(boxes.xyxy, boxes.scores, strict=True)
    ]
    write_bytes(at(path), to_json(records))


def corner(xyxy: np.ndarray) -> list[float]:
    """XYXY -> COCO's XYWH, in float64: there the sides are exact."""
    x0, y0, x1, y1 = (float(v) for v in xyxy)
    return [x0, y0, x1 - x0, y1 - y0]
