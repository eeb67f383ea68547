"""Every rule against what it says, worked out pixel by pixel; its place in the order; and that it is off by default."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.config import FilterConfig, from_tree
from maskmill.errors import UserError
from maskmill.filters.apply import apply_filter, dropped_by
from maskmill.filters.overlap import mask_nms, outermost
from maskmill.filters.pixels import disjoint
from maskmill.filters.rules import ON_RAW, above_quantile, best_of_image, lottery, ranked
from maskmill.masks.boxes import BLOCK, nms
from maskmill.masks.rle import encode
from maskmill.masks.table import MaskTable
from tests.unit.filters.blobs import CROPS, PLAIN, blobs, filters, pixels
from tests.unit.tables import Box, table

OFF = FilterConfig(pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0, crop_nms_thresh=1.0)
OFTEN = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def with_(**changes: object) -> FilterConfig:
    return replace(OFF, **changes)  # type: ignore[arg-type]


def kept(cfg: FilterConfig, rows: MaskTable, crops: int = 1, image_id: int = 7) -> list[int]:
    """The ids that stay, sorted."""
    return sorted(apply_filter(rows, cfg, crops, image_id).mask_id.tolist())


def fits(stays: np.ndarray, rows: MaskTable) -> list[int]:
    return rows.mask_id[stays].tolist()  # type: ignore[no-any-return]


# ---- one mask at a time


@OFTEN
@given(seeds)
def test_areas_are_counted_in_pixels(seed: int) -> None:
    rows = blobs(seed)
    sums = pixels(rows).sum(axis=(1, 2))
    size = rows.height * rows.width
    assert kept(with_(min_area=200), rows) == fits(sums >= 200, rows)
    assert kept(with_(max_area=200), rows) == fits(sums <= 200, rows)
    assert kept(with_(min_area_share=0.1), rows) == fits(sums >= 0.1 * size, rows)
    assert kept(with_(min_area=100, max_area=400), rows) == fits((sums >= 100) & (sums <= 400), rows)


def test_the_ends_of_an_area_range_belong_to_it() -> None:
    rows = table([(0, 0, 9, 9), (0, 0, 9, 10), (0, 0, 9, 11)])  # 100, 110, 120 px of 2000
    assert kept(with_(min_area=110), rows) == [1, 2]
    assert kept(with_(max_area=110), rows) == [0, 1]
    assert kept(with_(min_area_share=0.055), rows) == [1, 2]


@OFTEN
@given(seeds)
def test_tokens(seed: int) -> None:
    rows = blobs(seed)
    for tokens in ((0,), (1, 2), (2, 0, 1)):
        assert kept(with_(tokens=tokens), rows) == [i for i in rows.mask_id.tolist() if i % 3 in tokens]


def test_aspect_ratio_counts_whole_pixels() -> None:
    rows = table([(0, 0, 9, 9), (0, 0, 29, 9), (0, 0, 9, 29), (0, 0, 30, 9), (5, 5, 5, 5), (5, 5, 5, 9)])
    assert kept(with_(max_aspect_ratio=3.0), rows) == [0, 1, 2, 4]  # 30 : 10 is 3, 31 : 10 is more; a dot is square
    assert kept(with_(max_aspect_ratio=5.0), rows) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("distance", "stay"), [(0, [0, 1, 2, 3, 4, 5]), (1, [4, 5]), (2, [5]), (3, [])])
def test_border_distance(distance: int, stay: list[int]) -> None:
    """Each of the four edges of a 50 x 40 image is touched once."""
    boxes: list[Box] = [(0, 5, 9, 9), (5, 0, 9, 9), (40, 5, 49, 9), (5, 30, 9, 39), (1, 5, 9, 9), (2, 2, 47, 37)]
    assert kept(with_(min_border_distance=distance), table(boxes)) == stay


# ---- scores and chance


def ranks(rows: MaskTable) -> list[int]:
    """Ids, best score first, ties by id."""
    pairs = zip((-rows.predicted_iou).tolist(), rows.mask_id.tolist(), strict=True)
    return [i for _, i in sorted(pairs)]


@OFTEN
@given(seeds, st.floats(0, 0.999), st.integers(1, 40))
def test_quantile_and_most_go_by_rank(seed: int, share: float, most: int) -> None:
    rows = blobs(seed)
    rows = rows.take(np.random.default_rng(seed).permutation(len(rows)))
    order = ranks(rows)
    assert rows.mask_id[ranked(rows)].tolist() == order
    lowest = int(len(rows) * share)
    assert rows.mask_id[above_quantile(rows, with_(score_quantile=share))].tolist() == [
        i for i in rows.mask_id.tolist() if i in order[: len(order) - lowest]
    ]
    best = best_of_image(rows, with_(max_masks_per_image=most))
    assert sorted(rows.mask_id[best].tolist()) == sorted(order[:most])


def test_a_quantile_is_no_victim_of_rounding() -> None:
    """0.29 * 100 is 28.999999999999996 in floating point."""
    rows = table([(0, 0, 5, 5)] * 100, iou=[0.5 + i / 1000 for i in range(100)])
    assert kept(with_(score_quantile=0.29), rows) == list(range(29, 100))
    assert len(kept(with_(score_quantile=0.999), rows)) == 1, "some mask always stays"


def test_masks_without_a_score_rank_last() -> None:
    rows = table([(0, 0, 5, 5), (10, 0, 15, 5), (20, 0, 25, 5)], iou=[float("nan"), 0.2, 0.9])
    assert kept(with_(max_masks_per_image=2), rows) == [1, 2]
    assert kept(with_(pred_iou_thresh=0.1), rows) == [1, 2]
    assert kept(OFF, rows) == [0, 1, 2]


def test_the_lottery_is_pinned() -> None:
    """Other numbers would draw other masks in builds that exist."""
    drawn = lottery(2**63 - 25, np.array([0, 1, 2, 3071 * 3 + 2]))
    assert drawn.tolist() == [0.8377903511114841, 0.23855790826872192, 0.8462516642354435, 0.89650835537745]


def test_a_sample_is_a_share_and_follows_from_the_ids_alone() -> None:
    ids = np.arange(20_000)
    for share in (0.1, 0.5):
        assert abs((lottery(5, ids) < share).mean() - share) < 0.01
    images = np.array([lottery(image, np.array([3]))[0] for image in range(4000)])
    assert abs((images < 0.3).mean() - 0.3) < 0.03
    assert lottery(5, ids[100:200]).tolist() == lottery(5, ids)[100:200].tolist()
    rows = blobs(3)
    some, more = (set(kept(with_(sample=share), rows)) for share in (0.2, 0.6))
    assert some < more < set(rows.mask_id.tolist())
    assert kept(with_(sample=0.5), rows, image_id=8) != kept(with_(sample=0.5), rows, image_id=9)
    with pytest.raises(AssertionError, match="image_id"):
        apply_filter(rows, with_(sample=0.5), 1)


# ---- overlap


def greedy(rows: MaskTable, scores: list[float], loses: np.ndarray) -> list[int]:
    """The textbook: best first, each takes out those that lose against it (bool N x N)."""
    left = sorted(range(len(rows)), key=lambda i: (-scores[i], i))
    stay = []
    while left:
        stay.append(left.pop(0))
        left = [j for j in left if not loses[stay[-1], j]]
    return stay


def overlaps(inter: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU and intersection over the smaller, N x N; 0 / 0 is 0."""
    union, smaller = areas[:, None] + areas - inter, np.minimum(areas[:, None], areas)
    return inter / np.maximum(union, 1e-9), inter / np.maximum(smaller, 1e-9)


