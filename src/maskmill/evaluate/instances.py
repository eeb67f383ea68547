"""Boxes to masks (SAM, section 7.4 and appendix D.5): COCO mask AP of a model that is prompted with boxes.

Each box is asked for three masks; the most confident one goes in again, with the box, for the single answer (the
paper's one refinement). The boxes are those of the masks themselves, or a detector's. Matching is pycocotools' own.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from maskmill.evaluate.boxes import Box
from maskmill.evaluate.prompts import Prompter
from maskmill.evaluate.proposals import SIZES, coco, mean, record
from maskmill.masks.rle import encode
from maskmill.prompts.clicks import extent
from maskmill.storage.annotated import Annotated
from maskmill.storage.coco import NO_CATEGORY

COCO_MOST = 100  # answers that COCO counts for an image and category


@dataclass(frozen=True)
class InstanceScores:
    """Precision after the refinement: `ap` by COCO's names, `by_category` the mean over IoUs; `first`: without
    refinement. NaN: no such mask."""

    boxes: int
    ap: dict[str, float]
    first: dict[str, float]
    by_category: dict[str, float]


@dataclass
class Instances:
    """Human masks and a model's answers to boxes, image by image.

    detected: boxes by the name of the image; None for those of the human masks, ranked by the answers' predicted IoU.
    """

    detected: Mapping[str, Sequence[Box]] | None
    sizes: list[tuple[int, int]] = field(default_factory=list)  # height, width
    truth: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)  # refined
    first: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of images

    def add(self, prompter: Prompter, found: Annotated, batch: int) -> None:
        """One image with all of its masks, none of them empty."""
        self.sizes.append((found.image.shape[0], found.image.shape[1]))
        self.names.append(found.name)
        categories = [c or NO_CATEGORY for c in found.categories]
        for category, counts in zip(categories, found.counts, strict=True):
            self.truth.append(self.record(self.truth, counts, category) | {"iscrowd": 0})
        for crowd, counts in found.crowds:
            self.truth.append(self.record(self.truth, counts, crowd or NO_CATEGORY) | {"iscrowd": 1})
        if self.detected is not None:
            boxes = list(self.detected.get(found.name, ()))
        else:
            extents = [extent(m) for m in found.masks]
            boxes = [Box(c, e, None) for c, e in zip(categories, extents, strict=True)]
        for start in range(0, len(boxes), batch):
            self.ask(prompter, boxes[start : start + batch])

    def ask(self, prompter: Prompter, boxes: Sequence[Box]) -> None:
        """First answers and refined ones."""
        corners = np.array([b.corners for b in boxes], float)
        masks, scores, low = prompter.ask(None, None, corners, None, True)
        rows, best = np.arange(len(boxes)), scores.argmax(1)
        refined, sure, _ = prompter.ask(None, None, corners, low[rows, best][:, None], False)
        for n, box in enumerate(boxes):
            for out, mask, score in (
                (self.first, masks[n, best[n]], scores[n, best[n]]),
                (self.answers, refined[n, 0], sure[n, 0]),
            ):
                said = float(score) if box.score is None else box.score
                out.append(self.record(out, encode(mask), box.category) | {"score": said})

    def record(self, others: list[dict[str, Any]], counts: str, category: str) -> dict[str, Any]:
        """One mask of the last image; its category is still a name."""
        row = record(len(self.sizes), len(others) + 1, self.sizes[-1], counts)
        return row | {"category_id": category}

    @property
    def categories(self) -> list[str]:
        """Of the human masks, by name."""
        return sorted({row["category_id"] for row in self.truth})

    def evaluate(self) -> InstanceScores:
        """By COCOeval. A category that no human mask has is left out, as COCO does."""
        ap, by_category = self.precision(self.answers)
        first, _ = self.precision(self.first)
        return InstanceScores(len(self.answers), ap, first, by_category)

    def precision(self, answers: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
        """AP by name, and by category. Boxes of the masks themselves all count, a detector's as far as COCO counts."""
        numbers = {name: n + 1 for n, name in enumerate(self.categories)}
        known = [a for a in answers if a["category_id"] in numbers]
        with contextlib.redirect_stdout(io.StringIO()):
            truth, found = (
                coco(self.sizes, [r | {"category_id": numbers[r["category_id"]]} for r in rows], list(numbers))
                for rows in (self.truth, known)
            )
            run = COCOeval(truth, found, "segm")
            run.params.maxDets = [COCO_MOST if self.detected is not None else max(1, len(known))]
            run.evaluate()
            run.accumulate()
        precision, recall = run.eval["precision"][..., -1], run.eval["recall"][..., -1]  # IoU, recall, category, size
        ap = {f"AP_{size}" if size != "all" else "AP": mean(precision[..., a]) for a, size in enumerate(SIZES)}
        ap |= {"AP50": mean(precision[0, ..., 0]), "AP75": mean(precision[5, ..., 0]), "AR": mean(recall[..., 0])}
        return ap, {name: mean(precision[:, :, n - 1, 0]) for name, n in numbers.items()}

    def results(self, image_ids: Mapping[str, int], category_ids: Mapping[str, int]) -> list[dict[str, Any]]:
        """The refined answers as COCO has results, by the ids of a COCO file."""
        return [
            {
                "image_id": image_ids[self.names[row["image_id"] - 1]],
                "category_id": category_ids[row["category_id"]],
                "segmentation": row["segmentation"] | {"counts": row["segmentation"]["counts"].decode()},
                "score": row["score"],
            }
            for row in self.answers
        ]
