"""SA-1B sets as a source: a folder of images with a JSON beside each, or tars that hold both."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import IO, Protocol

from maskmill.errors import UserError
from maskmill.storage import listing, remote
from maskmill.storage.foreign import ForeignImage
from maskmill.storage.items import extension
from maskmill.storage.listing import FileStat
from maskmill.storage.sa1b import from_sa1b
from maskmill.storage.sources import ImageSet, Kind, scan
from maskmill.storage.tars import find_json, find_members


class Annotations(Protocol):
    """What a source says about the images of one unit."""

    def read(self, key: str) -> ForeignImage:
        """About one image. ValueError if nothing is said, or nothing that can be taken."""
        ...


def scan_sa1b(source: str) -> ImageSet:
    """The image set that `source` names, each image of a folder joined with its JSON: a change of either is seen.

    A JSON without an image is listed as its image, `a.json` as `a.jpg`, so that it is missed by name. UserError if no
    image has a JSON, or two images would share one.
    """
    images = scan(source)
    if images.kind == "parquet":
        raise UserError(f"{source}: Parquet: SA-1B lies in a folder of images with a .json beside each, or in tars")
    if images.kind == "tar":
        return images
    shard = images.shards[0]
    tellers = {json_name(f.key): f for f in listing.list_folder(images.url) if extension(f.key) == "json"}
    files: dict[str, FileStat] = {}
    for image in shard.files or ():
        name = json_name(image.key)
        if name in files:
            both = f"{files[name].key} and {image.key}"
            raise UserError(f"{source}: {both} share {name}: rename one of them, with its .json")
        files[name] = joined(image, tellers.get(name))
    if not tellers.keys() & files.keys():
        first = next(iter(files.values())).key
        raise UserError(f"{source}: no image has its .json beside it (first: {first}): is it COCO? Then --format coco")
    lonely = [FileStat(name.removesuffix(".json") + ".jpg", 0, "") for name in tellers.keys() - files.keys()]
    every = [*files.values(), *(joined(image, tellers[json_name(image.key)]) for image in lonely)]
    every.sort(key=lambda f: f.key)
    shard = replace(shard, files=tuple(every), bytes=sum(f.bytes for f in every))
    return replace(images, shards=(shard,))


def json_name(key: str) -> str:
    """`sub/sa_1.jpg`, `sub/sa_1.JSON` -> `sub/sa_1.json`."""
    return key[: -len(extension(key)) - 1] + ".json"


def joined(image: FileStat, teller: FileStat | None) -> FileStat:
    """An image and its JSON as one file."""
    if teller is None:
        return FileStat(image.key, image.bytes, f"{image.version} -")
    return FileStat(image.key, image.bytes + teller.bytes, f"{image.version} {teller.version}")


def lonely_json(url: str) -> list[str]:
    """Keys of samples of a tar that have a JSON and no image."""
    with listing.open_file(url) as file:
        return sorted(find_json(file).keys() - find_members(file).keys())


@contextmanager
def open_sa1b(kind: Kind, url: str) -> Iterator[Annotations]:
    """For the images of one shard."""
    if kind == "tar":
        with listing.open_file(url) as file:
            yield Sa1bTar(file, find_json(file), threading.Lock())
    else:
        yield Sa1bFolder(url)


@dataclass(frozen=True)
class Sa1bFolder:
    """Files beside the images."""

    url: str

    def read(self, key: str) -> ForeignImage:
        """From `key` with .json in place of its extension."""
        name = json_name(key)
        for written in dict.fromkeys(listing.disk_name(n) for n in (name, name.removesuffix("json") + "JSON")):
            url, data = listing.join(self.url, written), None
            with suppress(FileNotFoundError), remote.named(name), listing.open_file(url) as file:
                data = file.read()
            if data is not None:
                return of_file(name, data)
        raise ValueError(f"no annotations: {name} is not there")


@dataclass(frozen=True)
class Sa1bTar:
    """Members of a tar."""

    file: IO[bytes]
    places: dict[str, tuple[int, int]]
    lock: threading.Lock

    def read(self, key: str) -> ForeignImage:
        """From the .json of the same sample."""
        if key not in self.places:
            raise ValueError(f"no annotations: {key}.json is not in the tar")
        start, size = self.places[key]
        with self.lock:
            self.file.seek(start)
            data = self.file.read(size)
        return of_file(f"{key}.json", data)


def of_file(name: str, data: bytes) -> ForeignImage:
    """`from_sa1b` with the name of the file in its errors."""
    try:
        return from_sa1b(data)
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from e
