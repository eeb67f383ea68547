from pathlib import Path

import numpy as np
import pytest

from maskmill.evaluate import baselines
from maskmill.evaluate.config import EvaluateConfig
from maskmill.evaluate.run import choose_masks, evaluate
from maskmill.sam.build import load_model
from maskmill.storage.annotated import Annotated, open_annotated
from tests.unit.evaluate.test_one_click import rectangle
from tests.unit.training.sets import write_set


def test_disc_figures_equal_drawn_discs() -> None:
    mask = rectangle(50, 80, (20, 10, 60, 40))
    ious = baselines.disc_ious(mask, 40, 25)
    yy, xx = np.mgrid[0:50, 0:80]
    for radius, iou in zip(baselines.RADII, ious, strict=True):
        disc = (yy - 25) ** 2 + (xx - 40) ** 2 <= (radius * 80) ** 2
        assert iou == pytest.approx((disc & mask).sum() / (disc | mask).sum())


def test_the_three_best_radii_are_found() -> None:
    ious = np.zeros((3, len(baselines.RADII)))
    ious[0, 2], ious[1, 5], ious[2, 9] = 0.6, 0.9, 0.3
    radii, mean = baselines.best_discs(ious)
    assert radii == tuple(baselines.RADII[i] for i in (2, 5, 9)) and mean == pytest.approx(0.6)


def test_the_guess_is_the_segment_at_the_click() -> None:
    labels = np.zeros((30, 40), np.int64)
    segment, other = rectangle(30, 40, (5, 5, 25, 15)), rectangle(30, 40, (5, 15, 25, 25))
    labels[segment], labels[other] = 1, 2
    assert baselines.segment_iou(labels, segment, (6, 6)) == 1.0
    assert baselines.segment_iou(labels, segment | other, (6, 6)) == 0.5
    assert baselines.segment_iou(labels, segment, (6, 16)) == 0.0


def test_segments_follow_colours_and_grow_with_the_scale() -> None:
    image = np.full((120, 160, 3), 90, np.uint8) + np.random.default_rng(0).integers(0, 40, (120, 160, 1), np.uint8)
    mask = rectangle(120, 160, (20, 20, 100, 100))
    image[mask] = (230, 40, 40)
    counts = [baselines.segments(image, scale).max() + 1 for scale in baselines.SCALES]
    assert counts[0] > counts[1] > counts[2] >= 2
    got = baselines.score_baselines(image, mask[None], [(60, 60)])
    assert got.segments.shape == (1, 3) and got.discs.shape == (1, len(baselines.RADII))
    assert got.segments.min() > 0.8  # smoothing takes some of the edge


def test_the_best_of_three_is_chosen_mask_by_mask_and_the_radii_for_all() -> None:
    discs = np.zeros((2, len(baselines.RADII)))
    discs[0, 2], discs[1, 5], discs[1, 9] = 0.6, 0.2, 0.5
    scores = [
        baselines.BaselineScores(np.array([[0.1, 0.7, 0.3]]), discs[:1]),
        baselines.BaselineScores(np.array([[0.4, 0.2, 0.3]]), discs[1:]),
    ]
    got = baselines.best_guesses(scores)
    assert got.segments.tolist() == [0.7, 0.4] and got.discs.tolist() == [0.6, 0.5]
    assert {baselines.RADII[2], baselines.RADII[9]} <= set(got.radii)


def test_baselines_stand_beside_the_model(tmp_path: Path) -> None:
    data = open_annotated(str(write_set(tmp_path / "set", 2)))
    cfg = EvaluateConfig(clicks=(1,), noc=(), points_per_side=0, resamples=20, baselines=True)
    got = evaluate(load_model("nano", device="cpu"), data, cfg)
    tree, table = got.summary()["baselines"], got.table()
    for name in ("segments", "discs"):
        assert tree[name]["mean"] == pytest.approx(np.mean(table[name].to_pylist()), abs=1e-4)
        above = np.array(table["oracle"].to_pylist()) - np.array(table[name].to_pylist())
        assert tree[name]["oracle_above"]["mean"] == pytest.approx(above.mean(), abs=1e-4)
    assert tree["segments"]["mean"] > 0.6 and tree["discs"]["mean"] > 0.6  # boxes of one colour each


def test_a_share_of_the_masks_is_drawn_mask_by_mask() -> None:
    found = Annotated("a", np.zeros((4, 4, 3), np.uint8), tuple(range(4000)), ("x",) * 4000, (None,) * 4000)
    kept = [choose_masks(found, i, EvaluateConfig(mask_share=0.25)).ids for i in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2] and all(abs(len(k) - 1000) < 110 for k in kept)  # 4 deviations
    assert choose_masks(found, 0, EvaluateConfig()).ids == found.ids