@OFTEN
@given(seeds, st.sampled_from((0.0, 0.3, 0.7, 1.0)), st.sampled_from((0.5, 0.9, 1.0)))
def test_mask_nms_is_that_of_the_pixels(seed: int, iou: float, ios: float) -> None:
    rows = blobs(seed, PLAIN)
    flat = pixels(rows).reshape(len(rows), -1).astype(np.int64)
    by_iou, by_ios = overlaps(flat @ flat.T, flat.sum(axis=1))
    want = greedy(rows, rows.predicted_iou.tolist(), (by_iou > iou) | (by_ios > ios))
    assert mask_nms(rows, rows.predicted_iou, iou, ios).tolist() == want


@OFTEN
@given(seeds, st.sampled_from((0.3, 0.7, 1.0)), st.sampled_from((0.5, 0.9)))
def test_box_nms_by_the_smaller_one(seed: int, iou: float, ios: float) -> None:
    rows = blobs(seed, PLAIN)
    x0, y0, x1, y1 = rows.box.T.astype(np.float32)
    w = np.maximum(0, np.minimum(x1[:, None], x1) - np.maximum(x0[:, None], x0))
    h = np.maximum(0, np.minimum(y1[:, None], y1) - np.maximum(y0[:, None], y0))
    by_iou, by_ios = overlaps(w * h, (x1 - x0) * (y1 - y0))
    want = greedy(rows, rows.predicted_iou.tolist(), (by_iou > iou) | (by_ios > ios))
    assert nms(rows.box, rows.predicted_iou, iou, ios).tolist() == want


