"""Segmentations of any kind -> rows: pixels, boxes, orientation, and what is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from maskmill.masks.rle import decode, encode, uncompress
from maskmill.storage.foreign import ForeignImage, ForeignMask, Grid, foreign_rows, join_runs, turn, turn_box
from maskmill.storage.pixels import _AS_STORED, to_upright
from maskmill.storage.schemas import MASKS, broken_masks

H, W = 12, 17
masks = hnp.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


def row(segmentation: Any, grid: Grid | None = None, **more: Any) -> dict[str, Any]:
    """The only mask of an image."""
    image = ForeignImage(7, None, None, [ForeignMask(3, segmentation, **more)])
    table = foreign_rows(image, 7, grid or Grid(H, W, 1))
    assert table.schema == MASKS and broken_masks(table) == []
    out: dict[str, Any] = table.to_pylist()[0]
    return out


def error(segmentation: Any, grid: Grid | None = None) -> str:
    with pytest.raises(ValueError) as e:
        row(segmentation, grid)
    return str(e.value)


def blob(height: int = H, width: int = W) -> np.ndarray:
    """A mask without any symmetry."""
    mask = np.zeros((height, width), bool)
    mask[2:7, 3:9] = True
    mask[5:11, 8] = True
    mask[3, 4] = False
    return mask


@settings(max_examples=150, deadline=None)
@given(masks)
def test_rle_of_both_kinds_keeps_the_pixels(mask: np.ndarray) -> None:
    h, w = mask.shape
    counts = encode(mask)
    for segmentation in (counts, uncompress(counts, h, w)):
        got = row({"size": [h, w], "counts": segmentation}, Grid(h, w, 1))
        assert got["counts"] == counts and got["area"] == mask.sum()
        y, x = np.nonzero(mask)
        box = [x.min(), y.min(), np.ptp(x), np.ptp(y)] if len(x) else [0, 0, 0, 0]
        assert [got[f"bbox_{n}"] for n in "xywh"] == box


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=12))
def test_empty_runs_change_nothing(parts: list[tuple[bool, int]]) -> None:
    """Legal, and written by some tools; the stored code has none, so that pycocotools finds the right box."""
    runs, value = [], False
    for v, n in parts:
        runs += [n] if v == value else [0, n]
        value = not v
    pixels = np.repeat(np.arange(len(runs)) % 2, runs).astype(bool)
    if len(pixels):
        got = row({"size": [len(pixels), 1], "counts": runs}, Grid(len(pixels), 1, 1))
        assert got["counts"] == encode(pixels[:, None])
        assert join_runs(runs).sum() == len(pixels)


def test_polygons_are_drawn_as_pycocotools_does() -> None:
    """Two parts of one object; one reaches over the edge."""
    polygons = [[1.5, 1, 8, 2.25, 4, 9], [12, 3, 30, 3, 30, 8.5, 12, 8]]
    want = np.zeros((H, W), bool)
    for polygon in polygons:
        want |= coco.decode(coco.frPyObjects([polygon], H, W)[0]).astype(bool)
    got = row(polygons)
    assert (decode(got["counts"], H, W) == want).all() and got["area"] == want.sum() > 20


@pytest.mark.parametrize("orientation", range(2, 9))
def test_to_upright_undoes_the_stored_view(orientation: int) -> None:
    stored = np.arange(15 * 3).reshape(3, 5, 3)
    upright = to_upright(stored, orientation)
    assert (_AS_STORED[orientation](upright) == stored).all()
    assert upright.shape == ((5, 3, 3) if orientation >= 5 else (3, 5, 3))


@pytest.mark.parametrize("orientation", range(5, 9))
def test_a_mask_of_the_stored_grid_is_turned_with_its_image(orientation: int) -> None:
    """Pixels, box, prompt point and crop; one on the upright grid stays."""
    mask, grid = blob(), Grid(W, H, orientation)
    got = row({"size": [H, W], "counts": encode(mask)}, grid, point=(8.0, 6.0), crop=(2, 1, 9, 5))
    want = to_upright(mask, orientation)
    assert (decode(got["counts"], W, H) == want).all() and (got["height"], got["width"]) == (W, H)
    point, crop = np.zeros((H, W), bool), np.zeros((H, W), bool)
    point[6, 8] = crop[1:6, 2:11] = True
    assert to_upright(point, orientation)[int(got["point_y"]), int(got["point_x"])]
    x, y, w, h = (got[f"crop_{n}"] for n in "xywh")
    inside = np.zeros((W, H), bool)
    inside[y : y + h, x : x + w] = True
    assert (to_upright(crop, orientation) == inside).all()
    upright = row({"size": [W, H], "counts": encode(want)}, grid, point=(1.5, 2.5))
    assert upright["counts"] == encode(want) and (upright["point_x"], upright["point_y"]) == (1.5, 2.5)
    assert turn(orientation, 0, 0, W - 1, H - 1) != (0, 0) or orientation == 5
    assert turn_box(orientation, (0, 0, W, H), W, H) == (0, 0, H, W)


@pytest.mark.parametrize("orientation", [1, 3])
def test_without_a_quarter_turn_another_size_is_refused(orientation: int) -> None:
    words = error({"size": [W, H], "counts": encode(blob().T)}, Grid(H, W, orientation))
    assert words == f"annotation 3: its size is {H}x{W}, the image is {W}x{H}"


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (None, "it has no mask"),
        ([], "it has no mask"),
        ({"counts": "0"}, "RLE has size None"),
        ({"size": [H, "x"], "counts": "0"}, "RLE has size"),
        ({"size": [H, W, 1], "counts": "0"}, "RLE has size"),
        ({"size": [1 << 40, 1 << 40], "counts": [1 << 80]}, "its size is"),
        ({"size": [H, W]}, "counts are 'None'"),
        ({"size": [H, W], "counts": "garbage!"}, "RLE is broken: counts are"),
        ({"size": [H, W], "counts": encode(blob())[:-2]}, "RLE is broken"),
        ({"size": [H, W], "counts": [3, 4]}, "counts cover 7 pixels of 17x12"),
        ({"size": [H, W], "counts": [-4, H * W + 4]}, "RLE is broken"),
        ({"size": [H, W], "counts": [1.0, H * W - 1]}, "RLE is broken"),
        ([[1, 2, 3, 4]], "three or more"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three or more"),
        ([1, 2, 3, 4, 5, 6], "three or more"),
        ([[1, 2, 3, 4, 5, float("nan")]], "no number"),
        ([[1, 2, 3, "4", 5, 6]], "no number"),
        ([[1, 2, 3, 4, 5, 1e9]], "leaves the image, 17x12, by far"),
    ],
)
def test_what_is_broken_is_named(segmentation: Any, words: str) -> None:
    assert (said := error(segmentation)).startswith("annotation 3: ") and words in said


def test_sizes_that_disagree_and_ids_twice() -> None:
    rle = {"size": [H, W], "counts": encode(blob())}
    with pytest.raises(ValueError, match="the annotations are for 9x9, the image is 17x12"):
        foreign_rows(ForeignImage(1, 9, 9, []), 1, Grid(H, W, 1))
    with pytest.raises(ValueError, match="annotation 5: its id stands there twice"):
        foreign_rows(ForeignImage(1, W, H, [ForeignMask(5, rle), ForeignMask(5, rle)]), 1, Grid(H, W, 1))


def test_rows_of_an_import() -> None:
    """By mask_id; no model; what is absent is null; meta is JSON."""
    rle = {"size": [H, W], "counts": encode(blob())}
    found = [ForeignMask(9, rle), ForeignMask(2, rle, 0.5, 0.25, (1.0, 2.0), (0, 0, W, H), {"category": "é\ud800"})]
    second, ninth = foreign_rows(ForeignImage(1, W, H, found), 1, Grid(H, W, 1)).to_pylist()
    assert (second["mask_id"], second["predicted_iou"], second["crop_w"]) == (2, 0.5, W)
    assert second["meta"] == '{"category": "\\u00e9\\ud800"}' and ninth["mask_id"] == 9
    assert {ninth[n] for n in ("predicted_iou", "stability_score", "point_x", "crop_h", "model", "meta")} == {None}
    assert ninth["source"] == "import"
    assert foreign_rows(ForeignImage(1, W, H, []), 1, Grid(H, W, 1)).schema == MASKS
