"""From logits to candidates: thresholds, stability, ids, and rows that do not depend on how the work is cut."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill import load_model
from maskmill.config import FilterConfig, GenerateConfig
from maskmill.filters.apply import apply_filter
from maskmill.generate import candidates, fullres
from maskmill.generate.candidates import decode_points, find_candidates
from maskmill.generate.fullres import score_masks, stability_score
from maskmill.generate.grids import crop_plan
from maskmill.masks.rle import decode
from maskmill.masks.table import MaskTable
from tests.parity.images import render
from tests.parity.official import amg
from tests.unit.generate import fake

IMAGE = np.zeros((61, 83, 3), np.uint8)
ALL = GenerateConfig(points_per_side=3, crop_n_layers=1, floor_pred_iou=0.0, floor_stability=0.0)
FLOORS: dict[str, Any] = {"floor_pred_iou": 0.3, "floor_stability": 0.5}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake.patch(monkeypatch)


@pytest.fixture
def no_edge_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fullres, "near_crop_edge", lambda boxes, *_: torch.zeros(len(boxes), dtype=torch.bool))


def same(a: MaskTable, b: MaskTable) -> None:
    """Every column equal, the masks as counts."""
    for name, column in a.columns().items():
        if name != "masks":
            other = getattr(b, name)
            assert column.dtype == other.dtype and np.array_equal(column, other), name  # type: ignore[union-attr, arg-type]
    assert [a.counts(i) for i in range(len(a))] == [b.counts(i) for i in range(len(b))]


# ---- stability


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30), st.sampled_from([0.0, 0.5, 1.0]))
def test_stability_is_official(seed: int, height: int, width: int, offset: float) -> None:
    logits = torch.randn(5, height, width, generator=torch.Generator().manual_seed(seed)) * 2
    theirs = amg.calculate_stability_score(logits, 0.0, offset)
    assert torch.equal(stability_score(logits, 0.0, offset), theirs.nan_to_num(0.0))


def test_stability_of_nothing_is_zero() -> None:
    """Quirk (1.3.3c): 0 / 0 is NaN in the official code, which a threshold of 0 would let through; ours is 0."""
    nothing = torch.full((1, 4, 4), -5.0)
    assert amg.calculate_stability_score(nothing, 0.0, 1.0).isnan().all()
    assert stability_score(nothing, 0.0, 1.0).tolist() == [0.0]


def test_stability_of_a_wide_image() -> None:
    """Quirk (1.3.3c): the official row counts are int16 and overflow beyond 32767 px; ours do not."""
    logits = torch.full((1, 2, 40_000), 5.0)
    logits[:, :, ::4] = 0.5
    assert amg.calculate_stability_score(logits, 0.0, 1.0).item() < 0
    assert stability_score(logits, 0.0, 1.0).tolist() == [0.75]


# ---- thresholds


def scored(monkeypatch: pytest.MonkeyPatch, iou: list[float], inner: int, cfg: GenerateConfig) -> MaskTable:
    """Candidates of one point whose three masks are 10 x 10 blocks, `inner` of 100 pixels above +1.

    Logits, model input and image are of one size, so both interpolation steps leave the logits as they are.
    """
    logits = torch.full((1, 3, 40, 40), -9.0)
    block = torch.full((100,), 0.5)
    block[:inner] = 9.0
    logits[:, :, 10:20, 10:20] = block.view(10, 10)
    model = fake.patch(monkeypatch, img_size=40)
    scores = torch.tensor([iou], dtype=torch.float32)
    monkeypatch.setattr(candidates, "decode_points", lambda *args: fake.above_floor(logits, scores, args[-1]))
    return find_candidates(model, np.zeros((40, 40, 3), np.uint8), replace(cfg, points_per_side=1))  # type: ignore[arg-type]


def test_predicted_iou_is_compared_strictly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quirk (1.3.3b): a score equal to the threshold, as float32, is dropped."""
    at = np.float32(0.88)
    above, below = np.nextafter(at, np.float32(2)), np.nextafter(at, np.float32(0))
    cfg = GenerateConfig(floor_pred_iou=0.88, floor_stability=0.0)
    got = scored(monkeypatch, [float(below), float(at), float(above)], 100, cfg)
    assert got.mask_id.tolist() == [2] and got.predicted_iou.tolist() == [above]