def test_more_boxes_than_are_compared_at_a_time() -> None:
    rng = np.random.default_rng(0)
    n = 2 * BLOCK + 50
    start = rng.integers(0, 300, (n, 2))
    rows = table([(0, 0, 1, 1)] * n)
    rows = replace(rows, box=np.concatenate([start, start + rng.integers(10, 60, (n, 2))], axis=1))
    scores = rng.choice([0.5, 0.6, 0.7], n).astype(np.float32)
    x0, y0, x1, y1 = rows.box.T.astype(np.float32)
    w = np.maximum(0, np.minimum(x1[:, None], x1) - np.maximum(x0[:, None], x0))
    h = np.maximum(0, np.minimum(y1[:, None], y1) - np.maximum(y0[:, None], y0))
    by_iou, _ = overlaps(w * h, (x1 - x0) * (y1 - y0))
    got = nms(rows.box, scores, 0.2).tolist()
    assert got == greedy(rows, scores.tolist(), by_iou > 0.2) and BLOCK / 4 < len(got) < n - BLOCK


def frames() -> MaskTable:
    """A square, a smaller one in it, one in that, and one that hangs over its edge by half."""
    return table(
        [(5, 5, 24, 24), (8, 8, 17, 17), (9, 9, 12, 12), (20, 10, 29, 19)],
        iou=[0.5, 0.9, 0.99, 0.7],
    )


def test_nested_masks_need_the_smaller_one() -> None:
    """labelme#2088: box IoU keeps a mask inside another, intersection over the smaller does not."""
    assert kept(with_(box_nms_thresh=0.7), frames()) == [0, 1, 2, 3]
    for kind in ("box", "mask"):
        assert kept(with_(nms_overlap=kind, nms_ios_thresh=0.9), frames()) == [2, 3], "the best score wins"
    assert kept(with_(outermost_thresh=0.9), frames()) == [0, 3], "the outermost wins, whatever its score"
    assert kept(with_(outermost_thresh=0.4), frames()) == [0]


@OFTEN
@given(seeds, st.sampled_from((0.3, 0.8, 0.99)))
def test_outermost_is_that_of_the_pixels(seed: int, share: float) -> None:
    rows = blobs(seed)
    flat = pixels(rows).reshape(len(rows), -1).astype(np.int64)
    areas = flat.sum(axis=1)
    stay: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (-areas[i], i)):
        if not any(flat[i] @ flat[j] > share * areas[i] for j in stay):
            stay.append(i)
    assert outermost(rows, with_(outermost_thresh=share)).tolist() == sorted(stay)


# ---- pixels


@OFTEN
@given(seeds, st.sampled_from(("smallest", "best")))
def test_shared_pixels_go_to_one_mask(seed: int, who: str) -> None:
    rows = blobs(seed)
    before = pixels(rows)
    key = rows.area if who == "smallest" else -rows.predicted_iou
    owner = np.full((rows.height, rows.width), -1)
    for i in sorted(range(len(rows)), key=lambda i: (key[i], rows.mask_id[i])):
        owner[before[i] & (owner < 0)] = i
    want = {i: owner == n for n, i in enumerate(rows.mask_id.tolist()) if (owner == n).any()}
    got = disjoint(rows, with_(shared_pixels=who))
    assert got.mask_id.tolist() == list(want), "in their order"
    for n, i in enumerate(got.mask_id.tolist()):
        y, x = np.nonzero(want[i])
        assert got.counts(n) == encode(want[i]) and got.area[n] == len(x)
        assert got.box[n].tolist() == [x.min(), y.min(), x.max(), y.max()]
        same = int(np.flatnonzero(rows.mask_id == i)[0])
        assert got.predicted_iou[n] == rows.predicted_iou[same]
    assert np.array_equal(pixels(got).any(axis=0), before.any(axis=0)) and pixels(got).sum(axis=0).max(initial=0) <= 1


