"""`Build` reads what the ledger names, and nothing else."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from maskmill import Build
from maskmill.errors import UserError
from maskmill.storage.files import parquet_bytes, to_json, write_bytes
from maskmill.storage.ledger import DataFile
from maskmill.storage.schemas import IMAGES, MASKS, mask_rows
from tests.unit.storage.test_ledger import MANIFEST
from tests.unit.tables import table


def image_row(image_id: int) -> dict[str, object]:
    return {"image_id": image_id, "shard": "s", "key": str(image_id), "status": "ok", "num_candidates": 2}


def commit(root: Path, unit: str, image_id: int, attempt: str = "a", name: str | None = None, masks: int = 2) -> None:
    """One unit of one image with `masks` masks; `name` is the manifest's if it is a redo."""
    boxes = [(i, i, i + 3, i + 4) for i in range(masks)]
    tables = {
        "images": pa.Table.from_pylist([image_row(image_id)], schema=IMAGES),
        "candidates": mask_rows(image_id, table(boxes), "nano"),
        "masks/default": mask_rows(image_id, table(boxes[:1]), "nano"),
    }
    files = {}
    for kind, rows in tables.items():
        data = parquet_bytes(rows, ["image_id"], {"unit": unit})
        files[kind] = DataFile.write(root, f"{kind}/{unit}-{attempt}.parquet", rows.num_rows, data)
    manifest = replace(MANIFEST, unit=unit, attempt=attempt, files=files)
    write_bytes(root / "ledger" / "images" / f"{name or unit}.json", to_json(asdict(manifest)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_bytes(tmp_path / "build.json", to_json({"candidates": True, "filter": {"name": "default"}}))
    return tmp_path


def test_not_a_build(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a build: it has no build"):
        Build(tmp_path)


def test_all_tables_by_unit(root: Path) -> None:
    commit(root, "000001", 11)
    commit(root, "000000", 22)
    build = Build(root)
    assert build.images().column("image_id").to_pylist() == [22, 11]
    assert build.candidates().num_rows == 4 and build.masks().num_rows == 2
    assert build.images().schema == IMAGES and build.masks("default").schema == build.candidates().schema == MASKS
    assert build.filters == ["default"]


def test_nothing_committed_yet(root: Path) -> None:
    build = Build(root)
    assert build.images().schema == IMAGES and build.images().num_rows == 0
    assert build.masks().schema == MASKS and build.masks().num_rows == 0


def test_orphans_and_losers_do_not_show(root: Path) -> None:
    """Files that no manifest names are not there: those of a killed attempt, and of a unit done again."""
    commit(root, "000000", 22)
    commit(root, "000009", 99, attempt="killed")
    (root / "ledger" / "images" / "000009.json").unlink()
    assert Build(root).images().column("image_id").to_pylist() == [22]
    commit(root, "000000", 22, attempt="again", name="000000@2", masks=3)
    assert Build(root).candidates().num_rows == 3


def test_unknown_filter(root: Path) -> None:
    commit(root, "000000", 22)
    with pytest.raises(UserError, match="has no filter 'strict': it has default"):
        Build(root).masks("strict")


def test_without_candidates(root: Path) -> None:
    write_bytes(root / "build.json", to_json({"candidates": False, "filter": {"name": "default"}}))
    with pytest.raises(UserError, match="--no-candidates"):
        Build(root).candidates()


def test_decode(root: Path) -> None:
    commit(root, "000000", 22)
    row = Build(root).masks().to_pylist()[0]
    want = np.zeros((40, 50), bool)
    want[0:5, 0:4] = True
    assert np.array_equal(Build.decode(row), want) and Build.decode(row).dtype == bool
