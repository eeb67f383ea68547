"""Run lengths against pycocotools and the official encoder."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from maskmill.errors import UserError
from maskmill.masks.rle import (
    CutMask,
    area,
    compress,
    compress_edges,
    decode,
    edges_of,
    encode,
    runs_of,
    uncompress,
)
from tests.parity.official import amg

sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
masks = hnp.arrays(bool, sizes)


def runs(mask: np.ndarray) -> list[int]:
    return runs_of(mask, 0, 0, *mask.shape).tolist()  # type: ignore[no-any-return]


@settings(max_examples=200, deadline=None)
@given(masks)
def test_encode_is_pycocotools_byte_for_byte(mask: np.ndarray) -> None:
    counts = encode(mask)
    assert counts == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert np.array_equal(decode(counts, *mask.shape), mask)
    assert decode(counts, *mask.shape).dtype == bool
    assert area(counts, *mask.shape) == mask.sum()


@settings(max_examples=200, deadline=None)
@given(masks)
def test_runs_are_the_official_ones(mask: np.ndarray) -> None:
    theirs = amg.mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]
    assert runs(mask) == theirs["counts"]
    assert uncompress(encode(mask), *mask.shape) == theirs["counts"]
    assert compress(np.array(theirs["counts"]), *mask.shape) == amg.coco_encode_rle(theirs)["counts"]


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 7), (7, 1), (4, 5)])
def test_all_zero_is_one_run(h: int, w: int) -> None:
    assert runs(np.zeros((h, w), bool)) == [h * w]


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 7), (7, 1), (4, 5)])
def test_all_one_starts_with_an_empty_run(h: int, w: int) -> None:
    assert runs(np.ones((h, w), bool)) == [0, h * w]


def test_runs_merge_over_columns_that_touch_bottom_and_top() -> None:
    mask = np.zeros((3, 4), bool)
    mask[1:, 1] = mask[:2, 2] = True
    assert runs(mask) == [4, 4, 4]


def test_single_row_and_column() -> None:
    line = np.array([True, True, False, True])
    assert runs(line[None, :]) == runs(line[:, None]) == [0, 2, 1, 1]


def test_first_pixel_set_gives_a_leading_zero() -> None:
    """Quirk (amg.md 1.3.4): counts begin with the zeros, even when there are none."""
    assert runs(np.eye(2, dtype=bool)) == [0, 1, 2, 1]


@settings(max_examples=200, deadline=None)
@given(st.data(), masks, sizes)
def test_cut_mask_is_its_place_in_the_image(data: st.DataObject, inside: np.ndarray, margin: tuple[int, int]) -> None:
    """Encoding the box alone gives what encoding the whole image gives."""
    h, w = inside.shape[0] + margin[0] - 1, inside.shape[1] + margin[1] - 1
    y0, x0 = (data.draw(st.integers(0, m - 1)) for m in margin)
    whole = np.zeros((h, w), bool)
    whole[y0 : y0 + inside.shape[0], x0 : x0 + inside.shape[1]] = inside
    cut = CutMask.cut(inside, x0, y0, h, w)
    assert cut.counts() == encode(whole)
    assert np.array_equal(cut.inside(), inside)
    assert cut.runs().sum() == h * w


def test_large_image() -> None:
    """Pixel offsets beyond 2**31 do not overflow."""
    cut = CutMask.cut(np.ones((2, 2), bool), 49_998, 49_998, 50_000, 50_000)
    assert cut.runs().tolist() == [49_998 * 50_000 + 49_998, 2, 49_998, 2]


# ---- many masks at once


@settings(max_examples=200, deadline=None)
@given(st.data(), sizes, st.integers(0, 4))
def test_edges_and_back(data: st.DataObject, size: tuple[int, int], n: int) -> None:
    """The strings are pycocotools'; the edges are where the runs of ones begin and end."""
    masks = [data.draw(hnp.arrays(bool, size)) for _ in range(n)]
    counts = [encode(m) for m in masks]
    edges, ends = edges_of(counts, *size)
    assert compress_edges(edges, ends, *size) == counts
    for i, mask in enumerate(masks):
        flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])
        assert edges[ends[i] : ends[i + 1]].tolist() == np.flatnonzero(np.diff(flat)).tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_empty_runs_join_their_neighbours(runs: list[int]) -> None:
    """Legal in COCO, made by nobody here: pycocotools decodes them, and so do we."""
    size = (1, sum(runs))
    if size[1]:
        counts = compress(np.array(runs), *size)
        assert compress_edges(*edges_of([counts], *size), *size) == [encode(decode(counts, *size))]


def test_long_runs() -> None:
    """Numbers of one to seven characters, both signs, in an image of 2.5 gigapixels, beyond int32."""
    side = 50_000
    runs = np.array([5, 2_000_000_000, 1, 31, 32, 1023, 1024, 300_000_000])
    runs = np.append(runs, side * side - runs.sum())
    edges = np.cumsum(runs)[:-1]
    (counts,) = compress_edges(edges, np.array([0, len(edges)]), side, side)
    assert counts == compress(runs, side, side)
    assert edges_of([counts], side, side)[0].tolist() == edges.tolist()


@pytest.mark.parametrize("broken", ["", "~", "52", "543", "54\u00e4", "54\u2014", "5o", "o" * 20, "5O0", "0"])
def test_broken_counts_are_named(broken: str) -> None:
    """Too short, too long, cut off inside a number, foreign characters, a negative run."""
    good = encode(np.eye(3, dtype=bool))
    with pytest.raises(UserError, match="3 x 3"):
        edges_of([good, broken, good], 3, 3)
