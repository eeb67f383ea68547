"""Every file under a local folder, through symlinks, each folder once."""

import os
import stat
from collections.abc import Iterator

from maskmill.errors import UserError


def walk(root: str, depth: int | None) -> Iterator[tuple[str, os.stat_result | None]]:
    """(path relative to `root`, stat) of each regular file; stat is None for a broken link. In no promised order.

    Names with a leading dot are left out, folders too. Links to folders are followed, but no folder is listed
    twice: a loop ends. `depth` 1: only the folder's own files. Nothing where there is no folder; a folder that
    cannot be listed is a UserError, because its images would be lost without a word.
    """
    real = os.path.realpath(root)
    if not os.path.isdir(real):
        return
    # A link to the root or to a folder above it would only lead here again.
    above = [real[:i] or "/" for i, c in enumerate(real) if c == "/"]
    seen = {_identity(path) for path in [real, *above]}
    folders: list[tuple[str, int]] = [("", 1)]
    links: list[tuple[str, int]] = []
    while folders or links:
        # Real folders first: what can be reached without a link is listed under its own path.
        name, level = folders.pop() if folders else links.pop(0)
        if name and (identity := _identity(os.path.join(root, name))) in seen:
            continue
        elif name:
            seen.add(identity)
        for entry in _entries(os.path.join(root, name)):
            inner = f"{name}/{entry.name}" if name else entry.name
            if not _is_folder(entry):
                yield from _file(inner, entry)
            elif depth is None or level < depth:
                (links if entry.is_symlink() else folders).append((inner, level + 1))


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _entries(path: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(path) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as e:
        raise UserError(f"{path}: the folder cannot be listed ({e.strerror}): check its permissions") from e


def _file(name: str, entry: "os.DirEntry[str]") -> Iterator[tuple[str, os.stat_result | None]]:
    try:
        found = entry.stat()
    except OSError:
        yield name, None
        return
    if stat.S_ISREG(found.st_mode):  # a pipe or a socket would hang its reader
        yield name, found
