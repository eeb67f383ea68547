"""The CPU benchmark, small: real processes, real peers, and what it says about them."""

import json
from pathlib import Path

import pytest

from benchmarks.generate import report
from benchmarks.sides import Side, SideFailed
from benchmarks.turns import Bench, Case, Options


def test_one_case(tmp_path: Path) -> None:
    case = Case("nano-60x90", "nano", 60, 90, images=1, turns=1)
    options = Options(prompts=4, peers=("official", "maskmill"))
    result = json.loads(json.dumps(Bench(case, options, tmp_path).run()))
    assert set(result["peers"]) == {"official", "maskmill"}
    for figures in result["peers"].values():
        assert figures["masks"][0] > 0
        assert figures["peak_mb"] >= figures["loaded_mb"] > 50
        assert figures["images_s"] > 0
    for agreement in (result["agreement"]["maskmill"], result["small_regions"]["agreement"]):
        assert agreement["unexcused"] == 0
        assert agreement["matched"] == agreement["first"] > 0
    kept = result["candidates"]
    assert kept["candidates"][0] >= kept["pass_iou_and_stability"] * 48 > 0
    text = report(result, gflop_s=100)
    assert "maskmill is" in text
    assert "unexcused 0" in text


def test_a_side_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(SideFailed, match="no-such-file"):
        Side("official", "nano", tmp_path / "no-such-file", 1, False, tmp_path / "log")
