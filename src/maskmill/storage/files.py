"""Writing files so that nobody ever sees half of one: temporary name, fsync, then rename or link."""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 30_000
LOW_CARDINALITY = ["shard", "status", "source", "model"]


def temporary(path: Path) -> Path:
    """A fresh name beside `path`; a leading dot keeps it out of every glob."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: Path, data: bytes) -> None:
    """Write, and wait until the bytes are on the disk."""
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    """Create or replace `path` at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = temporary(path)
    try:
        write_synced(tmp, data)
        tmp.rename(path)
    finally:
        tmp.unlink(missing_ok=True)
    sync_folder(path.parent)


def create_if_absent(path: Path, data: bytes) -> bool:
    """Create `path` with all of `data`, or leave the one that is there. True if this call made it.

    A hard link is the compare-and-set of POSIX: it fails if the name exists, whoever races.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = temporary(path)
    try:
        write_synced(tmp, data)
        try:
            os.link(tmp, path)
        except FileExistsError:
            return False
    finally:
        tmp.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def to_json(tree: Any) -> bytes:
    """Readable, stable JSON."""
    return (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_parquet(path: Path, table: pa.Table, sorted_by: list[str], metadata: dict[str, str]) -> None:
    """One whole Parquet file: zstd, sorted, row groups of 30k rows, footer metadata. Same rows give the same bytes."""
    table = table.combine_chunks().sort_by([(name, "ascending") for name in sorted_by])
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = temporary(path)
    try:
        pq.write_table(
            table,
            tmp,
            compression="zstd",
            compression_level=3,
            row_group_size=ROW_GROUP,
            use_dictionary=[name for name in LOW_CARDINALITY if name in table.column_names],
            write_page_index=True,
            write_page_checksum=True,
            sorting_columns=pq.SortingColumn.from_ordering(table.schema, [(n, "ascending") for n in sorted_by]),
        )
        with tmp.open("rb") as f:
            os.fsync(f.fileno())
        tmp.rename(path)
    finally:
        tmp.unlink(missing_ok=True)
    sync_folder(path.parent)
