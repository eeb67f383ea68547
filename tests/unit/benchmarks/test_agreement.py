"""What counts as the same mask, what is a miss, and what excuses one."""

from typing import Any

import numpy as np
import pytest

from benchmarks.agreement import Agreement, Thresholds, agree, box_iou
from maskmill.masks.rle import encode

SIZE = (60, 80)


def record(
    box: tuple[int, int, int, int], holes: int = 0, iou: float = 0.93, stability: float = 0.97
) -> dict[str, Any]:
    """A filled box x0, y0, x1, y1 (end exclusive) that lacks its first `holes` pixels."""
    x0, y0, x1, y1 = box
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    mask[y0, x0 : x0 + holes] = False
    return {
        "segmentation": {"size": list(SIZE), "counts": encode(mask)},
        "area": int(mask.sum()),
        "bbox": [x0, y0, x1 - x0 - 1, y1 - y0 - 1],
        "predicted_iou": iou,
        "stability_score": stability,
    }


def test_equal_records_agree() -> None:
    records = [record((0, 0, 9, 9)), record((20, 20, 50, 50))]
    out = agree(records, records[::-1], Thresholds())
    assert (out.matched, out.identical, out.misses, out.share) == (2, 2, [], 1.0)


@pytest.mark.parametrize(
    ("box", "holes", "same"),
    [((0, 0, 3, 3), 2, True), ((0, 0, 3, 3), 3, False), ((0, 0, 40, 40), 16, True), ((0, 0, 40, 40), 17, False)],
)
def test_two_pixels_or_one_per_cent(box: tuple[int, int, int, int], holes: int, same: bool) -> None:
    out = agree([record(box)], [record(box, holes)], Thresholds())
    assert (out.matched, out.identical, len(out.misses)) == (int(same), 0, 0 if same else 2)


def test_a_mask_matches_once() -> None:
    one, almost = record((0, 0, 40, 40)), record((0, 0, 40, 40), holes=3)
    out = agree([one], [almost, one], Thresholds())
    assert (out.matched, out.identical) == (1, 1)
    assert [miss.only for miss in out.misses] == ["maskmill"]
    assert out.misses[0].best_iou > 0.99
    assert out.unexcused == 1
    assert out.share == 0.5


@pytest.mark.parametrize("side", [0, 1])
def test_nothing_against_something(side: int) -> None:
    sides = [[], [record((0, 0, 9, 9))]]
    out = agree(sides[side], sides[1 - side], Thresholds())
    assert (out.matched, len(out.misses), out.unexcused, out.share) == (0, 1, 1, 0.0)
    assert agree([], [], Thresholds()).share == 1.0


@pytest.mark.parametrize(
    ("iou", "stability", "excused"),
    [(0.88 + 9e-6, 0.97, True), (0.88 + 2e-5, 0.97, False), (0.93, 0.95 - 9e-6, True), (0.93, 0.9501, False)],
)
def test_a_score_at_its_threshold_excuses(iou: float, stability: float, excused: bool) -> None:
    out = agree([record((0, 0, 9, 9), iou=iou, stability=stability)], [], Thresholds())
    assert [miss.excused for miss in out.misses] == [excused]
    assert out.unexcused == int(not excused)


def test_a_box_at_the_nms_threshold_excuses() -> None:
    kept, lost = record((0, 0, 11, 11)), record((0, 0, 11, 8))  # boxes of 10 x 10 and 10 x 7
    assert box_iou(kept["bbox"], lost["bbox"]) == 0.7
    out = agree([kept, lost], [kept], Thresholds())
    assert [(miss.only, miss.excused) for miss in out.misses] == [("official", True)]
    assert out.misses[0].score.startswith("box IoU")
    out = agree([kept, lost], [kept], Thresholds(box_nms_thresh=0.6, crop_nms_thresh=0.6))
    assert [miss.excused for miss in out.misses] == [False]


def test_a_threshold_that_is_off_excuses_nothing() -> None:
    """Scores of 0, and boxes that are equal: near no threshold, as none decides."""
    off = Thresholds(0.0, 0.0, 1.0, 1.0)
    lost = record((0, 0, 11, 11), holes=11, iou=0.0, stability=0.0)
    out = agree([record((0, 0, 11, 11)), lost], [record((0, 0, 11, 11))], off)
    assert [(miss.score, miss.excused) for miss in out.misses] == [("none", False)]


def test_what_a_peer_does_not_tell_excuses_nothing() -> None:
    silent = record((0, 0, 9, 9)) | {"stability_score": None}
    assert agree([silent], [], Thresholds()).unexcused == 1


def test_sums() -> None:
    total = Agreement()
    total.add(agree([record((0, 0, 9, 9))], [record((0, 0, 9, 9))], Thresholds()))
    total.add(agree([record((0, 0, 9, 9))], [], Thresholds(), "second"))
    assert (total.first, total.second, total.matched, total.share) == (2, 1, 1, 0.5)
    assert total.tree()["misses"][0]["image"] == "second"
    assert "only official 1, only maskmill 0; unexcused 1" in total.line("official", "maskmill")