def test_no_masks_pass_every_step() -> None:
    everything = FilterConfig(
        min_mask_region_area=5, min_area=3, max_area=900, nms_overlap="mask", nms_ios_thresh=0.5, outermost_thresh=0.5,
        score_quantile=0.5, max_masks_per_image=3, shared_pixels="best", sample=0.5, max_aspect_ratio=2.0,
    )  # fmt: skip
    assert kept(everything, table([]), crops=5) == []


# ---- the order


def test_what_is_dropped_for_itself_suppresses_nobody() -> None:
    rows = table([(0, 0, 20, 20), (0, 0, 20, 19)], iou=[0.99, 0.9])  # 441 and 420 px
    assert kept(with_(box_nms_thresh=0.7), rows) == [0]
    for rule in ({"max_area": 430}, {"tokens": (1,)}, {"max_aspect_ratio": 1.06}):
        want = [1] if "max_aspect_ratio" not in rule else [0]
        assert kept(with_(box_nms_thresh=0.7, **rule), rows) == want, rule
    assert kept(with_(box_nms_thresh=0.7, min_border_distance=1), table([(0, 1, 20, 20), (1, 1, 20, 20)])) == [1]


def test_areas_hold_for_what_comes_out() -> None:
    """Dots go, holes are filled, pixels are given away: no mask of the result breaks the range."""
    dotted, holed = np.zeros((40, 50), bool), np.zeros((40, 50), bool)
    dotted[5:15, 5:15] = dotted[30, 40] = True  # 101 px, 100 without the dot
    holed[20:35, 5:20] = True
    holed[25:27, 8:10] = False  # 221 px, 225 filled
    rows = table([(5, 5, 40, 30), (5, 20, 19, 34)], masks=[dotted, holed])
    assert kept(with_(min_area=101, max_area=221), rows) == [0, 1]
    assert kept(with_(min_area=101, min_mask_region_area=9), rows) == [1]
    assert kept(with_(max_area=221, min_mask_region_area=9), rows) == [0]
    under = table([(0, 0, 9, 9), (0, 0, 9, 7)])  # of 100 px the smaller one takes 80
    assert kept(with_(shared_pixels="smallest"), under) == [0, 1]
    assert kept(with_(shared_pixels="smallest", min_area=21), under) == [1]
    assert kept(with_(shared_pixels="smallest", min_area_share=0.011), under) == [1]


def test_outermost_comes_before_the_quantile_and_that_before_the_most() -> None:
    rows = frames()
    assert kept(with_(score_quantile=0.5), rows) == [1, 2]
    assert kept(with_(outermost_thresh=0.9, score_quantile=0.5), rows) == [3]
    assert kept(with_(max_masks_per_image=1), rows) == [2]
    assert kept(with_(outermost_thresh=0.9, max_masks_per_image=1), rows) == [3]


def test_the_most_are_chosen_before_pixels_are_shared() -> None:
    rows = table([(0, 0, 9, 9), (0, 0, 9, 4)], iou=[0.9, 0.5])
    alone = apply_filter(rows, with_(max_masks_per_image=1, shared_pixels="smallest"), 1)
    assert alone.mask_id.tolist() == [0] and alone.area.tolist() == [100], "no pixel goes to a mask that is not there"


@settings(max_examples=60, deadline=None)
@given(seeds, filters, st.booleans())
def test_a_sample_is_a_part_of_the_whole(seed: int, cfg: FilterConfig, crops: bool) -> None:
    rows = blobs(seed, CROPS if crops else PLAIN)
    whole = apply_filter(rows, replace(cfg, sample=1.0), 5 if crops else 1, seed)
    part = apply_filter(rows, replace(cfg, sample=0.4), 5 if crops else 1, seed)
    drawn = lottery(seed, whole.mask_id) < 0.4
    assert part.mask_id.tolist() == whole.mask_id[drawn].tolist()
    assert [part.counts(i) for i in range(len(part))] == [whole.counts(int(i)) for i in np.flatnonzero(drawn)]


