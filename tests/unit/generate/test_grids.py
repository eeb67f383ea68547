"""Grids and crops against the official functions, and against three records of SA-1B itself."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskmill.config import GenerateConfig, resolve
from maskmill.generate.grids import crop_boxes, crop_plan, layer_grids, point_grid
from tests.parity.official import amg

SA1B = GenerateConfig(crop_n_layers=2, crop_n_points_downscale_factor=2)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 16, 32, 33, 64])
def test_point_grid_is_official(n: int) -> None:
    """Quirk (1.2): the same float64 bits, x fastest, row-major."""
    assert np.array_equal(point_grid(n), amg.build_point_grid(n))
    assert point_grid(n)[:, 0].tolist()[:n] == np.linspace(1 / (2 * n), 1 - 1 / (2 * n), n).tolist()


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("n", [9, 10, 32, 33])
def test_layer_grids_are_official(n: int, factor: int) -> None:
    """Quirk (1.2): int(n / factor**layer) points a side."""
    cfg = GenerateConfig(points_per_side=n, crop_n_layers=2, crop_n_points_downscale_factor=factor)
    for ours, theirs in zip(layer_grids(cfg), amg.build_all_layer_point_grids(n, 2, factor), strict=True):
        assert np.array_equal(ours, theirs)


def test_a_layer_keeps_one_point() -> None:
    """The official grid of a layer with no point left divides by zero; ours has one point."""
    with pytest.raises(ZeroDivisionError):
        amg.build_all_layer_point_grids(2, 2, 2)
    cfg = GenerateConfig(points_per_side=2, crop_n_layers=2, crop_n_points_downscale_factor=2)
    assert [len(g) for g in layer_grids(cfg)] == [4, 1, 1]


sides = st.integers(1, 5000)


@settings(max_examples=300, deadline=None)
@given(sides, sides, st.integers(0, 4), st.floats(0, 0.99))
@example(1500, 2250, 2, 512 / 1500)
@example(1, 1, 3, 0.5)
def test_crop_boxes_are_official(height: int, width: int, layers: int, ratio: float) -> None:
    """Quirk (1.2): x is the outer, y the inner loop; the last boxes are clipped to the image."""
    theirs, their_layers = amg.generate_crop_boxes((height, width), layers, ratio)
    ours, our_layers = crop_boxes(height, width, layers, ratio)
    assert [list(b) for b in ours] == theirs and our_layers == their_layers


def test_sa1b_has_21_crops_and_3072_points() -> None:
    plan = crop_plan(1500, 2250, SA1B)
    assert [sum(c.layer == i for c in plan) for i in range(3)] == [1, 4, 16]
    assert {(c.layer, c.width, c.height) for c in plan} >= {(0, 2250, 1500), (1, 1381, 1006), (2, 755, 567)}
    assert sum(len(c.points) for c in plan) == 3072 == plan[-1].first_prompt + len(plan[-1].points)
    named = resolve(config="sa1b").generate
    assert (named.crop_n_layers, named.crop_n_points_downscale_factor, named.points_per_side) == (2, 2, 32)
    assert named.crop_overlap_ratio == 512 / 1500


@pytest.mark.parametrize(
    ("height", "width", "crop_xywh", "point"),
    [
        (2060, 1500, (622, 902, 567, 707), (940.9375, 1034.5625)),  # sa_1
        (1500, 2250, (998, 0, 755, 567), (1233.9375, 177.1875)),  # sa_560
        (1500, 2000, (436, 622, 692, 567), (825.25, 799.1875)),  # sa_3032002
    ],
)
def test_real_sa1b_records_lie_on_the_plan(
    height: int, width: int, crop_xywh: tuple[int, ...], point: tuple[float, float]
) -> None:
    """Their crop_box is exactly a box of layer 2 and their point exactly a point of its 8 x 8 grid (amg.md 1.6)."""
    x, y, w, h = crop_xywh
    crop = next(c for c in crop_plan(height, width, SA1B) if c.box == (x, y, x + w, y + h))
    assert crop.layer == 2 and len(crop.points) == 64
    assert list(point) in (crop.points + np.array([x, y])).tolist()


def test_first_prompt_counts_all_points_before() -> None:
    """The place of a prompt runs through crops in plan order."""
    plan = crop_plan(333, 517, GenerateConfig(points_per_side=6, crop_n_layers=2, crop_n_points_downscale_factor=2))
    assert [c.index for c in plan] == list(range(21))
    assert [c.first_prompt for c in plan] == np.cumsum([0, 36, *[9] * 4, *[1] * 15]).tolist()


def test_points_are_scaled_to_the_crop() -> None:
    plan = crop_plan(100, 200, GenerateConfig(points_per_side=2, crop_n_layers=1))
    assert plan[0].points.tolist() == [[50, 25], [150, 25], [50, 75], [150, 75]]
    assert plan[1].points.dtype == np.float64 and plan[1].points.max() < plan[1].width


def test_given_grids() -> None:
    grids = (((0.5, 0.25),), ((0.1, 0.2), (0.3, 0.4)))
    cfg = GenerateConfig(points_per_side=None, point_grids=grids, crop_n_layers=1)
    assert [g.tolist() for g in layer_grids(cfg)] == [[[0.5, 0.25]], [[0.1, 0.2], [0.3, 0.4]]]
    assert len(crop_plan(10, 10, cfg)) == 5
