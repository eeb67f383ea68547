"""What there is to do: the image set cut into units, frozen in plan.parquet before any work begins."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from maskmill.errors import UserError
from maskmill.storage.build import damaged
from maskmill.storage.files import create_if_absent, parquet_bytes, read_bytes, write_bytes
from maskmill.storage.sources import FileStat, ImageSet, Kind, Shard, count_items

PLAN = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("first_key", pa.string()),
        pa.field("last_key", pa.string()),
        pa.field("count", pa.int64()),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("keys", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class Unit:
    """What one actor is handed and commits whole.

    For a tar or Parquet file: the items [start, start + count) of the shard in archive order; count None means to its
    end (a remote tar, which only reading can count). For a folder: exactly `keys`.
    """

    unit: str
    kind: Kind
    shard: str
    url: str
    start: int
    first_key: str | None
    last_key: str | None
    count: int | None
    bytes: int
    version: str  # ETag or mtime of the shard; for files of a folder a hash over theirs
    keys: tuple[str, ...] | None


def make_units(images: ImageSet, unit_size: int, first: int = 0) -> list[Unit]:
    """Cut every shard into units of at most `unit_size` images. Units are numbered from `first` in shard order."""
    with ThreadPoolExecutor(16) as pool:  # each shard's headers or footer are read: waiting, mostly
        cut = pool.map(lambda shard: list(cut_shard(images.kind, shard, unit_size)), images.shards)
        units = [unit for shard_units in cut for unit in shard_units]
    return [replace(unit, unit=f"{first + i:06d}") for i, unit in enumerate(units)]


def cut_shard(kind: Kind, shard: Shard, unit_size: int) -> Iterator[Unit]:
    """The units of one shard, unnamed."""
    if shard.files is not None:
        for start in range(0, len(shard.files), unit_size):
            yield folder_unit(shard, shard.files[start : start + unit_size])
        return
    count = count_items(kind, shard.url)
    starts = range(0, count, unit_size) if count else [0]
    for start in starts:
        size = None if count is None else min(unit_size, count - start)
        share = shard.bytes if not count or size is None else shard.bytes * size // count
        yield Unit("", kind, shard.name, shard.url, start, None, None, size, share, shard.version, None)


def folder_unit(shard: Shard, files: Sequence[FileStat]) -> Unit:
    """One run of a sorted folder listing."""
    keys = tuple(f.key for f in files)
    total = sum(f.bytes for f in files)
    return Unit("", "folder", shard.name, shard.url, 0, keys[0], keys[-1], len(keys), total, version_of(files), keys)


def version_of(files: Iterable[FileStat]) -> str:
    """A hash that changes when any file's name, size or time changes."""
    text = "".join(f"{f.key}\0{f.bytes}\0{f.version}\n" for f in files)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_plan(path: UPath, units: Sequence[Unit], replace_old: bool = False) -> bool:
    """plan.parquet, whole or not at all. Of two drivers that begin a build at once, the first one's plan stays.

    Whether `path` now holds these units.
    """
    columns = {name: [getattr(u, name) for u in units] for name in PLAN.names}
    data = parquet_bytes(pa.table(columns, schema=PLAN), ["unit"], {})
    if not replace_old:
        return create_if_absent(path, data)
    write_bytes(path, data)
    return True


def read_plan(path: UPath) -> list[Unit]:
    """The frozen plan, by unit. UserError if the file is damaged."""
    data = read_bytes(path)
    try:
        rows = pq.read_table(pa.BufferReader(data)).to_pylist()
        return [Unit(**{**row, "keys": None if row["keys"] is None else tuple(row["keys"])}) for row in rows]
    except (pa.ArrowException, OSError, LookupError, TypeError) as e:  # OSError: of bytes that Parquet cannot decode
        raise damaged(path, e) from e


@dataclass(frozen=True)
class Changes:
    """How the image set differs from the plan. `new` holds what --append would add."""

    changed: tuple[str, ...]
    gone: tuple[str, ...]
    new: ImageSet

    @property
    def new_names(self) -> list[str]:
        """Keys of new files, or names of new shards."""
        return [f.key for s in self.new.shards for f in s.files or ()] or [s.name for s in self.new.shards]


def compare(plan: Sequence[Unit], images: ImageSet) -> Changes:
    """The image set now against the plan's record of it."""
    if plan and plan[0].kind != images.kind:
        raise UserError(f"{images.url!r} is now a {images.kind} image set, the build was planned from a {plan[0].kind}")
    return compare_files(plan, images) if images.kind == "folder" else compare_shards(plan, images)


def where_now(plan: Sequence[Unit], images: ImageSet) -> list[Unit]:
    """The same units, with the place where `images` has their shards: the same files may lie elsewhere now."""
    now_at = {shard.name: shard.url for shard in images.shards}
    return [replace(unit, url=now_at.get(unit.shard, unit.url)) for unit in plan]


def compare_shards(plan: Sequence[Unit], images: ImageSet) -> Changes:
    """Tars and Parquet files, each by its version."""
    before = {unit.shard: unit.version for unit in plan}
    now = {shard.name: shard.version for shard in images.shards}
    changed = tuple(sorted(name for name in before.keys() & now.keys() if before[name] != now[name]))
    gone = tuple(sorted(before.keys() - now.keys()))
    new = tuple(shard for shard in images.shards if shard.name not in before)
    return Changes(changed, gone, replace(images, shards=new))


def compare_files(plan: Sequence[Unit], images: ImageSet) -> Changes:
    """Files of a folder, run by run."""
    shard = images.shards[0]
    now = {f.key: f for f in shard.files or ()}
    changed: list[str] = []
    gone: list[str] = []
    planned: set[str] = set()
    for unit in plan:
        keys = unit.keys or ()
        planned.update(keys)
        missing = [key for key in keys if key not in now]
        gone += missing
        if not missing and version_of(now[key] for key in keys) != unit.version:
            changed.append(f"{unit.first_key} .. {unit.last_key}")
    files = tuple(f for f in shard.files or () if f.key not in planned)
    new = (replace(shard, files=files, bytes=sum(f.bytes for f in files)),) if files else ()
    return Changes(tuple(changed), tuple(gone), replace(images, shards=new))
