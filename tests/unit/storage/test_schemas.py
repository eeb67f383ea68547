"""Rows and tables of masks, and what `verify` finds wrong in a row."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskmill.config import GenerateConfig
from maskmill.generate.grids import crop_plan
from maskmill.masks.rle import CutMask, compress, encode
from maskmill.masks.table import TOKENS, MaskTable
from maskmill.storage.schemas import IMAGES, MASKS, broken_masks, mask_rows, run_total, to_mask_table
from tests.unit.tables import table

HEIGHT, WIDTH = 61, 83
PLAN = crop_plan(HEIGHT, WIDTH, GenerateConfig(points_per_side=3, crop_n_layers=1))
FIRST_PROMPTS = np.array([crop.first_prompt for crop in PLAN])


def random_masks(seed: int) -> MaskTable:
    """Some masks of a five-crop plan, in any order."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 12))
    mask_id = rng.choice(45 * TOKENS, n, replace=False)
    crop = np.searchsorted(FIRST_PROMPTS, mask_id // TOKENS, side="right") - 1
    start = rng.integers(0, (WIDTH - 12, HEIGHT - 12), (n, 2))
    box = np.concatenate([start, start + rng.integers(0, 12, (n, 2))], axis=1)
    cuts = []
    for x0, y0, x1, y1 in box.tolist():
        inside = rng.random((y1 - y0 + 1, x1 - x0 + 1)) < 0.6
        inside[0, 0] = inside[-1, -1] = True  # the box is tight
        cuts.append(CutMask.cut(inside, x0, y0, HEIGHT, WIDTH))
    return MaskTable(
        HEIGHT, WIDTH, mask_id.astype(np.int64), rng.random(n, dtype=np.float32), rng.random(n, dtype=np.float32), box,
        np.array([int(c.inside().sum()) for c in cuts], np.int64), rng.random((n, 2)) * 50, crop.astype(np.int32),
        np.array([PLAN[c].box for c in crop], np.int64).reshape(n, 4), tuple(cuts),
    )  # fmt: skip


def rows(n: int = 3) -> list[dict[str, Any]]:
    """Good rows, as dicts to spoil."""
    return mask_rows(7, table([(2, 3, 9, 12 + i) for i in range(n)]), "nano").to_pylist()  # type: ignore[no-any-return]


def problems(changed: list[dict[str, Any]]) -> list[str]:
    return broken_masks(pa.Table.from_pylist(changed, schema=MASKS))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_round_trip(seed: int) -> None:
    """Table -> rows -> table: every column, its type too; rows come by mask_id; nothing in them is broken."""
    masks = random_masks(seed)
    stored = mask_rows(7, masks, "nano")
    assert stored.schema == MASKS and stored.column("mask_id").to_pylist() == sorted(masks.mask_id.tolist())
    assert broken_masks(stored) == []
    back = to_mask_table(stored, HEIGHT, WIDTH, FIRST_PROMPTS)
    want = masks.take(np.argsort(masks.mask_id))
    for name, column in want.columns().items():
        if name != "masks":
            other = getattr(back, name)
            assert other.dtype == column.dtype and np.array_equal(other, column), name  # type: ignore[union-attr, arg-type]
    assert [back.counts(i) for i in range(len(back))] == [want.counts(i) for i in range(len(want))]


def test_rows_hold_sa1b_boxes() -> None:
    """bbox and crop are XYWH; bbox w and h are one less than the pixels, crop's are the pixels."""
    row = rows()[0]
    assert [row[f"bbox_{c}"] for c in "xywh"] == [2.0, 3.0, 7.0, 9.0]
    assert [row[f"crop_{c}"] for c in "xywh"] == [0, 0, 50, 40]
    assert (row["image_id"], row["source"], row["model"], row["meta"]) == (7, "auto", "nano", None)


def test_no_masks_keep_the_schema() -> None:
    stored = mask_rows(7, MaskTable.empty(5, 6), "nano")
    assert stored.schema == MASKS and stored.num_rows == 0
    assert len(to_mask_table(stored, 5, 6, np.array([0]))) == 0


def test_schemas_are_the_contract() -> None:
    """DESIGN 3.2: names, types, and what may be null."""
    ids_and_pixels = ["image_id", "mask_id", "height", "width", "counts", "area"]
    boxes = [f"bbox_{c}" for c in "xywh"]
    prompt = ["predicted_iou", "stability_score", "point_x", "point_y", *(f"crop_{c}" for c in "xywh")]
    assert MASKS.names == [*ids_and_pixels, *boxes, *prompt, "source", "model", "meta"]
    of_file = ["image_id", "shard", "key", "width", "height", "sha256"]
    assert IMAGES.names == [*of_file, "status", "error", "num_candidates", "meta"]
    types = {
        "image_id": pa.int64(),
        "mask_id": pa.int64(),
        "counts": pa.string(),
        "area": pa.int32(),
        "bbox_w": pa.float32(),
        "stability_score": pa.float32(),
        "point_x": pa.float64(),
        "crop_w": pa.int32(),
    }
    assert {name: MASKS.field(name).type for name in types} == types
    nullable = {f.name for f in MASKS if f.nullable}
    assert {"predicted_iou", "stability_score", "point_x", "crop_x", "meta"} <= nullable
    assert not {"image_id", "mask_id", "counts", "area", "bbox_x", "source"} & nullable


# ---- run_total


@settings(max_examples=300, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_run_total_of_real_strings(mask: np.ndarray) -> None:
    assert run_total(encode(mask)) == mask.size


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**28), min_size=1, max_size=12))  # pycocotools overruns its buffer from 2**29 on
def test_run_total_of_long_runs(runs: list[int]) -> None:
    """Every length of a run, up to 2**31. A short one first: pycocotools leaves no room for the string's end otherwise
    (maskApi.c, rleToString: six bytes a run)."""
    assert run_total(compress(np.array([0, *runs]), 1, 1)) == sum(runs)