def test_predicted_iou_is_not_clamped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quirk (1.3.3b): it is a linear head; scores above 1 are kept as they are."""
    cfg = GenerateConfig(floor_pred_iou=0.88, floor_stability=0.0)
    assert scored(monkeypatch, [0.5, 1.0444, 7.0], 100, cfg).predicted_iou.tolist() == [np.float32(1.0444), 7.0]


@pytest.mark.parametrize(("inner", "kept"), [(94, 0), (95, 3), (96, 3)])
def test_stability_at_the_threshold_stays(inner: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quirk (1.3.3c): >=, in float32: 95 of 100 pixels pass a threshold of 0.95."""
    cfg = GenerateConfig(floor_pred_iou=0.0, floor_stability=0.95)
    assert len(scored(monkeypatch, [0.1, 0.2, 0.3], inner, cfg)) == kept


def test_threshold_zero_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quirk (1.3.3b, c): with 0 even a negative IoU and a stability of 0 pass."""
    off = GenerateConfig(floor_pred_iou=0.0, floor_stability=0.0)
    got = scored(monkeypatch, [-0.5, 0.0, 0.5], 0, off)
    assert got.stability_score.tolist() == [0.0, 0.0, 0.0] and len(got) == 3
    assert len(scored(monkeypatch, [-0.5, 0.0, 0.5], 100, replace(off, floor_pred_iou=1e-9))) == 1


def test_mask_is_strictly_above_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quirk (1.3.3d): a logit of exactly 0 is background."""
    logits = torch.tensor([[[5.0, 0.0, -1.0, 1e-9]]])
    crop = crop_plan(1, 4, ALL)[0]
    got = score_masks(logits, torch.tensor([0.9]), torch.tensor([0]), crop, 1, 4, ALL)
    assert decode(got.counts(0), 1, 4).tolist() == [[True, False, False, True]] and got.area.tolist() == [2]


@pytest.mark.usefixtures("no_edge_rule")
def test_empty_mask_passes_when_thresholds_are_off() -> None:
    """Quirk (1.3.3d): its box is the crop's origin, its area 0."""
    crop = crop_plan(61, 83, ALL)[4]
    got = score_masks(torch.full((1, crop.height, crop.width), -9.0), torch.tensor([0.9]),
                      torch.tensor([crop.first_prompt * 3]), crop, 61, 83, ALL)  # fmt: skip
    x, y = crop.box[:2]
    assert got.box.tolist() == [[x, y, x, y]] and got.area.tolist() == [0]
    assert not decode(got.counts(0), 61, 83).any()


# ---- ids


@pytest.mark.usefixtures("no_edge_rule")
def test_mask_id_is_three_times_prompt_plus_token(model: Any) -> None:
    """With nothing dropped, ids run through the plan; each row has its prompt's point and crop."""
    got = find_candidates(model, IMAGE, ALL)
    plan = crop_plan(61, 83, ALL)
    assert got.mask_id.tolist() == list(range(3 * 5 * 9))
    points = np.concatenate([c.points + np.array(c.box[:2]) for c in plan])
    assert np.array_equal(got.point, np.repeat(points, 3, axis=0))
    assert got.crop_index.tolist() == np.repeat(range(5), 27).tolist()
    assert got.crop_box.tolist() == [list(plan[i].box) for i in got.crop_index]


@pytest.mark.usefixtures("no_edge_rule")
def test_ids_do_not_depend_on_what_is_dropped(model: Any) -> None:
    loose, strict = find_candidates(model, IMAGE, ALL), find_candidates(model, IMAGE, replace(ALL, **FLOORS))
    assert 10 < len(strict) < len(loose)
    same(strict, loose.take(np.searchsorted(loose.mask_id, strict.mask_id)))


