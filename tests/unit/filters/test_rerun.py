"""Promise 5 without a build: candidates that were stored give the masks that they gave at once, row for row."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.config import FilterConfig, GenerateConfig
from maskmill.filters.apply import apply_filter
from maskmill.filters.rerun import by_image, filter_rows
from maskmill.generate.grids import crop_plan
from maskmill.storage.files import parquet_bytes
from maskmill.storage.schemas import MASKS, broken_masks, mask_rows
from tests.unit.filters.blobs import CROPS, PLAIN, blobs, filters

seeds = st.integers(0, 2**32 - 1)


def first_prompts(cfg: GenerateConfig, height: int, width: int) -> np.ndarray:
    return np.array([crop.first_prompt for crop in crop_plan(height, width, cfg)])


def stored(tables: list[pa.Table]) -> pq.ParquetFile:
    """Through a file, as a build holds it."""
    data = parquet_bytes(pa.concat_tables(tables), ["image_id", "mask_id"], {}, row_group=25)
    return pq.ParquetFile(pa.BufferReader(data))


@settings(max_examples=60, deadline=None)
@given(seeds, filters, st.sampled_from((PLAIN, CROPS)))
def test_a_rerun_is_a_fresh_run(seed: int, cfg: FilterConfig, generate: GenerateConfig) -> None:
    images = {11: blobs(seed, generate), 12: blobs(seed + 1, generate, count=3), 500: blobs(seed + 2, generate)}
    crops = len(first_prompts(generate, 44, 52))
    fresh = [mask_rows(i, apply_filter(rows, cfg, crops, i), "nano") for i, rows in images.items()]
    file = stored([mask_rows(i, rows, "nano") for i, rows in images.items()])
    again = [filter_rows(rows, cfg, lambda h, w: first_prompts(generate, h, w)) for rows in by_image(file)]
    assert [t.to_pylist() for t in again] == [t.to_pylist() for t in fresh]
    assert all(t.schema == MASKS and broken_masks(t) == [] for t in again)


@pytest.mark.parametrize("group", [1, 2, 3, 7, 100])
def test_images_may_lie_across_row_groups(group: int) -> None:
    counts = {3: 1, 4: 5, 9: 2, 10: 6}
    tables = {i: mask_rows(i, blobs(i, count=n), "nano") for i, n in counts.items()}
    data = parquet_bytes(pa.concat_tables(tables.values()), ["image_id", "mask_id"], {}, row_group=group)
    found = list(by_image(pq.ParquetFile(io.BytesIO(data))))
    assert [t.to_pylist() for t in found] == [t.to_pylist() for t in tables.values()]


def test_a_file_without_rows() -> None:
    assert list(by_image(stored([MASKS.empty_table()]))) == []


def test_what_an_import_says_of_its_masks_stays() -> None:
    """No score, no point, no crop; a source, a category."""
    rows = mask_rows(7, blobs(1, PLAIN, count=6), "").to_pylist()
    nothing = dict.fromkeys(["predicted_iou", "stability_score", "point_x", "point_y", "model"])
    nothing |= dict.fromkeys(f"crop_{name}" for name in "xywh")
    said = [{**row, **nothing, "source": "import", "meta": f'{{"category": {i}}}'} for i, row in enumerate(rows)]
    candidates = pa.Table.from_pylist(said, schema=MASKS)
    off = FilterConfig(0, 0, box_nms_thresh=1.0, crop_nms_thresh=1.0)
    assert filter_rows(candidates, off, lambda h, w: np.array([0])).to_pylist() == said
    few = filter_rows(candidates, replace(off, min_area=200), lambda h, w: np.array([0])).to_pylist()
    assert few == [row for row in said if row["area"] >= 200] and 0 < len(few) < len(said)
    assert filter_rows(candidates, FilterConfig(), lambda h, w: np.array([0])).num_rows == 0, "no score passes none"
