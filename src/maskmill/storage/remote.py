"""Remote file systems by fsspec: one set of options for input and output, and what a build needs of one."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
from fsspec import AbstractFileSystem

from maskmill.errors import UserError

# Storage whose `pipe_file(mode="create")` is a compare-and-set: S3's If-None-Match, GCS's ifGenerationMatch=0.
CREATES_IF_ABSENT = ("s3", "s3a", "gs", "gcs")

# botocore repeats 5xx, throttling, timeouts and resets itself, waiting longer each time; s3fs adds five tries around.
_S3 = {
    "config_kwargs": {
        "retries": {"mode": "standard", "max_attempts": 6},
        "connect_timeout": 10,
        "read_timeout": 60,
    }
}


def protocol(url: str) -> str:
    """`s3` of `s3://bucket/key`; "" for a local path."""
    scheme, separator, _ = url.partition("://")
    return scheme if separator and scheme not in ("file", "local") else ""


def options(url: str) -> dict[str, Any]:
    """What the file system of `url` is opened with. Listings are never cached: other processes write there.

    fsspec's own configuration (FSSPEC_S3='{"config_kwargs": {"read_timeout": 300}}') goes before our settings.
    """
    if protocol(url) not in ("s3", "s3a"):
        return {"use_listings_cache": False}
    theirs = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"use_listings_cache": False, "config_kwargs": {**_S3["config_kwargs"], **theirs}}


def require(url: str) -> None:
    """UserError unless the package for `url` is installed, and `url` names a bucket where it must."""
    scheme = protocol(url)
    if scheme in CREATES_IF_ABSENT and not url.partition("://")[2].split("/")[0]:
        raise UserError(f"{url}: no bucket is named: give {scheme}://bucket/folder")
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError as e:
        raise UserError(f"{url}: {scheme}:// is not known: give a local path, or a URL such as s3:// or gs://") from e
    except ImportError as e:
        extra = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}.get(scheme)
        mend = f"pip install 'maskmill[{extra}]'" if extra else "install the package that the message names"
        raise UserError(f"{url}: {scheme}:// needs another package ({first_line(e)}): {mend}") from e


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of `url`, and the path in it."""
    require(url)
    fs, path = fsspec.url_to_fs(url, **options(url))
    return fs, path


def read_whole(fs: AbstractFileSystem, path: str) -> bytes:
    """A file by one request. (s3fs asks for the size first, unless it may not split the request.)"""
    data: bytes = fs.cat_file(path, max_concurrency=1) if "s3" in fs.protocol else fs.cat_file(path)
    return data


def code(error: BaseException | None) -> str:
    """S3's own name of an error or of its cause, such as `NoSuchKey`; "" if there is none."""
    while error is not None:
        if response := getattr(error, "response", None):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


@contextmanager
def named(url: object) -> Iterator[None]:
    """Whatever a client library raises, as an OSError that names `url`. FileNotFoundError and FileExistsError pass."""
    try:
        yield
    except (UserError, FileNotFoundError, FileExistsError, MemoryError):
        raise
    except Exception as e:
        number = e.errno if isinstance(e, OSError) and e.errno else None
        number = number or (errno.EACCES if isinstance(e, PermissionError) else errno.EIO)
        address = str(url).split("?")[0] if protocol(str(url)) in ("http", "https") else str(url)  # it may be signed
        raise OSError(number, getattr(e, "strerror", None) or first_line(e), address) from e


def first_line(e: Exception) -> str:
    """What a library says, cut to one line."""
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:300]
