"""Images with their masks, one by one in any order: what training and evaluation read.

A build, an SA-1B-style set (a folder of images with a .json beside each, or tars of both), or COCO JSON.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskmill.errors import UserError
from maskmill.masks.rle import decode
from maskmill.storage import coco_source, listing
from maskmill.storage.build import Build
from maskmill.storage.files import at, exists
from maskmill.storage.foreign import ForeignImage, Grid, foreign_rows
from maskmill.storage.originals import Kept, MissingOriginal, Originals, ShardReader
from maskmill.storage.pixels import decode_image, orientation_of
from maskmill.storage.sa1b_source import Sa1bFolder, Sa1bTar, scan_sa1b
from maskmill.storage.schemas import OK, runs_of_counts
from maskmill.storage.tars import find_json

MAX_MPX = 536.0
KEPT_UNITS = 64  # of a build, whose masks are kept in memory
ALL = 1 << 20  # shards whose index is kept: images are read in any order, and an index costs a walk over its shard


@dataclass(frozen=True)
class Annotated:
    """One image (H x W x 3 uint8, upright) and its masks as compressed counts, without crowds: those stand apart,
    (category, counts). A category is None where none is known."""

    name: str
    image: np.ndarray
    ids: tuple[int, ...]
    counts: tuple[str, ...]
    categories: tuple[str | None, ...]
    crowds: tuple[tuple[str | None, str], ...] = ()

    @cached_property
    def masks(self) -> np.ndarray:
        """bool N x H x W."""
        height, width = self.image.shape[:2]
        found = [decode(c, height, width) for c in self.counts]
        return np.stack(found) if found else np.zeros((0, height, width), bool)


class AnnotatedSet(Protocol):
    """Annotated images by number. `names` tells them apart and never holds an absolute path."""

    names: list[str]

    def read(self, i: int) -> Annotated:
        """The i-th. UserError, in one line, if the image or its masks cannot be read or do not fit each other."""
        ...

    def image_id(self, i: int) -> int:
        """The number by which the set's own files know the i-th: detections and other results name it so."""
        ...


def open_annotated(source: str, images: str | None = None, filter: str | None = None) -> AnnotatedSet:
    """The set that `source` names; `images`: where a build's or a COCO file's images lie; `filter`: which masks of a
    build. UserError, in one line, if it is none, or holds no image."""
    url = listing.absolute(source)
    if exists(at(source) / "build.json"):
        return BuildSet(Build(source), images, filter)
    if filter is not None:
        raise UserError(f"{source} is not a build: a filter ({filter!r}) chooses among a build's masks")
    if is_coco(url):
        return CocoSet(source, images)
    if images is not None:
        raise UserError(f"{source}: images ({images!r}) are named apart only for a build or for COCO JSON")
    return Sa1bSet(source)


def is_coco(url: str) -> bool:
    """Whether it names COCO JSON, or a folder with its `annotations`."""
    return url.endswith(".json") or listing.stat(listing.join(url, "annotations")) == "folder"


def has_images_apart(source: str) -> bool:
    """Whether its images lie somewhere else, as those of a build and of COCO JSON do."""
    return exists(at(source) / "build.json") or is_coco(listing.absolute(source))


def plain_name(name: str) -> str:
    """An image's name without the shard `.` that a build gives to a folder's images: as other sets name it."""
    return name.removeprefix("./")


class BuildSet:
    """Masks of a build, pixels from where its images lie."""

    def __init__(self, build: Build, images: str | None, filter: str | None) -> None:
        self.build, self.table = build, f"masks/{filter or build.own_filter}"
        if filter is not None and filter not in build.filters:
            raise UserError(f"{build.path} has no filter {filter!r}: it has {', '.join(build.filters)}")
        self.originals = Originals(build, images, ALL)
        self.manifests = [m for m in build.manifests() if "images" in m.files]
        self.rows: list[tuple[int, int, str, str]] = []  # unit, image id, shard, key
        for n, manifest in enumerate(self.manifests):
            rows = build.read_unit(manifest, "images", ["image_id", "shard", "key", "status"])
            good = rows.filter(pc.equal(rows["status"], OK)).to_pydict()
            self.rows += [(n, *row) for row in zip(good["image_id"], good["shard"], good["key"], strict=True)]
        if not self.rows:
            raise UserError(f"{build.path}: none of its images has masks: nothing to read")
        self.names = [f"{shard}/{key}" for _, _, shard, key in self.rows]
        self.units: Kept[pa.Table] = Kept(KEPT_UNITS)
        self.filtered = {m.unit: m for m in build.manifests(self.table)}

    @property
    def mask_files(self) -> list[str]:
        """sha256 of each of its files of masks."""
        return [m.files[self.table].sha256 for m in self.filtered.values() if self.table in m.files]

    def masks_of(self, unit: int) -> pa.Table:
        """One unit's rows of the masks."""
        manifest = self.filtered.get(self.manifests[unit].unit)
        if manifest is None or self.table not in manifest.files:
            raise UserError(f"{self.build.path}: {self.table} is not finished: unit {self.manifests[unit].unit} lacks")
        return self.build.read_unit(manifest, self.table, ["image_id", "mask_id", "counts", "meta"])

    def image_id(self, i: int) -> int:
        return self.rows[i][1]

    def read(self, i: int) -> Annotated:
        unit, number, shard, key = self.rows[i]
        table = self.units.get(unit, lambda: self.masks_of(unit))
        mine = table.filter(pc.equal(table["image_id"], number))
        try:
            image = decode_image(self.originals.read(shard, key), MAX_MPX)
        except (MissingOriginal, ValueError) as e:
            raise UserError(f"{self.build.path}: image {self.names[i]}: {e}") from e
        found = take(self.names[i], image, mine)
        if found.counts:  # all masks of an image have its size
            check_size(f"{self.build.path}: image {self.names[i]}, mask {found.ids[0]}", found.counts[0], image)
        return found


