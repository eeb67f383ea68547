"""Every figure against a slow way to get it."""

import math
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.masks.rle import encode
from maskmill.report.stats import (
    Masks,
    center_density,
    concavity,
    crop_layers,
    hole_share,
    masks_per_image,
    near_duplicates,
    percent,
    stratified,
)

masks = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32), st.floats(0.1, 0.9)).map(
    lambda t: np.random.default_rng(t[2]).random(t[:2]) < t[3]
)


def hull_area(points: list[tuple[int, int]]) -> float:
    """Andrew's monotone chain, then the shoelace formula."""

    def half(ordered: list[tuple[int, int]]) -> list[tuple[int, int]]:
        out: list[tuple[int, int]] = []
        for p in ordered:
            while len(out) > 1:
                (ax, ay), (bx, by) = out[-2], out[-1]
                if (bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax) > 0:
                    break
                out.pop()
            out.append(p)
        return out[:-1]

    points = sorted(set(points))
    hull = half(points) + half(points[::-1])
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(hull, hull[1:] + hull[:1], strict=True))) / 2


@given(masks)
@settings(deadline=None)
def test_concavity_is_one_minus_area_over_hull(mask: np.ndarray) -> None:
    ys, xs = np.nonzero(mask)
    if len(xs) == 0:
        assert concavity(mask) == 0
        return
    corners = [(int(x) + dx, int(y) + dy) for x, y in zip(xs, ys, strict=True) for dx in (0, 1) for dy in (0, 1)]
    assert concavity(mask) == pytest.approx(1 - mask.sum() / hull_area(corners), abs=1e-6)


def test_known_shapes() -> None:
    assert concavity(np.ones((7, 11), bool)) == 0
    plus = np.zeros((3, 3), bool)
    plus[1], plus[:, 1] = True, True
    assert concavity(plus) == pytest.approx(1 - 5 / 7)  # four half squares are missing from its hull of 7
    ring = np.ones((5, 5), bool)
    ring[1:4, 1:4] = False
    assert hole_share(ring) == pytest.approx(9 / 25)
    ring[0, 0] = False  # 8-connected background runs out through a missing corner
    assert hole_share(ring) == 0


@given(masks)
@settings(deadline=None)
def test_holes_are_background_that_cannot_reach_the_outside(mask: np.ndarray) -> None:
    height, width = mask.shape
    wall = np.pad(mask, 1)
    seen = np.zeros_like(wall)
    queue = deque([(0, 0)])
    seen[0, 0] = True
    while queue:
        y, x = queue.popleft()
        for ny in range(max(0, y - 1), min(height + 2, y + 2)):
            for nx in range(max(0, x - 1), min(width + 2, x + 2)):
                if not seen[ny, nx] and not wall[ny, nx]:
                    seen[ny, nx] = True
                    queue.append((ny, nx))
    holes = int((~wall & ~seen).sum())
    assert hole_share(mask) == pytest.approx(holes / max(1, holes + int(mask.sum())))


def columns(n: int, rng: np.random.Generator) -> Masks:
    height, width = rng.integers(40, 90, n).astype(np.int32), rng.integers(40, 90, n).astype(np.int32)
    w, h = rng.integers(0, 20, n), rng.integers(0, 20, n)
    x, y = (rng.random(n) * (width - w)).astype(int), (rng.random(n) * (height - h)).astype(int)
    scores = rng.random((2, n)).astype(np.float32)
    return Masks(
        image_id=rng.integers(0, 5, n),
        mask_id=rng.integers(0, 3000, n),
        height=height,
        width=width,
        area=((w + 1) * (h + 1)).astype(np.int32),
        box=np.stack([x, y, w, h], axis=1).astype(np.float32),
        predicted_iou=scores[0],
        stability_score=scores[1],
        layer=np.zeros(n, np.int32),
    )


