"""Large files written as a stream, that appear under their name only when they are whole."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

from upath import UPath

from maskmill.storage import remote
from maskmill.storage.files import is_local, local, sync_folder, temporary


@contextmanager
def open_whole(path: UPath) -> Iterator[IO[bytes]]:
    """A binary file to write. It is at `path` once the block has ended well, and replaces what was there; else nothing.

    Local: a temporary name, then rename. S3, GCS: the upload is completed at the end, or given up.
    """
    if not is_local(path):
        yield from _remote(path)
        return
    local(path).parent.mkdir(parents=True, exist_ok=True)
    tmp = temporary(local(path))
    try:
        with tmp.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        tmp.rename(local(path))
    finally:
        tmp.unlink(missing_ok=True)
    sync_folder(local(path).parent)


def sync_files(paths: Iterable[UPath]) -> None:
    """Wait until local files, written without, are on the disk. Many at once: most are there already."""
    here = [local(path) for path in paths if is_local(path)]
    for path in here:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    for folder in sorted({path.parent for path in here}):
        sync_folder(folder)


def _remote(path: UPath) -> Iterator[IO[bytes]]:
    with remote.named(path):
        file = path.fs.open(path.path, "wb", autocommit=False)
    try:
        yield file
        with remote.named(path):
            file.close()
            file.commit()
    except BaseException:
        with suppress(Exception):  # the first error is the one to tell
            file.discard()
        raise
