"""The encoded image behind a row, by shard and key: what a page needs, where a build only reads in order."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from maskmill.errors import UserError
from maskmill.storage import listing, remote
from maskmill.storage.build import Build, read_table
from maskmill.storage.files import exists
from maskmill.storage.parquet_images import find_rows
from maskmill.storage.sources import read_items, scan
from maskmill.storage.tars import find_members

OPENED = 16  # shards whose index is kept: about 150 bytes an image

V = TypeVar("V")


class MissingOriginal(Exception):
    """The image cannot be had from its source; the words say why."""


def unchanged(data: bytes, sha256: str | None) -> bytes:
    """The encoded image, if it is the one that the build saw. MissingOriginal: masks would lie on another picture."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise MissingOriginal("its bytes are others now: restore it, or give --images")
    return data


class Kept(Generic[V]):
    """The last `size` values, each made once while it is kept; for several threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.values: OrderedDict[object, V] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, key: object, make: Callable[[], V]) -> V:
        """The value of `key`. Two threads that ask for a new one may both make it."""
        with self.lock:
            if key in self.values:
                self.values.move_to_end(key)
                return self.values[key]
        value = make()
        with self.lock:
            self.values[key] = value
            while len(self.values) > self.size:
                self.values.popitem(last=False)
        return value

    def __getstate__(self) -> dict[str, Any]:
        """All but the lock: a process that reads samples may be started with a copy."""
        return {"size": self.size, "values": self.values}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=threading.Lock())


class ShardReader:
    """Encoded images by shard and key. shards: name -> (kind, url); opened: how many shards' indices are kept."""

    def __init__(self, shards: dict[str, tuple[str, str]], opened: int = OPENED) -> None:
        self.shards = shards
        self.members: Kept[dict[str, tuple[int, int]]] = Kept(opened)
        self.rows: Kept[dict[str, int]] = Kept(opened)

    def read(self, shard: str, key: str) -> bytes:
        """The encoded image. MissingOriginal: it, or its shard, is gone, unreadable, or was never known."""
        if shard not in self.shards:
            raise MissingOriginal(f"the source does not say where {shard!r} lies")
        kind, url = self.shards[shard]
        try:
            if kind == "folder":
                return self.from_folder(url, key)
            return self.from_tar(url, key) if kind == "tar" else self.from_parquet(url, key)
        except (OSError, UserError) as e:
            words = e.strerror if isinstance(e, OSError) and e.strerror else " ".join(str(e).split())
            raise MissingOriginal(f"{url} cannot be read: {words}") from e

    def from_folder(self, url: str, key: str) -> bytes:
        """One file."""
        item = next(read_items("folder", url, keys=[key]))
        if item.data is None:
            raise MissingOriginal(f"{listing.join(url, key)}: {item.error}")
        return item.data

    def from_tar(self, url: str, key: str) -> bytes:
        """One member."""
        place = self.places(url).get(key)
        if place is None:
            raise MissingOriginal(f"{url} has no image {key!r}")
        if listing.local_path(url) is None:
            fs, path = remote.filesystem(url)
            with remote.named(url):
                return bytes(fs.cat_file(path, start=place[0], end=place[0] + place[1]))
        with listing.open_file(url) as file:
            file.seek(place[0])
            return file.read(place[1])

    def places(self, url: str) -> dict[str, tuple[int, int]]:
        """key -> (first byte, bytes) of a tar's images: its headers are walked once, while the index is kept."""

        def index() -> dict[str, tuple[int, int]]:
            with listing.open_file(url) as file:
                return find_members(file)

        return self.members.get(url, index)

    def from_parquet(self, url: str, key: str) -> bytes:
        """One row. Batches of its row group that lie before it are read too."""

        def index() -> dict[str, int]:
            with listing.open_file(url) as file:
                return find_rows(file, url)

        row = self.rows.get(url, index).get(key)
        item = None if row is None else next(read_items("parquet", url, row, 1), None)
        if item is None or item.data is None:
            raise MissingOriginal(f"{url} has no image {key!r}" if item is None else f"{url} {key}: {item.error}")
        return item.data


class Originals(ShardReader):
    """The images that a build was made from, read where its plan says that they lie, or where `images` says now."""

    def __init__(self, build: Build, images: str | None = None, opened: int = OPENED) -> None:
        path = build.path / "plan.parquet"
        plan = read_table(path, ["kind", "shard", "url"]) if exists(path) else None
        named = {} if plan is None else plan.group_by(["kind", "shard", "url"]).aggregate([]).to_pydict()
        rows = zip(*(named.get(name, []) for name in ("shard", "kind", "url")), strict=True)
        shards: dict[str, tuple[str, str]] = {shard: (kind, url) for shard, kind, url in rows}
        if images is not None:
            now = scan(images)
            shards = {shard.name: (now.kind, shard.url) for shard in now.shards}
        super().__init__(shards, opened)
