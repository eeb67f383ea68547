"""Image sets: what IMAGES names (`scan`), how many images a shard holds, and the encoded images in it."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

from maskmill.errors import UserError
from maskmill.storage import listing, patterns, remote
from maskmill.storage.items import IMAGE_EXTENSIONS, Item, extension
from maskmill.storage.listing import FileStat
from maskmill.storage.parquet_images import count_parquet, read_parquet
from maskmill.storage.tars import count_tar, read_tar

__all__ = ["FileStat", "ImageSet", "Item", "Kind", "Shard", "count_items", "image_id", "read_items", "scan"]

Kind = Literal["folder", "tar", "parquet"]


@dataclass(frozen=True)
class Shard:
    """One tar, one Parquet file, or a whole folder of images."""

    name: str  # its path inside the image set ("." for a folder of images), never absolute
    url: str  # what to open; for a folder its root
    bytes: int  # the file's size; for a folder the sum
    version: str  # ETag, else mtime in ns, else ""; for a folder "": each file has its own
    files: tuple[FileStat, ...] | None  # of a folder, sorted by key


@dataclass(frozen=True)
class ImageSet:
    """What one IMAGES argument names."""

    url: str  # absolute
    kind: Kind
    shards: tuple[Shard, ...]  # sorted by name


def image_id(shard: str, key: str) -> int:
    """63 bits of the sha256 of the shard's name, NUL, key (UTF-8): its first 8 bytes, big-endian, less the last bit."""
    digest = hashlib.sha256(f"{shard}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def scan(images: str) -> ImageSet:
    """Lists what `images` names: a folder, a tar, a Parquet file, a glob or a brace range; local or any fsspec URL.

    No payload is read. UserError, in one line: nothing there, no images, mixed or unknown types, a gap in a range.
    """
    if not images.strip():
        raise UserError("IMAGES is empty: give a folder, a tar, a Parquet file, or a pattern of them")
    if "::" in images and not os.path.exists(images):
        raise UserError(f"{images}: chained URLs are not supported: unpack it, or give the plain address")
    url = listing.absolute(images)
    found = listing.stat(url)  # first: a name may hold brackets and braces of its own
    if found == "folder":
        return _folder(images, url)
    if isinstance(found, FileStat):
        return _set_of_files(images, url, {url: found}, _without_query(url).rpartition("/")[0])
    if not patterns.is_pattern(url):
        raise UserError(f"{images}: no such file or folder: check the path (relative paths start in {_here(images)})")
    named = patterns.matching(url)
    if not named:
        raise UserError(f"{images}: nothing matches: check the pattern, and quote it so that the shell leaves it alone")
    return _set_of_files(images, url, named, patterns.fixed_folder(url))


def _here(images: str) -> str:
    return "the current folder" if listing.local_path(images) is not None else "the bucket's root"


def _without_query(url: str) -> str:
    return url.split("?")[0] if url.startswith(("http://", "https://")) else url


def _kind(name: str) -> Kind | None:
    ext = extension(_without_query(name))
    return "folder" if ext in IMAGE_EXTENSIONS else "tar" if ext == "tar" else "parquet" if ext == "parquet" else None


def _folder(images: str, url: str) -> ImageSet:
    found = listing.list_folder(url)
    if not found:
        raise UserError(f"{images}: the folder is empty: give a folder that holds images, .tar or .parquet files")
    by_kind: dict[Kind, list[FileStat]] = {}
    for file in found:
        if kind := _kind(file.key):
            by_kind.setdefault(kind, []).append(file)
    if not by_kind:
        raise UserError(f"{images}: no images, tars or Parquet files here, only {_what(found)}")
    if len(by_kind) > 1:
        words = {"folder": "images", "tar": "tars", "parquet": "Parquet files"}
        mixed = ", ".join(f"{len(group)} {words[kind]} ({group[0].key})" for kind, group in sorted(by_kind.items()))
        raise UserError(f"{images}: one kind only, but here are {mixed}: move them apart, or name one kind by a glob")
    kind, group = next(iter(by_kind.items()))
    if kind != "folder":
        return _set_of_files(images, url, {listing.join(url, f.key): f for f in group}, url)
    return ImageSet(url, kind, (Shard(".", url, sum(f.bytes for f in group), "", tuple(group)),))


def _what(found: list[FileStat]) -> str:
    counts = Counter("." + extension(f.key) if extension(f.key) else "no extension" for f in found)
    return ", ".join(f"{n} with {ext}" if ext[0] != "." else f"{n} {ext}" for ext, n in counts.most_common(5))


def _set_of_files(images: str, url: str, named: dict[str, FileStat], root: str) -> ImageSet:
    """Tars or Parquet files that were named one by one."""
    kinds: dict[Kind, str] = {}
    for file_url, file in named.items():
        kind = _kind(file_url)
        if kind is None:
            raise UserError(f"{file_url}: an unknown type: give a folder of images, .tar (not compressed) or .parquet")
        if kind == "folder":
            raise UserError(f"{file_url}: a single image: give its folder, {file_url.rpartition('/')[0] or '.'}")
        if not file.version and listing.local_path(file_url) is not None:
            raise UserError(f"{file_url}: a broken link: mend or remove it")
        kinds.setdefault(kind, file_url)
    if len(kinds) > 1:
        raise UserError(f"{images}: tars and Parquet files together ({', '.join(kinds.values())}): name one kind")
    shards = [_shard(file_url, file, root) for file_url, file in named.items()]
    return ImageSet(url, next(iter(kinds)), tuple(sorted(shards, key=lambda s: s.name)))


def _shard(url: str, file: FileStat, root: str) -> Shard:
    name = _without_query(url).removeprefix(root).lstrip("/")  # a signed address must not end up in rows
    if listing.local_path(url) is not None and not os.path.exists(url):
        url = listing.disk_name(url)
    return Shard(name, url, file.bytes, file.version, None)


def count_items(kind: Kind, url: str) -> int | None:
    """The exact number of Items of a shard: headers of a local tar, footer of a Parquet file. None: a remote tar.

    Raises UserError for a Parquet file without an image column, OSError if the file cannot be opened.
    """
    if kind == "folder":
        return sum(len(shard.files or ()) for shard in scan(url).shards)
    if kind == "tar" and listing.local_path(url) is None:
        return None
    with listing.open_file(url) as file:
        return count_tar(file) if kind == "tar" else count_parquet(file, url)


def read_items(
    kind: Kind, url: str, start: int = 0, count: int | None = None, keys: Sequence[str] | None = None
) -> Iterator[Item]:
    """The images of one shard, encoded, one at a time in memory.

    tar, parquet: the Items [start, start + count) in archive order, to the end if `count` is None.
    folder: exactly `keys`, in this order. A file that is gone or unreadable is an Item with its error.
    Raises UserError for a Parquet file without an image column, OSError if the shard cannot be opened or the
    network fails: that is worth another try, and no fault of the image.
    """
    if kind == "folder":
        if keys is None:
            raise ValueError("read_items: a folder needs keys")
        yield from _read_local(url, keys) if listing.local_path(url) is not None else _read_remote(url, keys)
        return
    with listing.open_file(url) as file, nullcontext() if listing.local_path(url) is not None else remote.named(url):
        yield from read_tar(file, start, count) if kind == "tar" else read_parquet(file, url, start, count)


def _read_local(url: str, keys: Sequence[str]) -> Iterator[Item]:
    root = listing.local_path(url) or url
    for key in keys:
        path = listing.join(root, key)
        path = path if os.path.exists(path) else listing.join(root, listing.disk_name(key))
        try:
            if os.path.exists(path) and not os.path.isfile(path):
                raise IsADirectoryError(0, "not a regular file")  # a pipe would hang its reader
            with open(path, "rb") as file:
                item = Item(key, file.read(), None)
        except OSError as e:
            item = Item(key, None, f"the file cannot be read: {e.strerror}")
        yield item


# What S3 says of the caller or of the bucket; every image would meet it, so no image is to blame.
_NOT_THE_IMAGE = (
    "AccountProblem", "ExpiredToken", "InvalidAccessKeyId", "InvalidSecurity", "InvalidToken", "NoSuchBucket",
    "NotSignedUp", "RequestTimeTooSkewed", "SignatureDoesNotMatch",
)  # fmt: skip


def _read_remote(url: str, keys: Sequence[str]) -> Iterator[Item]:
    fs, root = remote.filesystem(url)
    for key in keys:
        path = listing.join(root, key)
        try:
            with remote.named(listing.join(url, key)):
                item = Item(key, remote.read_whole(fs, path), None)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as e:
            if remote.code(e) in _NOT_THE_IMAGE:
                raise
            words = "Permission denied" if isinstance(e, PermissionError) else "No such file or directory"
            item = Item(key, None, f"the file cannot be read: {words}")
        yield item
