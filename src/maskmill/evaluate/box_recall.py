"""Boxes of a detector against the true objects: average recall, by size. Matching is pycocotools' own."""

import contextlib
import io
from typing import Any

from pycocotools.cocoeval import COCOeval

from maskmill.detect.boxes import Boxes
from maskmill.evaluate.proposals import MANY, SIZES, coco, mean, record
from maskmill.evaluate.run import number
from maskmill.storage.annotated import Annotated


def box_scores(images: list[tuple[Annotated, Boxes]]) -> dict[str, Any]:
    """`recall`: AR of up to 1000 boxes an image, mean over IoU 0.50 to 0.95, of all objects and by size (COCO's areas
    of their masks); `recall_50`: recall at IoU 0.50; `precision`: AP of the same boxes. None: no such object.
    """
    sizes = [(found.image.shape[0], found.image.shape[1]) for found, _ in images]
    truth: list[dict[str, Any]] = []
    given: list[dict[str, Any]] = []
    for n, (found, boxes) in enumerate(images, start=1):
        truth += [record(n, len(truth) + k, sizes[n - 1], c) | {"iscrowd": 0} for k, c in enumerate(found.counts, 1)]
        given += [boxed(n, len(given) + k + 1, boxes, k) for k in range(len(boxes.scores))]
    if not truth:
        return {"recall": dict.fromkeys(SIZES), "recall_50": None, "precision": None}
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(coco(sizes, truth), coco(sizes, given), "bbox")
        run.params.useCats = 0
        run.params.maxDets = [MANY]
        run.evaluate()
        run.accumulate()
    recall, precision = run.eval["recall"][:, 0, :, 0], run.eval["precision"][:, :, 0, 0, 0]
    return {
        "recall": {size: number(mean(recall[:, a])) for a, size in enumerate(SIZES)},
        "recall_50": number(mean(recall[:1, 0])), "precision": number(mean(precision)),
    }  # fmt: skip


def boxed(image: int, annotation: int, boxes: Boxes, i: int) -> dict[str, Any]:
    """The i-th box as an annotation of COCO's."""
    x0, y0, x1, y1 = (float(v) for v in boxes.xyxy[i])
    about = {"id": annotation, "image_id": image, "category_id": 1, "score": float(boxes.scores[i])}
    return about | {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
