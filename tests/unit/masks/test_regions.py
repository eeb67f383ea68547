"""Small regions, found on runs, against the official remove_small_regions, which looks at pixels through OpenCV."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskmill.masks.regions import clean_regions
from maskmill.masks.rle import compress_edges, decode, edges_of, encode
from tests.parity.official import amg

masks = hnp.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


def official(mask: np.ndarray, area: int) -> tuple[np.ndarray, bool]:
    """Holes, then islands."""
    filled, holes = amg.remove_small_regions(mask, area, "holes")
    if not filled.any():  # the official one looks for the largest island of none
        return filled, holes
    cleaned, islands = amg.remove_small_regions(filled, area, "islands")
    return cleaned, holes or islands


def remove_small_regions(mask: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """The cleaned mask, and whether anything changed; box, area and counts are those of its pixels."""
    found = clean_regions([encode(mask)], *mask.shape, min_area)
    if not found:
        return mask, False
    (x0, y0, x1, y1), area, counts = found[0]
    cleaned = decode(counts, *mask.shape)
    y, x = np.nonzero(cleaned)
    assert (x.min(), y.min(), x.max(), y.max(), len(x)) == (x0, y0, x1, y1, area) and counts == encode(cleaned)
    return cleaned, True


def same(mask: np.ndarray, area: int) -> None:
    theirs, changed = official(mask, area)
    ours, ours_changed = remove_small_regions(mask, area)
    assert ours.dtype == bool and np.array_equal(theirs, ours) and changed == ours_changed


@settings(max_examples=500, deadline=None)
@given(masks, st.integers(1, 30))
def test_holes_then_islands_is_official(mask: np.ndarray, area: int) -> None:
    same(mask, area)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60), st.sampled_from([0.02, 0.1, 0.5, 0.9, 0.98]))
def test_of_equal_islands_the_same_stays(seed: int, height: int, width: int, share: float) -> None:
    """Many ties: OpenCV numbers components by blocks of 2 x 2, row after row, and the first of the largest is kept."""
    mask = np.random.default_rng(seed).random((height, width)) < share
    same(mask, 10_000)
    same(mask, 3)


@pytest.mark.parametrize(("height", "width", "blurs"), [(300, 400, [1.0, 3.0, 9.0]), (1500, 2250, [3.0])])
def test_blobs_at_full_size(height: int, width: int, blurs: list[float]) -> None:
    """Noise: islands and holes of every size, at the borders too, several masks at once."""
    rng = np.random.default_rng(0)
    several = [cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), blur) > 0 for blur in blurs]
    for area in (1, 20, 100, 10_000_000):
        got = clean_regions([encode(m) for m in several], height, width, area)
        for i, mask in enumerate(several):
            theirs, changed = official(mask, area)
            assert changed == (i in got)
            assert not changed or got[i][2] == encode(theirs)


def square(hole: tuple[int, ...] = ()) -> np.ndarray:
    mask = np.zeros((20, 20), bool)
    mask[2:16, 2:16] = True
    if hole:
        mask[hole[0] : hole[0] + hole[2], hole[1] : hole[1] + hole[2]] = False
    return mask


@pytest.mark.parametrize(("side", "filled"), [(3, True), (4, False)])
def test_area_is_compared_strictly(side: int, filled: bool) -> None:
    """Quirk (1.4): a region of exactly min_area pixels stays."""
    mask, changed = remove_small_regions(square((5, 5, side)), 16)
    assert changed == filled and mask[5, 5] == filled


def test_background_is_8_connected_too() -> None:
    """Quirk (1.4): a hole that touches the outside over a corner only is no hole."""
    mask = square()
    mask[2, 2] = mask[3, 3] = False  # (2, 2) is outside; (3, 3) hangs on it by a corner
    cleaned, changed = remove_small_regions(mask, 5)
    assert not changed and np.array_equal(cleaned, mask)


def test_largest_small_island_stays() -> None:
    """Quirk (1.4): if every island is small, the largest one is kept; the first of equals."""
    mask = np.zeros((10, 10), bool)
    mask[0, 0:2] = mask[4, 4:7] = mask[8, 0:3] = True
    kept, changed = remove_small_regions(mask, 50)
    assert changed and kept.sum() == 3 and kept[4, 4:7].all()


def test_holes_come_before_islands() -> None:
    """Quirk (1.4): a ring of 12 pixels around a hole of 4 becomes an island of 16, which then is large enough."""
    ring = np.zeros((30, 30), bool)
    ring[2:22, 2:22] = True
    ring[24:28, 24:28] = True
    ring[25:27, 25:27] = False
    cleaned, changed = remove_small_regions(ring, 13)
    assert changed and cleaned[24:28, 24:28].all()


def test_whole_background_can_be_a_small_hole() -> None:
    """Quirk (1.4): the outside is a region like any other; if it is small, it is filled."""
    mask = np.ones((10, 10), bool)
    mask[0, :3] = False
    assert remove_small_regions(mask, 5)[0].all()


def test_empty_mask() -> None:
    """No island to keep; its background is left alone too, unless it is small."""
    empty = np.zeros((4, 5), bool)
    assert not remove_small_regions(empty, 20)[1]
    assert remove_small_regions(empty, 21)[0].all()


def test_no_masks() -> None:
    assert clean_regions([], 4, 5, 10) == {}


def test_large_image() -> None:
    """Places beyond 2**31: two pixels far apart in 50,000 x 50,000; the cost does not grow with the pixels."""
    side = 50_000
    edges, ends = np.array([1, 2, side * side - 1, side * side]), np.array([0, 4])
    ((box, area, counts),) = clean_regions(compress_edges(edges, ends, side, side), side, side, 2).values()
    assert box == (0, 1, 0, 1) and area == 1
    assert edges_of([counts], side, side)[0].tolist() == [1, 2]
