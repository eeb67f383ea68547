"""Writing files so that nobody ever sees half of one, on a local disk and in object stores alike.

Local: temporary name, fsync, then rename or link. S3 and GCS: a PUT is whole or not at all, and one that must not
replace anything carries a condition.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from maskmill.errors import UserError
from maskmill.storage import remote

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


def at(url: str | Path | UPath) -> UPath:
    """`url` as a path: pathlib's own for a local one, fsspec's for s3:// and gs://."""
    if isinstance(url, UPath) or not remote.protocol(str(url)):
        return UPath(url)
    remote.require(str(url))
    return UPath(url, **remote.options(str(url)))


def local(path: UPath) -> Path:
    """A local path as pathlib's."""
    return Path(str(path))


def is_local(path: Path | UPath) -> bool:
    """Whether `path` lies on this machine's file systems."""
    return isinstance(path, Path)


def write_bytes(path: UPath, data: bytes, synced: bool = True) -> None:
    """Create or replace `path` at once; without `synced` a power cut may take it back."""
    if is_local(path):
        replace_local(local(path), data, synced)
    else:
        with remote.named(path):
            path.fs.pipe_file(path.path, data)


def replace_local(path: Path, data: bytes, synced: bool) -> None:
    """Write beside `path`, sync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = temporary(path)
    try:
        if synced:
            write_synced(tmp, data)
        else:
            tmp.write_bytes(data)
        tmp.rename(path)
    finally:
        tmp.unlink(missing_ok=True)
    if synced:
        sync_folder(path.parent)


def read_bytes(path: UPath) -> bytes:
    """All of `path`. FileNotFoundError if it is not there; any other error names it."""
    with remote.named(path):
        return bytes(path.read_bytes())


def exists(path: UPath) -> bool:
    """Whether `path` is there. A storage that cannot say raises: a manifest must never seem absent."""
    with remote.named(path):
        return bool(path.exists())


def create_if_absent(path: UPath, data: bytes) -> bool:
    """Create `path` with all of `data`, or leave the one that is there. True if it now holds this call's `data`.

    A hard link is the compare-and-set of POSIX: it fails if the name exists, whoever races. In an object store it is a
    conditional PUT. If its answer is lost on the way, the repeated PUT finds the first one's object: what is there
    decides, so `data` must be unique to the caller (a manifest names its attempt).
    """
    try:
        if is_local(path):
            link_local(local(path), data)
        else:
            put_if_absent(path, data)
    except FileExistsError:
        return read_bytes(path) == data
    return True


def put_if_absent(path: UPath, data: bytes) -> None:
    """FileExistsError if `path` exists already. S3 refuses both of two such PUTs at once, and wants them repeated."""
    for wait in (0.2, 0.5, 1.0, 2.0, None):
        try:
            with remote.named(path):
                path.fs.pipe_file(path.path, data, mode="create")
            return
        except OSError as e:
            why = remote.code(e)
            if why in ("PreconditionFailed", "412"):  # s3fs knows it by a field that not every server sends
                raise FileExistsError(str(path)) from e
            if wait is None or why not in ("ConditionalRequestConflict", "OperationAborted", "409"):
                raise
            time.sleep(wait * random.uniform(0.5, 1.5))


def link_local(path: Path, data: bytes) -> None:
    """FileExistsError if `path` exists already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = temporary(path)
    try:
        write_synced(tmp, data)
        os.link(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
    sync_folder(path.parent)


def files_in(folder: UPath) -> list[UPath]:
    """Every file under `folder`, sorted, hidden ones too; none if there is no such folder. One listing."""
    if is_local(folder):
        return sorted(p for p in folder.rglob("*") if p.is_file())
    root = folder.path.rstrip("/")
    with remote.named(folder):
        names = sorted(folder.fs.find(root))
    # `root` itself, or a name with a slash at its end, is what S3's console makes for an empty folder
    return [folder / n.removeprefix(root).lstrip("/") for n in names if n != root and not n.endswith("/")]


def names_in(folder: UPath) -> list[str]:
    """The names of the files in `folder` itself, sorted; none if there is no such folder. One listing, no stat."""
    if is_local(folder):
        return sorted(os.listdir(local(folder))) if exists(folder) else []
    return [relative(path, folder) for path in files_in(folder) if "/" not in relative(path, folder)]


def relative(path: UPath, folder: UPath) -> str:
    """`path` within `folder`, with slashes."""
    return str(path.path.removeprefix(folder.path.rstrip("/")).lstrip("/"))


def remove(path: UPath) -> None:
    """Delete a file; one that is gone already is fine."""
    if is_local(path):
        path.unlink(missing_ok=True)
        return
    with remote.named(path), contextlib.suppress(FileNotFoundError):
        path.fs.rm_file(path.path)


def check_writable(out: UPath) -> None:
    """Find out before any work whether `out` can be written to, and whether its storage can create if absent."""
    kind = remote.protocol(str(out))
    if kind and kind not in remote.CREATES_IF_ABSENT:
        raise UserError(
            f"--out {str(out)!r}: a build needs storage that can create a file only if it is absent: give a local "
            f"folder, s3:// or gs://"
        )
    probe = out / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        made = [create_if_absent(probe, data) for data in (b"first", b"second")]
        remove(probe)
    except Exception as e:
        words = e.strerror if isinstance(e, OSError) and e.strerror else " ".join(str(e).split()) or type(e).__name__
        raise UserError(f"cannot write to --out {str(out)!r}: {words}; give a folder that can be written") from e
    if made != [True, False]:
        raise UserError(
            f"--out {str(out)!r}: this storage overwrites what must only be created (S3: If-None-Match), so two "
            f"attempts could both commit: update the server, or give other storage"
        )


def to_json(tree: Any) -> bytes:
    """Readable, stable JSON."""
    return (json_text(tree, indent=1) + "\n").encode()


def json_text(tree: Any, indent: int | None = None) -> str:
    """JSON that can be written as UTF-8: halves of surrogate pairs, which JSON may hold and UTF-8 not, stay escaped."""
    text = json.dumps(tree, indent=indent, ensure_ascii=False)
    return text if not re.search("[\ud800-\udfff]", text) else json.dumps(tree, indent=indent)


def sha256_file(path: Path | UPath) -> str:
    """Hex sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def parquet_bytes(table: pa.Table, sorted_by: list[str], metadata: dict[str, str], row_group: int = ROW_GROUP) -> bytes:
    """A whole Parquet file: zstd, sorted, footer metadata. Same rows give the same bytes."""
    table = table.combine_chunks().sort_by([(name, "ascending") for name in sorted_by])
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
    out = pa.BufferOutputStream()
    pq.write_table(
        table,
        out,
        compression="zstd",
        compression_level=3,
        row_group_size=row_group,
        use_dictionary=[name for name in LOW_CARDINALITY if name in table.column_names],
        write_page_index=True,
        write_page_checksum=True,
        sorting_columns=pq.SortingColumn.from_ordering(table.schema, [(n, "ascending") for n in sorted_by]),
    )
    return bytes(out.getvalue().to_pybytes())