class Sa1bSet:
    """Images with a JSON each, in a folder or in tars."""

    def __init__(self, source: str) -> None:
        self.source, found = source, scan_sa1b(source)
        self.reader = ShardReader({s.name: (found.kind, s.url) for s in found.shards}, ALL)
        self.keys: list[tuple[str, str]] = []
        for shard in found.shards:
            if shard.files is not None:
                self.keys += [(shard.name, f.key) for f in shard.files]
                continue
            self.keys += [(shard.name, key) for key in self.reader.places(shard.url)]
        if not self.keys:
            raise UserError(f"{source}: it holds no image: nothing to read")
        self.names = [key if shard == "." else f"{shard}/{key}" for shard, key in self.keys]
        self.places: Kept[dict[str, tuple[int, int]]] = Kept(ALL)

    def annotations(self, shard: str, key: str) -> ForeignImage:
        """What the JSON of one image says. ValueError if it says nothing that can be taken."""
        kind, url = self.reader.shards[shard]
        if kind == "folder":
            return Sa1bFolder(url).read(key)
        with listing.open_file(url) as file:
            return Sa1bTar(file, self.places.get(url, lambda: find_json(file)), self.places.lock).read(key)

    def image_id(self, i: int) -> int:
        shard, key = self.keys[i]
        try:
            number = self.annotations(shard, key).image_id
        except ValueError as e:
            raise UserError(f"{self.source}: image {self.names[i]}: {e}") from e
        if number is None:
            raise UserError(f"{self.source}: image {self.names[i]}: its JSON has no image_id")
        return number

    def read(self, i: int) -> Annotated:
        shard, key = self.keys[i]
        try:
            return take_foreign(self.names[i], self.reader.read(shard, key), self.annotations(shard, key))
        except (MissingOriginal, ValueError) as e:
            raise UserError(f"{self.source}: image {self.names[i]}: {e}") from e


class CocoSet:
    """A COCO instances file; it is held in memory."""

    def __init__(self, source: str, images: str | None) -> None:
        self.url = coco_source.find_json(source)
        found = coco_source.read_file(self.url)
        self.ids = {name: number for number, name in found.keys.items()}
        self.names = sorted(self.ids)
        self.folder = coco_source.find_images(self.url, images, self.names)
        self.reader = ShardReader({".": ("folder", self.folder)})
        held: dict[str, bytes] = {}
        coco_source.slice_file(found, {"all": self.names}, held.__setitem__)
        self.about = coco_source.CocoSlice(held["all"])
        self.image_ids = {key: number for number, key in found.keys.items()}
        self.category_ids = {name: number for number, name in self.about.categories.items()}

    def image_id(self, i: int) -> int:
        return self.ids[self.names[i]]

    def read(self, i: int) -> Annotated:
        key = self.names[i]
        try:
            return take_foreign(key, self.reader.read(".", key), self.about.read(key))
        except (MissingOriginal, ValueError) as e:
            raise UserError(f"{self.url}: image {key}: {e}") from e


def take_foreign(name: str, data: bytes, said: ForeignImage) -> Annotated:
    """An encoded image with what a file says about it. ValueError if they do not fit each other."""
    image = decode_image(data, MAX_MPX)
    grid = Grid(image.shape[0], image.shape[1], orientation_of(data))
    return take(name, image, foreign_rows(said, 0, grid))


def take(name: str, image: np.ndarray, rows: pa.Table) -> Annotated:
    """The rows of an image's masks; crowds apart."""
    ids, counts, texts = (rows[c].to_pylist() for c in ("mask_id", "counts", "meta"))
    metas = [json.loads(t) if t else {} for t in texts]
    categories = [str(m["category"]) if m.get("category") is not None else None for m in metas]
    kept = [n for n, m in enumerate(metas) if not m.get("iscrowd")]
    crowds = [(categories[n], counts[n]) for n, m in enumerate(metas) if m.get("iscrowd")]
    return Annotated(
        name,
        image,
        tuple(ids[n] for n in kept),
        tuple(counts[n] for n in kept),
        tuple(categories[n] for n in kept),
        tuple(crowds),
    )


def check_size(what: str, counts: str, image: np.ndarray) -> None:
    """Refuse a mask that was made on another grid: the images have been changed since."""
    height, width = image.shape[:2]
    if sum(runs_of_counts(counts) or []) != height * width:
        raise UserError(f"{what}: the mask does not fit its image of {width}x{height}: give the images that it is of")