def test_size_center_and_their_density() -> None:
    masks = columns(300, np.random.default_rng(1))
    for i in range(len(masks)):
        h, w = int(masks.height[i]), int(masks.width[i])
        x, y, bw, bh = (int(v) for v in masks.box[i])
        assert masks.relative_size[i] == pytest.approx(math.sqrt(int(masks.area[i]) / (h * w)))
        assert masks.center[i].tolist() == pytest.approx([(x + (bw + 1) / 2) / w, (y + (bh + 1) / 2) / h])
    grid = center_density(masks.center, bins=4)
    slow = np.zeros((4, 4))
    for cx, cy in masks.center:
        slow[min(3, int(cy * 4)), min(3, int(cx * 4))] += 1 / 300
    assert np.allclose(grid, slow) and grid.sum() == pytest.approx(1)


def test_masks_per_image_counts_those_without_too() -> None:
    owners = np.array([7, 3, 7, 7, 100, 3])
    images = np.array([1, 3, 7, 50])
    assert masks_per_image(owners, images).tolist() == [0, 2, 3, 0]
    assert masks_per_image(owners[:0], images).tolist() == [0, 0, 0, 0]


def test_percent_leaves_out_what_is_unknown() -> None:
    values = np.array([0.1, 0.4, np.nan, 0.45, 1.0], np.float32)
    assert percent(values, np.array([0, 0.5, 1])).tolist() == [75, 25]
    assert percent(values, np.array([0, 0.5, 1]), of=10).tolist() == [30, 10]
    assert percent(np.full(3, np.nan), np.array([0, 0.5, 1])).tolist() == [0, 0]


def test_crop_layers_follow_the_plan() -> None:
    from maskmill.config import GenerateConfig
    from maskmill.generate.grids import crop_plan

    cfg = GenerateConfig(points_per_side=6, crop_n_layers=2, crop_n_points_downscale_factor=2)
    plan = crop_plan(70, 90, cfg)
    layer = [crop.layer for crop in plan for _ in range(3 * len(crop.points))]
    prompts = [sum(len(c.points) for c in plan if c.layer == n) for n in range(3)]
    assert crop_layers(np.arange(len(layer)), prompts).tolist() == layer
    assert crop_layers(np.array([0, 10**12]), [1]).tolist() == [0, 0]  # an import has any ids


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 40), st.integers(0, 99))
@settings(deadline=None)
def test_stratified_takes_as_many_of_each(strata: list[int], count: int, seed: int) -> None:
    rows = np.array(strata, np.int64)
    drawn = stratified(rows, count, np.random.default_rng(seed))
    assert len(drawn) == min(count, len(rows)) == len(set(drawn.tolist()))
    taken = {s: int((rows[drawn] == s).sum()) for s in set(strata)}
    left = {s for s in taken if taken[s] < strata.count(s)}
    assert all(taken[s] <= min((taken[o] for o in left), default=99) + 1 for s in taken)


def test_near_duplicates_against_pixels() -> None:
    rng = np.random.default_rng(4)
    base = np.zeros((40, 50), bool)
    base[5:30, 6:40] = True
    shapes = [base, base & (rng.random(base.shape) < 0.95), np.roll(base, 3, 1), ~base, np.roll(base, 9, 0)]
    boxes = []
    for mask in shapes:
        ys, xs = np.nonzero(mask)
        boxes.append([xs.min(), ys.min(), xs.max() - xs.min(), ys.max() - ys.min()])
    found = near_duplicates(np.array(boxes, float), [encode(m) for m in shapes], 40, 50)
    assert {(i, j) for i, j, _ in found} == {(0, 1), (0, 2), (1, 2)}  # box IoU of the others is below 0.6
    for i, j, iou in found:
        assert iou == pytest.approx((shapes[i] & shapes[j]).sum() / (shapes[i] | shapes[j]).sum())
    assert [iou for *_, iou in found] == sorted((iou for *_, iou in found), reverse=True)
    assert near_duplicates(np.zeros((0, 4)), [], 40, 50) == []