@pytest.mark.parametrize("counts", [" ", "~", "o", "é", "1o", "12\n", "\x00"])
def test_run_total_of_garbage(counts: str) -> None:
    """A character outside the alphabet, or a run that does not end."""
    assert run_total(counts) == -1


def test_run_total_of_nothing() -> None:
    assert run_total("") == 0


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(min_codepoint=0, max_codepoint=300), max_size=12))
def test_any_string_is_survived(counts: str) -> None:
    """Whatever stands in `counts`, the check reports and does not raise."""
    row = {**rows(1)[0], "counts": counts}
    assert len(problems([row])) == 1


# ---- broken_masks


def test_good_rows() -> None:
    assert problems(rows()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"area": 81}, "area is 81, its counts cover 80"),
        ({"bbox_w": 8.0}, "bbox is [2.0, 3.0, 8.0, 9.0], its counts give [2.0, 3.0, 7.0, 9.0]"),
        ({"bbox_x": 2.5}, "bbox is"),
        ({"height": 41}, "of 41x50"),
        ({"width": 49}, "counts cover 2000 pixels of 40x49"),
        ({"counts": ""}, "counts cover 0 pixels"),
        ({"counts": "garbage!"}, "counts cover"),
        ({"height": 50, "width": 40}, "bbox is"),  # transposed: the same number of pixels
    ],
)
def test_a_broken_row_is_named(change: dict[str, Any], words: str) -> None:
    """One line, with the ids of the row; the good rows beside it are not."""
    changed = rows()
    changed[1] = {**rows(1)[0], "mask_id": 1, **change}
    found = problems(changed)
    assert len(found) == 1 and found[0].startswith("image_id 7 mask_id 1: ") and words in found[0], found


def test_truncated_counts() -> None:
    """A string cut short anywhere."""
    whole = rows(1)[0]
    for end in range(len(whole["counts"])):
        assert len(problems([{**whole, "counts": whole["counts"][:end]}])) == 1


def test_empty_mask_is_fine() -> None:
    """With thresholds off an empty mask is a legal row; its box is its crop's origin."""
    row = {**rows(1)[0], "counts": encode(np.zeros((40, 50), bool)), "area": 0}
    assert problems([row]) == []
