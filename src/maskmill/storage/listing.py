"""Local paths and fsspec URLs alike: what is there, what a folder holds, and its bytes.

Local files go through `os`, not through fsspec: nanosecond times, symlink loops and broken links matter here.
"""

import os
import re
import stat as mode_bits
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any, Literal

from maskmill.errors import UserError
from maskmill.storage.remote import filesystem, first_line, named
from maskmill.storage.walk import walk

_BLOCK = 4 << 20  # bytes that a remote file reads ahead
_ETAGS = ("ETag", "etag", "e_tag")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


@dataclass(frozen=True)
class FileStat:
    """A file of a folder: its POSIX path relative to the folder, its size, and its ETag or mtime in ns."""

    key: str
    bytes: int
    version: str


def local_path(url: str) -> str | None:
    """The absolute local path that `url` means; None for a remote URL."""
    for scheme in ("file://", "local://"):
        url = url.removeprefix(scheme)
    return None if "://" in url else os.path.abspath(os.path.expanduser(url))


def absolute(url: str) -> str:
    """`url` in the form that is kept: an absolute local path, or a URL without a slash at its end."""
    path = local_path(url)
    return path if path is not None else url if url.endswith("://") else url.rstrip("/")


def join(folder: str, key: str) -> str:
    """The URL of `key` in `folder`."""
    return folder + key if folder.endswith("/") else f"{folder}/{key}"


def disk_name(key: str) -> str:
    """The file name behind a key with escapes of bytes that are not UTF-8 (`caf\\xe9.jpg`)."""
    return re.sub(r"\\x([89a-f][0-9a-f])", lambda m: chr(0xDC00 + int(m[1], 16)), key)


def open_file(url: str) -> IO[bytes]:
    """A seekable binary file. A remote one is read ahead by a few MiB, never held whole."""
    if (path := local_path(url)) is not None:
        return open(path, "rb")
    fs, remote = filesystem(url)
    with named(url):
        file: IO[bytes] = fs.open(remote, "rb", block_size=_BLOCK)
    if getattr(file, "size", 0) is None:
        file.close()
        raise UserError(f"{url}: the server does not tell the file's size, so it cannot be read in parts: copy it here")
    return file


def stat(url: str) -> FileStat | Literal["folder"] | None:
    """What is at `url` (as from `absolute`): a file (its key is ""), a folder, or nothing."""
    if (path := local_path(url)) is not None:
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise UserError(f"{url}: cannot be looked at ({e.strerror}): check the name and its permissions") from e
        return "folder" if mode_bits.S_ISDIR(found.st_mode) else _local_stat("", found)
    with _one_line(url):
        fs, remote = filesystem(url)
        fs.invalidate_cache()
        try:
            info = fs.info(remote)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return "folder" if info["type"] == "directory" else _remote_stat("", info)


def list_folder(url: str, depth: int | None = None) -> list[FileStat]:
    """The files under the folder `url`, sorted by key; `depth` 1: only its own. Names with a leading dot are left out.

    A local folder that symlinks reach twice is listed once. A broken link is listed, with no version. A name that
    is not UTF-8 gets escapes, so that its key can be stored (`disk_name` finds the file again).
    """
    if (path := local_path(url)) is not None:
        found = [_local_stat(os.fsencode(n).decode("utf-8", "backslashreplace"), s) for n, s in walk(path, depth)]
    else:
        with _one_line(url):
            fs, remote = filesystem(url)
            fs.invalidate_cache()
            infos: dict[str, dict[str, Any]] = fs.find(remote, maxdepth=depth, withdirs=False, detail=True)
            root = remote.rstrip("/")
            found = [_remote_stat(name.removeprefix(root).lstrip("/"), info) for name, info in infos.items()]
        # a key with a slash at its end is what S3's console makes for an empty folder
        found = [f for f in found if f.key and f.key[-1] != "/" and f.key[0] != "." and "/." not in f.key]
    return sorted(found, key=lambda f: f.key)


def _local_stat(key: str, found: os.stat_result | None) -> FileStat:
    return FileStat(key, found.st_size, str(found.st_mtime_ns)) if found else FileStat(key, 0, "")


def _remote_stat(key: str, info: dict[str, Any]) -> FileStat:
    etag = next((str(info[k]).strip('"') for k in _ETAGS if info.get(k)), None)
    time = next((_nanoseconds(info[k]) for k in _TIMES if info.get(k)), "")
    return FileStat(key, int(info.get("size") or 0), etag or time)


def _nanoseconds(time: Any) -> str:
    if isinstance(time, datetime):
        time = time.timestamp()
    return str(round(time * 1e6) * 1000) if isinstance(time, int | float) else str(time)


@contextmanager
def _one_line(url: str) -> Iterator[None]:
    """Whatever a remote file system raises, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        words = first_line(e)
        raise UserError(f"{url}: cannot be listed ({words}): check the address, network and credentials") from e
