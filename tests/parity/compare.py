"""Records of the official generator against ours, one by one and in order."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco

Record = dict[str, Any]
EXACT = ("bbox", "crop_box", "point_coords", "area")
SCORES = ("predicted_iou", "stability_score")


@dataclass
class Comparison:
    """What differs. `problems` is empty when everything but the scores is equal."""

    official: int = 0
    ours: int = 0
    equal_rle: int = 0
    score_gap: float = 0.0
    problems: list[str] = field(default_factory=list)

    def add(self, other: "Comparison") -> None:
        """Sum over images."""
        self.official += other.official
        self.ours += other.ours
        self.equal_rle += other.equal_rle
        self.score_gap = max(self.score_gap, other.score_gap)
        self.problems += other.problems


def same_mask(theirs: Any, ours: Any) -> bool:
    """Binary masks, compressed or uncompressed RLE: the same pixels in the same form."""
    if isinstance(theirs, np.ndarray):
        return bool(theirs.dtype == ours.dtype and np.array_equal(theirs, ours))
    return bool(theirs == ours)


def compare(theirs: Sequence[Record], ours: Sequence[Record], name: str = "") -> Comparison:
    """Position by position. A different number, order, RLE, box, crop, point or area is a problem."""
    out = Comparison(len(theirs), len(ours))
    for i, (a, b) in enumerate(zip(theirs, ours, strict=False)):
        equal = same_mask(a["segmentation"], b["segmentation"])
        out.equal_rle += equal
        wrong = [key for key in EXACT if a[key] != b[key]] + ([] if equal else ["segmentation"])
        out.score_gap = max(out.score_gap, *(abs(a[key] - b[key]) for key in SCORES))
        if wrong:
            what = "; ".join(f"{key} {a[key]} != {b[key]}" for key in wrong if key != "segmentation")
            out.problems.append(f"{name} mask {i}: {', '.join(wrong)} differ. {what} {pixels_apart(a, b)}")
    if len(theirs) != len(ours):
        out.problems.append(f"{name}: {len(theirs)} masks, ours {len(ours)}. {strangers(theirs, ours)}")
    return out


def pixels_apart(a: Record, b: Record) -> str:
    """How far two masks are apart, for compressed RLE."""
    if not isinstance(a["segmentation"], dict) or not isinstance(a["segmentation"]["counts"], str):
        return ""
    one, two = coco.decode(a["segmentation"]), coco.decode(b["segmentation"])
    return f"{int((one != two).sum())} of {int((one | two).sum())} pixels differ"


def strangers(theirs: Sequence[Record], ours: Sequence[Record]) -> str:
    """Masks that one side lacks, with the scores that tell how near a threshold they lie."""
    keys = [{(*r["point_coords"][0], r["area"], *r["bbox"]): r for r in side} for side in (theirs, ours)]
    only = [(who, r) for who, k, other in (("official", keys[0], keys[1]), ("ours", keys[1], keys[0]))
            for key, r in k.items() if key not in other]  # fmt: skip
    shown = [f"only {w}: iou {r['predicted_iou']:.7f} stability {r['stability_score']:.7f} area {r['area']} "
             f"bbox {r['bbox']}" for w, r in only[:6]]  # fmt: skip
    return " | ".join(shown)
