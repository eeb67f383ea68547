"""The queries of the README run on a real build."""

import re
from pathlib import Path

import pytest

from tests.pipeline.conftest import build

README = Path(__file__).parents[2] / "README.md"


def test_queries_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import duckdb
    import polars
    import pyarrow.parquet  # noqa: F401

    made = build(photos, tmp_path / "masks")
    monkeypatch.chdir(tmp_path)
    code = re.search(r"<!-- queries -->\n```python\n(.*?)```", README.read_text(), re.S)
    assert code is not None
    lines = code[1].strip().splitlines()
    assert len(lines) == 3
    names = {"duckdb": duckdb, "polars": polars, "pyarrow": __import__("pyarrow")}
    counts, areas, boxes = (eval(line, names) for line in lines)
    assert dict(counts.fetchall())["quarantined"] == 1
    assert areas.height <= made.masks().num_rows
    assert boxes.num_rows == made.masks().num_rows
