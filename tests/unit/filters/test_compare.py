"""A difference of two filters accounts for every mask of both."""

from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.config import FilterConfig
from maskmill.filters.apply import apply_filter, dropped_by
from maskmill.filters.compare import compare, shares
from maskmill.masks.table import MaskTable
from tests.unit.filters.blobs import CROPS, blobs, filters
from tests.unit.tables import table


def by_id(masks: MaskTable) -> dict[int, str]:
    return {int(i): masks.counts(n) for n, i in enumerate(masks.mask_id)}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), filters, filters)
def test_every_mask_of_both_is_accounted_for(seed: int, a: FilterConfig, b: FilterConfig) -> None:
    rows = blobs(seed, CROPS)
    found = compare(rows, a, b, 5, seed)
    in_a, in_b = (by_id(apply_filter(rows, cfg, 5, seed)) for cfg in (a, b))
    assert by_id(found.a) == in_a and by_id(found.b) == in_b
    assert set(found.went) == set(in_a) - set(in_b) and set(found.came) == set(in_b) - set(in_a)
    assert set(found.changed) == {i for i in set(in_a) & set(in_b) if in_a[i] != in_b[i]}
    why_a, why_b = dropped_by(rows, a, 5, seed)[1], dropped_by(rows, b, 5, seed)[1]
    assert found.went == {i: why_b[i] for i in found.went} and found.came == {i: why_a[i] for i in found.came}
    back = compare(rows, b, a, 5, seed)
    assert (back.went, back.came, set(back.changed)) == (found.came, found.went, set(found.changed))
    same = compare(rows, a, a, 5, seed)
    assert (same.went, same.came, same.changed) == ({}, {}, ())


def test_what_a_stricter_filter_frees_comes() -> None:
    """The winner of an NMS goes for another reason, so the loser is back."""
    rows = table([(0, 0, 20, 20), (0, 0, 20, 19), (30, 30, 34, 34)], iou=[0.9, 0.8, 0.95])
    a = FilterConfig(0.5, 0.5)
    found = compare(rows, a, FilterConfig(0.5, 0.5, max_area=430), 1, 7)
    assert found.went == {0: "max_area"} and found.came == {1: "box_nms_thresh"} and found.changed == ()
    assert shares(found.a).tolist() == [25 / 2000, 441 / 2000] and shares(found.a, found.went).tolist() == [441 / 2000]
    holed = compare(rows, a, FilterConfig(0.5, 0.5, box_nms_thresh=1.0, shared_pixels="smallest"), 1, 7)
    assert holed.came == {1: "box_nms_thresh"} and holed.changed == (0,), "its pixels went to the smaller one"