@settings(max_examples=60, deadline=None)
@given(seeds, filters, st.booleans())
def test_every_candidate_stays_or_is_told_why_not(seed: int, cfg: FilterConfig, crops: bool) -> None:
    rows, n = blobs(seed, CROPS if crops else PLAIN), 5 if crops else 1
    masks, why = dropped_by(rows, cfg, n, seed)
    assert masks.mask_id.tolist() == apply_filter(rows, cfg, n, seed).mask_id.tolist()
    assert sorted([*masks.mask_id.tolist(), *why]) == rows.mask_id.tolist()
    neutral = FilterConfig(0, 0, box_nms_thresh=1.0, crop_nms_thresh=1.0)
    for name in set(why.values()):
        if name not in ("box_nms_thresh", "crop_nms_thresh"):
            assert getattr(cfg, name) != getattr(neutral, name), f"{name} is off and dropped something"


def test_the_reason_is_the_first_rule_that_drops() -> None:
    rows = table([(0, 0, 20, 20), (0, 0, 20, 19), (30, 30, 31, 31), (0, 30, 9, 39)], iou=[0.99, 0.9, 0.2, 0.9])
    cfg = with_(pred_iou_thresh=0.5, min_area=50, box_nms_thresh=0.7, min_border_distance=0, max_area=430)
    assert dropped_by(rows, cfg, 1)[1] == {0: "max_area", 2: "pred_iou_thresh"}
    cfg = replace(cfg, max_area=0)
    assert dropped_by(rows, cfg, 1)[1] == {1: "box_nms_thresh", 2: "pred_iou_thresh"}


# ---- settings


@OFTEN
@given(seeds, st.booleans())
def test_every_new_rule_is_off_by_default(seed: int, crops: bool) -> None:
    """The six settings of the official generator alone, and with all others spelt out as off."""
    official = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.7, "min_mask_region_area": 10}
    off = {
        "min_area": 0, "max_area": 0, "min_area_share": 0, "tokens": [0, 1, 2], "max_aspect_ratio": 0,
        "min_border_distance": 0, "nms_overlap": "box", "nms_ios_thresh": 1, "outermost_thresh": 1, "score_quantile": 0,
        "max_masks_per_image": 0, "shared_pixels": "keep", "sample": 1,
    }  # fmt: skip
    rows, n = blobs(seed, CROPS if crops else PLAIN), 5 if crops else 1
    a, b = (apply_filter(rows, from_tree(FilterConfig, tree), n) for tree in (official, official | off))
    assert a.mask_id.tolist() == b.mask_id.tolist()
    known = {"box_nms_thresh", "crop_nms_thresh", "max_area_share", *official, *off}
    assert known == set(FilterConfig().__dict__), "a rule that this test does not know"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_area": -1}, "filter.min_area is -1: it must be at least 0"),
        ({"min_area": 5, "max_area": 3}, "filter.min_area=5 lies above filter.max_area=3"),
        ({"min_area_share": 0.2, "max_area_share": 0.1}, "lies above filter.max_area_share=0.1"),
        ({"tokens": []}, "filter.tokens is []: expected some of 0, 1 and 2, each once"),
        ({"tokens": [0, 0]}, "each once"),
        ({"tokens": [3]}, "expected some of 0, 1 and 2"),
        ({"tokens": 1}, "expected a list"),
        ({"nms_overlap": "masks"}, "filter.nms_overlap is 'masks': known values: box, mask"),
        ({"shared_pixels": False}, "expected str"),
        ({"shared_pixels": "off"}, "known values: keep, smallest, best"),
        ({"score_quantile": 1}, "filter.score_quantile is 1: it must lie in [0, 1)"),
        ({"sample": 0}, "filter.sample is 0: it must lie in (0, 1]"),
        ({"sample": 1.5}, "it must lie in (0, 1]"),
        ({"sample": float("nan")}, "filter.sample is nan"),
        ({"outermost": 1}, "did you mean 'outermost_thresh'?"),
    ],
)  # fmt: skip
def test_refused_settings(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as e:
        from_tree(FilterConfig, changes, "filter.")
    assert words in str(e.value) and "\n" not in str(e.value)


def test_the_table_in_the_docs_has_every_setting() -> None:
    text = (Path(__file__).parents[3] / "docs/filters.md").read_text()
    named = [name for row in re.findall(r"^\| \d* *\| (`.*?`) \|", text, re.M) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(FilterConfig().__dict__)
    by_itself = [name for name in named if name in ON_RAW]
    assert by_itself == list(ON_RAW), "in the order of the code"
