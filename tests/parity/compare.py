"""Records of the official generator against ours: mask by mask, and one by one in order."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco

from benchmarks.agreement import Agreement, Thresholds, agree

Record = dict[str, Any]
EXACT = ("bbox", "crop_box", "point_coords", "area")


@dataclass
class Comparison:
    """`agreement` is what counts: masks matched at IoU >= 0.99 or at most 2 pixels, misses listed. The rest says how
    far the two are equal in order: `equal` records have the same mask, box, crop, point and area in the same place;
    `score_gap` is the largest difference of a predicted IoU between equal masks in the same place."""

    agreement: Agreement = field(default_factory=Agreement)
    equal: int = 0
    score_gap: float = 0.0
    differences: list[str] = field(default_factory=list)

    @property
    def official(self) -> int:
        return self.agreement.first

    @property
    def ours(self) -> int:
        return self.agreement.second

    def add(self, other: "Comparison") -> None:
        """Sum over images."""
        self.agreement.add(other.agreement)
        self.equal += other.equal
        self.score_gap = max(self.score_gap, other.score_gap)
        self.differences += other.differences

    def __str__(self) -> str:
        text = f"{self.agreement.line('official', 'ours')}; equal in order {self.equal}, score gap {self.score_gap:.2g}"
        return "; ".join([text, *self.differences, *(str(miss) for miss in self.agreement.misses)])


def compare(theirs: Sequence[Record], ours: Sequence[Record], settings: dict[str, Any], name: str = "") -> Comparison:
    """The records of one image, made with the same `settings`, in any output mode."""
    names = ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "crop_nms_thresh")
    thresholds = Thresholds(**{key: settings[key] for key in names if key in settings})
    out = Comparison(agree([as_coco(r) for r in theirs], [as_coco(r) for r in ours], thresholds, name))
    for i, (a, b) in enumerate(zip(theirs, ours, strict=False)):
        same = same_mask(a["segmentation"], b["segmentation"])
        wrong = [f"{key} {a[key]} != {b[key]}" for key in EXACT if a[key] != b[key]]
        if same:
            out.score_gap = max(out.score_gap, abs(a["predicted_iou"] - b["predicted_iou"]))
        if same and not wrong:
            out.equal += 1
        else:
            out.differences.append(f"{name} mask {i}: {', '.join(wrong)} {'' if same else pixels_apart(a, b)}")
    return out


def same_mask(theirs: Any, ours: Any) -> bool:
    """Binary masks, compressed or uncompressed RLE: the same pixels in the same form."""
    if isinstance(theirs, np.ndarray):
        return bool(theirs.dtype == ours.dtype and np.array_equal(theirs, ours))
    return bool(theirs == ours)


def as_coco(record: Record) -> Record:
    """The record with its mask as compressed RLE."""
    mask = record["segmentation"]
    if isinstance(mask, np.ndarray):
        mask = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    elif isinstance(mask["counts"], list):
        mask = coco.frPyObjects(mask, *mask["size"])
    return {**record, "segmentation": mask}


def pixels_apart(a: Record, b: Record) -> str:
    """How far two masks are apart."""
    one, two = (coco.decode(as_coco(r)["segmentation"]) for r in (a, b))
    return f"{int((one != two).sum())} of {int((one | two).sum())} pixels differ"
