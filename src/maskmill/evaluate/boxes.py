"""A detector's boxes: a COCO results file, a list of {image_id, category_id, bbox [x, y, w, h], score}."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskmill.errors import UserError
from maskmill.storage.annotated import AnnotatedSet, CocoSet
from maskmill.storage.files import at, exists, read_bytes


@dataclass(frozen=True)
class Box:
    """XYXY in pixels of the image. Without a score the answer's predicted IoU ranks it."""

    category: str
    corners: tuple[float, float, float, float]
    score: float | None


def read_boxes(path: str, data: AnnotatedSet) -> dict[str, list[Box]]:
    """By the name of the image. UserError, in one line, for what is no such file, or is of another set."""
    if not isinstance(data, CocoSet):
        raise UserError(f"--boxes {path}: a results file names images by their ids in a COCO file: give that as DATA")
    if not exists(at(path)):
        raise UserError(f"--boxes {path}: no such file: give a COCO results .json of boxes, or the word truth")
    try:
        rows = json.loads(read_bytes(at(path)))
    except ValueError as e:
        raise UserError(f"--boxes {path}: it is no JSON ({e}): give a COCO results file") from e
    if not isinstance(rows, list) or not rows:
        what = "is empty" if rows == [] else "is no list"
        raise UserError(f"--boxes {path}: it {what}: give a COCO results file, a list of boxes with scores")
    names, categories = {i: n for n, i in data.image_ids.items()}, {i: n for n, i in data.category_ids.items()}
    found: dict[str, list[Box]] = {}
    for n, row in enumerate(rows):
        try:
            name, box = read_row(row, names, categories)
        except ValueError as e:
            raise UserError(f"--boxes {path}: entry {n}: {e}") from e
        found.setdefault(name, []).append(box)
    return found


def read_row(row: Any, names: dict[int, str], categories: dict[int, str]) -> tuple[str, Box]:
    """One entry and its image. ValueError."""
    if not isinstance(row, dict) or not {"image_id", "category_id", "bbox", "score"} <= row.keys():
        raise ValueError("expected image_id, category_id, bbox and score")
    if row["image_id"] not in names:
        raise ValueError(f"DATA has no image with id {row['image_id']!r}")
    if row["category_id"] not in categories:
        raise ValueError(f"DATA has no category with id {row['category_id']!r}")
    x, y, w, h = numbers(row["bbox"], 4, "bbox")
    if w < 0 or h < 0:
        raise ValueError(f"bbox {row['bbox']} has a negative side: expected x, y, width, height")
    (score,) = numbers([row["score"]], 1, "score")
    return names[row["image_id"]], Box(categories[row["category_id"]], (x, y, x + w, y + h), score)


def numbers(values: Any, count: int, what: str) -> list[float]:
    """So many finite numbers, or ValueError."""
    try:
        found = np.asarray(values, float)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise ValueError(f"{what} is {str(values)[:60]}: expected {count} finite number{'s' if count > 1 else ''}")
    return [float(v) for v in found]
