import numpy as np
import pytest

from maskmill.masks.table import MaskTable
from tests.unit.tables import table


def test_take_keeps_rows_together() -> None:
    rows = table([(0, 0, 5, 5), (3, 3, 9, 9), (1, 2, 3, 4)], iou=[0.1, 0.2, 0.3])
    picked = rows.take(np.array([2, 0]))
    assert picked.mask_id.tolist() == [2, 0] and picked.box.tolist() == [[1, 2, 3, 4], [0, 0, 5, 5]]
    assert [picked.counts(i) for i in range(2)] == [rows.counts(2), rows.counts(0)]


def test_concat_and_empty_keep_types() -> None:
    rows = table([(0, 0, 5, 5)])
    both = MaskTable.concat(40, 50, [rows, rows])
    assert len(both) == 2 and len(MaskTable.concat(40, 50, [])) == 0
    for name, column in MaskTable.empty(40, 50).columns().items():
        if isinstance(column, np.ndarray):
            assert column.dtype == getattr(rows, name).dtype == getattr(both, name).dtype, name


def test_columns_of_other_length_are_refused() -> None:
    rows = table([(0, 0, 5, 5)])
    with pytest.raises(AssertionError, match="length"):
        MaskTable(40, 50, **{**rows.columns(), "area": np.zeros(2, np.int64)})  # type: ignore[arg-type]
