"""Nobody sees half a file, and of two writers one wins."""

import json
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.storage import files
from maskmill.storage.files import create_if_absent, parquet_bytes, sha256_file, to_json, write_bytes

TABLE = pa.table({"image_id": [3, 1, 2], "shard": ["a", "b", "a"], "n": pa.array([None] * 3, pa.int32())})


def test_second_create_loses(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    assert create_if_absent(path, b"first") and not create_if_absent(path, b"second")
    assert path.read_bytes() == b"first" and [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_of_many_racing_writers_one_wins(tmp_path: Path) -> None:
    """And the file holds all of the winner's bytes."""
    path, won, start = tmp_path / "a.json", [], threading.Barrier(12)

    def race(i: int) -> None:
        start.wait()
        if create_if_absent(path, bytes([i]) * 10_000):
            won.append(i)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(won) == 1 and path.read_bytes() == bytes(won) * 10_000
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_write_bytes_replaces(tmp_path: Path) -> None:
    for data in (b"one", b"two"):
        write_bytes(tmp_path / "x", data)
    assert (tmp_path / "x").read_bytes() == b"two" and len(list(tmp_path.iterdir())) == 1


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full after some bytes: the old file stays, no temporary file does."""
    write_bytes(tmp_path / "x", b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for write in (lambda: write_bytes(tmp_path / "x", b"new"), lambda: create_if_absent(tmp_path / "y", b"new")):
        with pytest.raises(OSError, match="No space"):
            write()
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_bytes() == b"old"


def test_temporary_names_are_hidden(tmp_path: Path) -> None:
    """A leading dot keeps a torn file out of globs; no two are alike."""
    names = {files.temporary(tmp_path / "a.json").name for _ in range(50)}
    assert len(names) == 50 and all(n.startswith(".a.json.") and n.endswith(".tmp") for n in names)


def test_json_is_stable_and_readable() -> None:
    tree = {"b": 1, "a": "ü", "c": [1.5, None]}
    assert json.loads(to_json(tree)) == tree and "ü".encode() in to_json(tree) and to_json(tree).endswith(b"}\n")


def test_parquet_is_sorted_and_the_same_bytes(tmp_path: Path) -> None:
    """zstd, sorted whatever the order of arrival, footer metadata, typed nulls; the same rows give the same file."""
    for name, table in (("a", TABLE), ("b", TABLE.take([2, 0, 1])), ("c", pa.concat_tables([TABLE[:1], TABLE[1:]]))):
        (tmp_path / name).write_bytes(parquet_bytes(table, ["image_id"], {"made": "so"}))
    assert len({sha256_file(tmp_path / n) for n in "abc"}) == 1
    file = pq.ParquetFile(tmp_path / "a")
    assert file.read().column("image_id").to_pylist() == [1, 2, 3]
    assert file.schema_arrow.metadata[b"made"] == b"so" and file.schema_arrow.field("n").type == pa.int32()
    group = file.metadata.row_group(0)
    assert group.column(0).compression == "ZSTD" and group.sorting_columns[0].column_index == 0


def test_row_groups(tmp_path: Path) -> None:
    n = files.ROW_GROUP * 2 + 5
    (tmp_path / "a").write_bytes(parquet_bytes(pa.table({"image_id": range(n)}), ["image_id"], {}))
    meta = pq.ParquetFile(tmp_path / "a").metadata
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [files.ROW_GROUP, files.ROW_GROUP, 5]


def test_empty_table(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(parquet_bytes(TABLE[:0], ["image_id"], {}))
    assert pq.ParquetFile(tmp_path / "a").read().schema.names == TABLE.schema.names
