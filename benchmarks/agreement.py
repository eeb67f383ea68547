"""Do two generators give the same masks? Every mask of both is counted; nothing is excluded.

Two masks match if their IoU is at least 0.99 or they differ in at most 2 pixels; each mask matches at most once. A mask
without a match is a miss. It is excused only if a score that decides about it lies within 1e-5 of its threshold, where
rounding may go either way, and it is listed all the same. A threshold that is off (0, of NMS 1) decides nothing.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco

SAME_IOU, SAME_PIXELS, ROUNDING = 0.99, 2, 1e-5

Record = dict[str, Any]  # as SamAutomaticMaskGenerator gives it, output_mode="coco_rle"


@dataclass(frozen=True)
class Thresholds:
    """What decides about a mask. A score that a generator does not tell (None in its records) cannot excuse."""

    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    box_nms_thresh: float = 0.7
    crop_nms_thresh: float = 0.7


@dataclass(frozen=True)
class Miss:
    """A mask that only one side has. `score` is the one nearest to its threshold, `margin` how near."""

    image: str
    only: str
    area: int
    bbox: list[float]
    best_iou: float
    score: str
    margin: float
    excused: bool


@dataclass
class Agreement:
    """Counts over images."""

    first: int = 0
    second: int = 0
    matched: int = 0
    identical: int = 0
    misses: list[Miss] = field(default_factory=list)

    def add(self, other: "Agreement") -> None:
        self.first += other.first
        self.second += other.second
        self.matched += other.matched
        self.identical += other.identical
        self.misses += other.misses

    @property
    def share(self) -> float:
        """Matched, of all masks of the side that has more; 1 if neither has any."""
        return self.matched / max(self.first, self.second, 1) if self.first or self.second else 1.0

    @property
    def unexcused(self) -> int:
        return sum(not miss.excused for miss in self.misses)

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"share": self.share, "unexcused": self.unexcused}

    def line(self, first: str, second: str) -> str:
        """One line of text."""
        only = [sum(miss.only == name for miss in self.misses) for name in (first, second)]
        return (
            f"{self.matched} masks agree ({self.identical} to the last pixel) of {self.first} and {self.second}; only "
            f"{first} {only[0]}, only {second} {only[1]}; unexcused {self.unexcused}"
        )


def agree(
    first: Sequence[Record],
    second: Sequence[Record],
    thresholds: Thresholds,
    image: str = "",
    names: tuple[str, str] = ("official", "maskmill"),
) -> Agreement:
    """Match the records of one image, best pair first."""
    iou, pixels = overlaps(first, second)
    same = (iou >= SAME_IOU) | (pixels <= SAME_PIXELS)
    out = Agreement(len(first), len(second))
    free = [np.ones(len(first), bool), np.ones(len(second), bool)]
    for pair in np.argsort(-iou, axis=None, kind="stable"):
        i, j = divmod(int(pair), max(1, len(second)))
        if same[i, j] and free[0][i] and free[1][j]:
            free[0][i] = free[1][j] = False
            out.matched += 1
            out.identical += int(pixels[i, j] == 0)
    for mine, others, unmatched, best, name in (
        (first, second, free[0], iou.max(axis=1, initial=0), names[0]),
        (second, first, free[1], iou.max(axis=0, initial=0), names[1]),
    ):
        for k in np.flatnonzero(unmatched).tolist():
            out.misses.append(explain(mine[k], others, thresholds, image, name, float(best[k])))
    return out


def overlaps(first: Sequence[Record], second: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """IoU and the number of differing pixels of every pair: float64, int64, both N x M."""
    sides = [[record["segmentation"] for record in records] for records in (first, second)]
    if not all(sides):
        return np.zeros((len(first), len(second))), np.zeros((len(first), len(second)), np.int64)
    iou = np.asarray(coco.iou(sides[0], sides[1], [0] * len(second)), dtype=np.float64)
    both = np.add.outer(*[coco.area(side).astype(np.float64) for side in sides])
    return iou, np.rint(both * (1 - iou) / (1 + iou)).astype(np.int64)


def explain(
    record: Record, others: Sequence[Record], thresholds: Thresholds, image: str, only: str, best: float
) -> Miss:
    """The score of an unmatched mask that lies nearest to a threshold."""
    margins: dict[str, float] = {}
    for name in ("predicted_iou", "stability_score"):
        threshold = thresholds.pred_iou_thresh if name == "predicted_iou" else thresholds.stability_score_thresh
        if record[name] is not None and threshold > 0:
            margins[f"{name} {record[name]:.7f}"] = abs(record[name] - threshold)
    limits = [limit for limit in (thresholds.box_nms_thresh, thresholds.crop_nms_thresh) if limit < 1]
    for other in others if limits else ():  # what the other side kept may have suppressed it
        overlap = box_iou(record["bbox"], other["bbox"])
        margins[f"box IoU {overlap:.7f}"] = min(abs(overlap - limit) for limit in limits)
    score = min(margins, key=lambda name: margins[name], default="none")
    margin = margins.get(score, float("inf"))
    return Miss(image, only, int(record["area"]), [*record["bbox"]], best, score, margin, margin <= ROUNDING)


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Of XYWH boxes as the official NMS takes them: w = xmax - xmin. 0 for two flat ones."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inter = max(0.0, w) * max(0.0, h)
    union = a[2] * a[3] + b[2] * b[3] - inter
    return inter / union if union > 0 else 0.0