@pytest.mark.usefixtures("no_edge_rule")
def test_ids_count_prompts_of_empty_crops(model: Any) -> None:
    """A tiny image has crops without pixels: they give no masks, but their prompts keep their places."""
    cfg = replace(ALL, crop_n_layers=2, crop_overlap_ratio=0.0)
    plan = crop_plan(3, 3, cfg)
    hollow = [c.index for c in plan if c.width <= 0 or c.height <= 0]
    got = find_candidates(model, np.zeros((3, 3, 3), np.uint8), cfg)
    assert hollow and not set(hollow) & set(got.crop_index.tolist())
    assert got.mask_id.max() // 3 >= plan[-1].first_prompt or plan[-1].index in hollow
    first = np.array([c.first_prompt for c in plan])
    assert np.array_equal(np.searchsorted(first, got.mask_id // 3, side="right") - 1, got.crop_index)


# ---- rows do not depend on how the work is cut


@pytest.mark.parametrize("batch", [1, 2, 5, 9, 64])
def test_points_per_batch_changes_nothing(batch: int, model: Any) -> None:
    cfg = replace(ALL, **FLOORS)
    same(find_candidates(model, IMAGE, replace(cfg, points_per_batch=batch)), find_candidates(model, IMAGE, cfg))


@pytest.mark.parametrize("pixels", [1, 10_000, 30_000])
def test_upsampling_in_pieces_changes_nothing(pixels: int, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find_candidates(model, IMAGE, ALL)
    monkeypatch.setattr(fullres, "PIXELS_AT_A_TIME", pixels)
    same(find_candidates(model, IMAGE, ALL), whole)


@torch.inference_mode()
@pytest.mark.parametrize("batch", [64, 5])
def test_a_row_does_not_depend_on_its_neighbours(batch: int) -> None:
    """Promise 4: one point alone has the bits it has among 64, because a ragged batch is filled up."""
    nano = load_model("nano", device="cpu")
    image = render(1, 240, 320)
    cfg = GenerateConfig(points_per_side=8, points_per_batch=batch, floor_pred_iou=0.0)
    crop = crop_plan(240, 320, cfg)[0]
    embedding, size = nano.encode(image)
    args = (nano, nano.share(embedding), size, crop)
    masks, iou, place = decode_points(*args, crop.points, cfg)
    assert place.tolist() == list(range(3 * 64))
    some = replace(cfg, floor_pred_iou=float(iou.median()))
    for n, chosen in ((1, cfg), (3, cfg), (17, some), (63, cfg)):
        logits, scores, at = decode_points(*args, crop.points[-n:], chosen)
        at = at + 3 * (64 - n)
        assert len(logits) == 3 * n if chosen is cfg else 0 < len(logits) < 3 * n
        assert torch.equal(logits, masks[at]) and torch.equal(scores, iou[at])


# ---- floor, then filter

FILTERS = [
    FilterConfig(pred_iou_thresh=0.3, stability_score_thresh=0.5),
    FilterConfig(pred_iou_thresh=0.6, stability_score_thresh=0.7, min_mask_region_area=40),
    FilterConfig(pred_iou_thresh=0.5, stability_score_thresh=0.6, box_nms_thresh=0.3, crop_nms_thresh=0.5),
    FilterConfig(pred_iou_thresh=0.4, stability_score_thresh=0.5, max_area_share=0.5),
]


@pytest.mark.parametrize("cfg", FILTERS)
def test_filtering_later_is_filtering_at_once(cfg: FilterConfig, model: Any) -> None:
    """Promise 5: candidates at a loose floor, filtered, are the masks of a run whose floor is the filter itself."""
    generate = replace(
        ALL, points_per_side=8, crop_edge_tolerance=3.0, crop_n_layers=2, crop_n_points_downscale_factor=2
    )
    crops = len(crop_plan(61, 83, generate))
    later = apply_filter(find_candidates(model, IMAGE, generate), cfg, crops)
    own = replace(generate, floor_pred_iou=cfg.pred_iou_thresh, floor_stability=cfg.stability_score_thresh)
    at_once = apply_filter(find_candidates(model, IMAGE, own), cfg, crops)
    assert len(later) > 20
    same(later, at_once)


def test_crop_edge_rule_is_applied(model: Any) -> None:
    """Candidates near an inner crop edge are dropped, those of the whole image never."""
    got = find_candidates(model, IMAGE, ALL)
    assert (got.crop_index == 0).sum() == 27
    assert len(got) < 27 * 5
    none = np.zeros(4, bool)
    for crop in crop_plan(61, 83, ALL)[1:]:
        inner = np.array(crop.box) != (0, 0, 83, 61)
        near = np.abs(got.box[got.crop_index == crop.index] - np.array(crop.box)) <= 20
        far = np.abs(got.box[got.crop_index == crop.index] - np.array((0, 0, 83, 61))) > 20
        none |= (near & far & inner).any(axis=0)
    assert not none.any()
