"""WebDataset tars: images in archive order, with a row also for what is doubled or cut short.

`tarfile` ends silently at garbage in the middle of an archive and at a missing end marker, so its headers are
read here one by one, strictly. Everything seeks: payloads of skipped members are never read.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from maskmill.storage.items import Item, Keys, extension, is_image

_TAIL = 1 << 20  # how far after the end marker data is looked for: the largest record that tars are padded to
# What tarfile raises on broken headers; OSError is not among them: a failing disk or network is not a broken tar.
_BAD_HEADER = (tarfile.TarError, ValueError, LookupError, EOFError, OverflowError, RecursionError, MemoryError)


@dataclass(frozen=True)
class _Broken:
    """The tar cannot be followed beyond this byte."""

    at: int
    words: str


class _Headers(tarfile.TarFile):
    """A TarFile that does not read a first member by itself (it would raise on a broken one)."""

    def next(self) -> None:
        return None


def count_tar(file: IO[bytes]) -> int:
    """The number of Items that read_tar gives, from the headers alone. `file`: seekable."""
    return sum(1 for _ in _entries(_open(file), _size(file)))


def read_tar(file: IO[bytes], start: int, count: int | None) -> Iterator[Item]:
    """The Items [start, start + count) of the tar, in archive order; to the end if `count` is None.

    `file`: seekable. One payload is in memory at a time. OSError of the file itself is passed on.
    """
    tar = _open(file)
    for n, (key, member, error) in enumerate(_entries(tar, _size(file))):
        if count is not None and n >= start + count:
            return
        if n >= start:
            yield Item(key, None, error) if error else _payload(tar, key, member)


def find_members(file: IO[bytes]) -> dict[str, tuple[int, int]]:
    """key -> (first byte, bytes) of every image that read_tar gives whole, from the headers alone."""
    entries = _entries(_open(file), _size(file))
    return {key: (member.offset_data, member.size) for key, member, error in entries if member and not error}


def find_json(file: IO[bytes]) -> dict[str, tuple[int, int]]:
    """key -> (first byte, bytes) of the first .json of every sample, wherever it stands, from the headers alone."""
    found: dict[str, tuple[int, int]] = {}
    for member in _members(_open(file), _size(file)):
        if not isinstance(member, _Broken) and member.isreg():
            name = _clean(member.name)
            if extension(name) == "json" and not name.rsplit("/", 1)[-1].startswith("."):
                found.setdefault(_key(name), (member.offset_data, member.size))
    return found


def _open(file: IO[bytes]) -> _Headers:
    file.seek(0)
    # backslashreplace: a name that is not UTF-8 must still be a valid string in Parquet
    return _Headers(fileobj=file, mode="r", encoding="utf-8", errors="backslashreplace")


def _size(file: IO[bytes]) -> int:
    return file.seek(0, 2) or file.tell()  # some fsspec files return None from seek


def _payload(tar: _Headers, key: str, member: tarfile.TarInfo | None) -> Item:
    try:
        stream = tar.extractfile(member) if member else None
        data = stream.read() if stream else None
    except tarfile.TarError:
        data = None
    if member is None or data is None or len(data) != member.size:
        return Item(key, None, "the member's data cannot be read from the tar")
    return Item(key, data, None)


def _entries(tar: _Headers, size: int) -> Iterator[tuple[str, tarfile.TarInfo | None, str | None]]:
    """(key, member, error) of each Item. The same walk counts and reads, so the numbers always agree."""
    keys = Keys()
    sample: str | None = None  # the key of the run of members that we are in
    first = ""  # this run's image, "" before it
    for member in _members(tar, size):
        if isinstance(member, _Broken):
            yield keys.give(f"@byte={member.at}"), None, member.words
            return
        name = _clean(member.name)
        if not member.isreg() or name.rsplit("/", 1)[-1].startswith("."):
            continue
        if (key := _key(name)) != sample:
            sample, first = key, ""
        if not is_image(name):
            continue
        if first:
            words = f"a second image in sample {key!r}: {name!r} follows {first!r}, and a sample has one image"
            yield keys.give(key), member, words
            continue
        first = name
        error = f"duplicate key {key!r}: an earlier sample of this tar has it" if key in keys else None
        yield keys.give(key), member, error


def _members(tar: _Headers, size: int) -> Iterator[tarfile.TarInfo | _Broken]:
    """Every whole member, then one _Broken unless the archive ends as it should."""
    file: IO[bytes] = tar.fileobj  # type: ignore[assignment]
    while True:
        at = tar.offset
        if at >= size:
            yield _Broken(size, "the tar is cut short: no end-of-archive blocks" if size else "the tar is empty")
            return
        file.seek(at)
        try:
            member = tarfile.TarInfo.fromtarfile(tar)
        except _BAD_HEADER:
            if broken := _ending(file, at, size):
                yield broken
            return
        if member.size < 0 or tar.offset <= at:
            yield _Broken(at, "the tar is broken: a header without sense")
            return
        # tarfile seeks over payloads, so a cut one would only show at the next header. Padding may be missing.
        payload = min(tar.offset - member.offset_data, member.size)
        if (missing := member.offset_data + payload - size) > 0:
            yield _Broken(at, f"the tar is cut short: {missing} bytes of member {_clean(member.name)!r} are missing")
            return
        yield member


def _ending(file: IO[bytes], at: int, size: int) -> _Broken | None:
    """What stands at byte `at`, where no header could be read: the end marker (None), or what is wrong."""
    file.seek(at)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        where = (
            "not a tar, or cut short in its first header" if at == 0 else "broken or cut short: no whole header here"
        )
        return _Broken(at, f"the tar is {where}")
    tail = file.read(min(_TAIL, size - file.tell()))
    return _Broken(at, "data after the end of the archive (concatenated tars?)") if any(tail) else None


def _clean(name: str) -> str:
    while name.startswith(("./", "/")):
        name = name.removeprefix("./").lstrip("/")
    return name


def _key(name: str) -> str:
    """WebDataset's key: up to the first dot of the file name, folder included: `a/b.c.jpg` -> `a/b`."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]
