"""Images in a Parquet file: Hugging Face's Image structs or a plain binary column, row by row, bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskmill.errors import UserError
from maskmill.storage.items import Item, Keys

IMAGE_COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "webp", "img", "data")
KEY_COLUMNS = ("key", "__key__", "id", "image_id", "file_name", "filename", "path", "name")

_BATCH = 8  # rows decoded at a time
_KEY_BATCH = 65536
_BROKEN = "not a readable Parquet file: its footer is missing or broken"


@dataclass(frozen=True)
class _Columns:
    image: str
    in_struct: bool  # then the bytes are image.bytes
    key: str | None  # a column, or image.path; None: keys are row numbers


def count_parquet(file: IO[bytes], url: str) -> int:
    """The number of Items that read_parquet gives, from the footer alone. UserError without an image column."""
    if (parquet := _open(file)) is None:
        return 1
    _columns(parquet.schema_arrow, url)
    return int(parquet.metadata.num_rows)


def read_parquet(file: IO[bytes], url: str, start: int, count: int | None) -> Iterator[Item]:
    """The Items of the rows [start, start + count); to the end if `count` is None. UserError without an image column.

    Rows in a part that cannot be decoded are Items with an error. `url` is for words only.
    """
    if (parquet := _open(file)) is None:
        if start == 0 and count != 0:
            yield Item("@byte=0", None, _BROKEN)
        return
    columns = _columns(parquet.schema_arrow, url)
    stop = parquet.metadata.num_rows if count is None else start + count
    keys, row = Keys(), 0
    for group in range(parquet.metadata.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if row >= stop:
            return
        if row + rows <= start and columns.key is None:  # row numbers: nothing to learn from a skipped group
            row += rows
            continue
        named = _named(_group_keys(parquet, group, rows, columns, row), keys)
        wanted = range(max(start - row, 0), min(stop - row, rows))
        if wanted:
            yield from _group_items(parquet, group, columns, named, wanted)
        row += rows


def find_rows(file: IO[bytes], url: str) -> dict[str, int]:
    """key -> row of every image of the file, from its key column alone."""
    if (parquet := _open(file)) is None:
        return {}
    columns, keys, found = _columns(parquet.schema_arrow, url), Keys(), list[tuple[str, str | None]]()
    for group in range(parquet.metadata.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        found += _named(_group_keys(parquet, group, rows, columns, len(found)), keys)
    return {key: row for row, (key, error) in enumerate(found) if error is None}


def _open(file: IO[bytes]) -> pq.ParquetFile | None:
    """None for a broken file. A real failure to read (an OSError with a number) is passed on."""
    try:
        return pq.ParquetFile(file, buffer_size=1 << 20, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as e:
        if getattr(e, "errno", None) is not None:
            raise
        return None


def _columns(schema: pa.Schema, url: str) -> _Columns:
    structs = [f.name for f in schema if pa.types.is_struct(f.type) and _has_bytes(f.type)]
    plain = [f.name for f in schema if _is_binary(f.type)]
    image = _choose(structs) or (_choose(plain) if not structs else None)
    if image is None:
        listed = ", ".join(f"{f.name}: {f.type}" for f in schema)
        which = "more than one column could be the image" if structs or plain else "no image column"
        mend = f"name one of them {'/'.join(IMAGE_COLUMNS)}, binary or a struct with bytes"
        raise UserError(f"{url}: {which} (columns: {listed}): {mend}")
    types = {f.name: f.type for f in schema}
    key = next((name for name in KEY_COLUMNS if name in types and _is_key(types[name])), None)
    if key is None and image in structs and any(f.name == "path" and _is_key(f.type) for f in types[image]):
        key = f"{image}.path"
    return _Columns(image, image in structs, key)


def _choose(names: list[str]) -> str | None:
    """The only one, or else the first that is called like an image."""
    return names[0] if len(names) == 1 else next((n for n in IMAGE_COLUMNS if n in names), None)


def _is_binary(t: pa.DataType) -> bool:
    return bool(pa.types.is_binary(t) or pa.types.is_large_binary(t) or pa.types.is_binary_view(t))


def _has_bytes(t: pa.StructType) -> bool:
    return any(f.name == "bytes" and _is_binary(f.type) for f in t)


def _is_key(t: pa.DataType) -> bool:
    t = t.value_type if pa.types.is_dictionary(t) else t
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer)
    return any(is_kind(t) for is_kind in kinds)


def _group_keys(parquet: pq.ParquetFile, group: int, rows: int, columns: _Columns, row: int) -> list[str]:
    """The keys of one row group as they stand in the file; `row=N` for a null, and for all if they are unreadable."""
    numbers = [f"row={row + i}" for i in range(rows)]
    if columns.key is None:
        return numbers
    values: list[str | None] = []
    try:
        for batch in parquet.iter_batches(_KEY_BATCH, [group], [columns.key], use_threads=False):
            values += _texts(_leaf(batch, columns.key, columns.image))
    except (pa.ArrowException, OSError) as e:
        if getattr(e, "errno", None) is not None:
            raise
        return numbers
    return [value or number for value, number in zip(values, numbers, strict=True)]


def _leaf(batch: pa.RecordBatch, path: str, image: str) -> pa.Array:
    if path in batch.schema.names:
        return batch.column(path)
    return pc.struct_field(batch.column(image), path.removeprefix(image + "."))


def _texts(column: pa.Array) -> list[str | None]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        return [None if v is None else str(v) for v in column.to_pylist()]
    raw = column.cast(pa.large_string()).cast(pa.large_binary())  # strings need not be UTF-8 in a foreign file
    return [None if v is None else v.decode("utf-8", "backslashreplace") for v in raw.to_pylist()]


def _named(found: list[str], keys: Keys) -> list[tuple[str, str | None]]:
    """(key, error) of each row: the second of a key gets a free number and the error."""
    named: list[tuple[str, str | None]] = []
    for key in found:
        error = f"duplicate key {key!r}: an earlier row of this file has it" if key in keys else None
        named.append((keys.give(key), error))
    return named


def _group_items(
    parquet: pq.ParquetFile, group: int, columns: _Columns, named: list[tuple[str, str | None]], wanted: range
) -> Iterator[Item]:
    """The `wanted` rows of one row group. Batches begin at the group's start whatever is wanted, so that a broken
    page takes the same rows with it for any unit size."""
    path = f"{columns.image}.bytes" if columns.in_struct else columns.image
    done = 0
    batches = parquet.iter_batches(_BATCH, [group], [path], use_threads=False)
    while done < wanted.stop and (batch := _next(batches)) is not None:
        data = _leaf(batch, path, columns.image)
        for i in range(max(done, wanted.start), min(done + len(data), wanted.stop)):
            key, error = named[i]
            value = None if error else data[i - done].as_py()
            yield Item(key, value, error or (None if value is not None else "no image bytes: the value is null"))
        done += len(data)
    for i in range(max(done, wanted.start), wanted.stop):
        key, error = named[i]
        yield Item(key, None, error or f"row group {group} of the Parquet file is broken: this row cannot be decoded")


def _next(batches: Iterator[Any]) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (pa.ArrowException, OSError) as e:
        if getattr(e, "errno", None) is not None:
            raise
        return None
