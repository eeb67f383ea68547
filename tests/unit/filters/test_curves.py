"""Curves are what counting gives, threshold by threshold."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.config import FilterConfig
from maskmill.filters.curves import acceptance, acceptance_grid
from maskmill.filters.rules import predicted_iou, stability
from tests.unit.tables import Box, table

BOX: Box = (0, 0, 3, 3)
levels = st.sampled_from([0.0, 0.3, 0.5, 0.88, 0.95, 1.0])
scores = st.lists(st.one_of(st.sampled_from([0.3, 0.5, 0.88, 0.95, float("nan")]), st.floats(-0.1, 1.1)), max_size=30)


@settings(max_examples=100, deadline=None)
@given(scores, st.lists(levels, max_size=6))
def test_a_curve_counts_what_the_rules_keep(values: list[float], thresholds: list[float]) -> None:
    rows = table([BOX] * len(values), iou=values, stability=values)
    iou, stable = (
        acceptance(column, np.array(thresholds), strict=strict)
        for column, strict in ((rows.predicted_iou, True), (rows.stability_score, False))
    )
    for n, threshold in enumerate(thresholds):
        cfg = FilterConfig(threshold, threshold)
        assert iou[n] == (predicted_iou(rows, cfg).sum() if threshold else len(values))
        assert stable[n] == (stability(rows, cfg).sum() if threshold else len(values))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(levels, min_size=1, max_size=4), st.lists(levels, min_size=1, max_size=4))
def test_a_grid_counts_what_passes_both(seed: int, ious: list[float], stabilities: list[float]) -> None:
    rng = np.random.default_rng(seed)
    iou, stable = (rng.choice([0.3, 0.5, 0.7, 0.88, 0.95], 25).astype(np.float32) for _ in range(2))
    got = acceptance_grid(iou, stable, np.array(ious), np.array(stabilities))
    for i, a in enumerate(ious):
        for j, b in enumerate(stabilities):
            passed = ((iou > np.float32(a)) | (a == 0)) & ((stable >= np.float32(b)) | (b == 0))
            assert got[i, j] == passed.sum()
