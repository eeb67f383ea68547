"""A filter over stored candidates: the rows that a build with that filter would have written."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskmill.config import FilterConfig
from maskmill.filters.apply import apply_filter
from maskmill.storage.schemas import chosen_rows, to_mask_table


def filter_rows(candidates: pa.Table, cfg: FilterConfig, first_prompts: Callable[[int, int], np.ndarray]) -> pa.Table:
    """The candidates of one image, by mask_id -> its masks, by mask_id: the same schema, source, model and meta.

    first_prompts: (height, width) -> for each crop of such an image's plan the place of its first prompt, int N.
    """
    image_id, height, width = (candidates[name][0].as_py() for name in ("image_id", "height", "width"))
    crops = first_prompts(height, width)
    table = to_mask_table(candidates, height, width, crops)
    return chosen_rows(candidates, apply_filter(table, cfg, len(crops), image_id))


def by_image(file: pq.ParquetFile) -> Iterator[pa.Table]:
    """The rows of one image after another, of a file sorted by image_id. One row group is held at a time."""
    held = file.schema_arrow.empty_table()
    for group in range(file.num_row_groups):
        rows = pa.concat_tables([held, file.read_row_group(group)]).combine_chunks()
        ids = rows["image_id"].to_numpy()
        starts = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist()]
        for start, end in itertools.pairwise(starts):
            yield rows.slice(start, end - start)
        held = rows.slice(starts[-1])  # it may go on in the next group
    if held.num_rows:
        yield held
