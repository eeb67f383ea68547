"""Small regions against the official remove_small_regions, both modes."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskmill.masks.regions import clean_regions
from maskmill.masks.rle import decode, encode
from tests.parity.official import amg

masks = hnp.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


def remove_small_regions(mask: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """The cleaned mask, and whether anything changed; box and area are those of its pixels."""
    found = clean_regions([encode(mask)], *mask.shape, min_area)
    if not found:
        return mask, False
    (x0, y0, x1, y1), area, counts = found[0]
    cleaned = decode(counts, *mask.shape)
    y, x = np.nonzero(cleaned)
    assert (x.min(), y.min(), x.max(), y.max(), len(x)) == (x0, y0, x1, y1, area)
    return cleaned, True


@settings(max_examples=300, deadline=None)
@given(masks, st.integers(1, 30))
def test_holes_then_islands_is_official(mask: np.ndarray, area: int) -> None:
    if not mask.any() and mask.size >= area:
        return  # the official one looks for the largest island of none
    filled, holes = amg.remove_small_regions(mask, area, "holes")
    theirs, islands = amg.remove_small_regions(filled, area, "islands")
    ours, changed = remove_small_regions(mask, area)
    assert ours.dtype == bool and np.array_equal(theirs, ours) and changed == (holes or islands)


def test_blobs_at_full_size() -> None:
    """Noise in a 300 x 400 mask: dozens of islands and holes of every size."""
    rng = np.random.default_rng(0)
    mask = cv2.GaussianBlur(rng.normal(size=(300, 400)), (0, 0), 3) > 0
    for area in (1, 20, 100, 10_000_000):
        filled, holes = amg.remove_small_regions(mask, area, "holes")
        theirs, islands = amg.remove_small_regions(filled, area, "islands")
        ours, changed = remove_small_regions(mask, area)
        assert np.array_equal(theirs, ours) and changed == (holes or islands)


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


def test_empty_mask_is_left_alone() -> None:
    mask, changed = remove_small_regions(np.zeros((4, 5), bool), 10)
    assert not mask.any() and not changed
