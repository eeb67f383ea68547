"""A COCO instances file as a source. The JSON is read as a stream: its size does not matter."""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskmill.errors import UserError
from maskmill.storage import listing
from maskmill.storage.coco import OURS, file_name_of, from_coco
from maskmill.storage.foreign import ForeignImage, is_int, need_id
from maskmill.storage.json_stream import JsonError, stream_object
from maskmill.storage.listing import FileStat
from maskmill.storage.sources import ImageSet, Shard

HELD = 64 << 20  # characters of slices in memory, then they go to temporary files


@dataclass
class CocoFile:
    """What the JSON holds beside its annotations."""

    url: str
    keys: dict[int, str] = field(default_factory=dict)  # image id -> file_name
    categories: list[dict[str, Any]] = field(default_factory=list)
    licenses: list[Any] = field(default_factory=list)
    ours: bool = False  # an export of ours

    @property
    def head(self) -> dict[str, Any]:
        """What every slice begins with, and build.json keeps."""
        return {"ours": self.ours, "categories": self.categories, "licenses": self.licenses}


def find_json(source: str) -> str:
    """The instances file that `source` names: itself, or the only JSON of a folder or of its annotations/."""
    url = listing.absolute(source)
    found = listing.stat(url)
    if found is None:
        raise UserError(f"{source}: no such file or folder: give the instances .json of a COCO set")
    if isinstance(found, FileStat):
        return url
    names = [f.key for f in listing.list_folder(url, depth=2) if f.key.endswith(".json")]
    names = [n for n in names if "/" not in n or n.startswith("annotations/")]
    if len(names) != 1:
        what = (
            f"{len(names)} JSON files ({', '.join(names[:4])}{' ...' if len(names) > 4 else ''})"
            if names
            else "no JSON"
        )
        raise UserError(f"{source}: {what} here and in annotations/: name the instances file itself")
    return listing.join(url, names[0])


def read_file(url: str) -> CocoFile:
    """One pass over the whole file, so that what is broken shows before any work. UserError, in one line."""
    found = CocoFile(url)
    named: set[int] = set()
    seen: set[str] = set()
    keys: dict[str, int] = {}
    for part, value in parts(url):
        seen.add(part)
        if value == []:
            continue
        match part:
            case "images":
                take_image(found, keys, value)
            case "annotations":
                named.add(take(found.url, value, lambda a: need_id(a, f"annotation {a.get('id')}", "image_id")))
            case "categories":
                take(found.url, value, lambda c: need_id(c, "a category"))
                found.categories.append(value)
            case "licenses":
                found.licenses.append(value)
            case "info" if isinstance(value, dict):
                found.ours = OURS in value
    if missing := {"images", "annotations"} - seen:
        raise UserError(f"{url}: it has no {' and no '.join(map(repr, sorted(missing)))}: give a COCO instances file")
    if not found.keys:
        raise UserError(f"{url}: its list of images is empty: nothing to import")
    if strangers := named - found.keys.keys():
        raise UserError(
            f"{url}: annotations name {len(strangers)} image_ids that are not among its images (first: "
            f"{min(strangers)}): take them out, or add the images"
        )
    return found


def parts(url: str) -> Iterator[tuple[str, Any]]:
    """The records of the file."""
    try:
        with listing.open_file(url) as file:
            yield from stream_object(file)
    except JsonError as e:
        of_results = "begins with '['" in str(e)
        hint = "a COCO results list has no images: give the instances file" if of_results else "copy it again"
        raise UserError(f"{url}: {e}: {hint}") from e


def take(url: str, record: Any, number: Callable[[dict[str, Any]], int]) -> int:
    """An id out of a record, or UserError."""
    if not isinstance(record, dict):
        raise UserError(f"{url}: found {str(record)[:40]!r} where a record should be: give a COCO instances file")
    try:
        return number(record)
    except ValueError as e:
        raise UserError(f"{url}: {e}: mend the file") from e


def take_image(found: CocoFile, keys: dict[str, int], record: Any) -> None:
    """One of `images`: ids and names must be the only ones."""
    number = take(found.url, record, lambda r: need_id(r, "an image"))
    try:
        key = file_name_of(record)
    except ValueError as e:
        raise UserError(f"{found.url}: {e}: mend the file") from e
    if number in found.keys:
        raise UserError(f"{found.url}: two images have id {number} ({found.keys[number]} and {key}): mend the file")
    if key in keys:
        raise UserError(f"{found.url}: images {keys[key]} and {number} are both {key}: mend the file")
    found.keys[number] = key
    keys[key] = number


def find_images(json_url: str, images: str | None, keys: list[str]) -> str:
    """The folder that holds the images: the one that is named, else where COCO sets and our exports have it."""
    if images is not None:
        url = listing.absolute(images)
        if listing.stat(url) != "folder":
            raise UserError(f"--images {images!r} is not a folder: give the folder that holds {keys[0]}")
        return url
    some = keys[:: max(1, len(keys) // 8)]  # any one may be missing
    folder, _, name = json_url.rpartition("/")
    above = folder.rpartition("/")[0]
    split = name.removesuffix(".json").rpartition("_")[2]  # instances_val2017.json -> val2017
    places = [folder, f"{folder}/images", f"{above}/images", f"{above}/{split}", f"{above}/images/{split}", above]
    for place in places:
        if any(isinstance(listing.stat(listing.join(place, key)), FileStat) for key in some):
            return place
    where = ", ".join(places)
    raise UserError(f"{json_url}: {keys[0]} is not in {where}: say with --images which folder holds the images")


def image_set(url: str, keys: Iterable[str]) -> ImageSet:
    """The images of the JSON in the folder `url`; one that is missing is listed without a version."""
    there = {f.key: f for f in listing.list_folder(url)}
    files = tuple(there.get(key, FileStat(key, 0, "")) for key in sorted(keys))
    return ImageSet(url, "folder", (Shard(".", url, sum(f.bytes for f in files), "", files),))


class Slices:
    """Lines for each unit; those that do not fit into memory wait in temporary files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.held, self.size = folder, dict[str, list[str]](), 0

    def add(self, unit: str, record: dict[str, Any]) -> None:
        """One more line."""
        line = json.dumps(record) + "\n"
        self.held.setdefault(unit, []).append(line)
        self.size += len(line)
        if self.size > HELD:
            for name, lines in self.held.items():
                with (self.folder / name).open("a", encoding="utf-8") as file:
                    file.writelines(lines)
            self.held, self.size = {}, 0

    def take(self, unit: str) -> bytes:
        """All lines of a unit."""
        path = self.folder / unit
        before = path.read_bytes() if path.exists() else b""
        return before + "".join(self.held.get(unit, [])).encode()


def slice_file(coco: CocoFile, units: Mapping[str, Iterable[str]], write: Callable[[str, bytes], None]) -> None:
    """The file cut by units (unit -> keys of its images), in a second pass: `write(unit, lines)` for each.

    So a worker reads what it needs, not the whole file. Lines: the head, then {"image": ...} or {"annotation": ...}.
    """
    unit_of = {key: unit for unit, keys in units.items() for key in keys}
    with tempfile.TemporaryDirectory(prefix="maskmill-") as folder:
        slices = Slices(Path(folder))
        for unit in units:
            slices.add(unit, coco.head)
        for part, value in parts(coco.url):
            if part not in ("images", "annotations") or value == []:
                continue
            number = value["id" if part == "images" else "image_id"]
            if (unit_name := unit_of.get(coco.keys.get(number, ""))) is not None:
                slices.add(unit_name, {part.removesuffix("s"): value})
        for unit in units:
            write(unit, slices.take(unit))


class CocoSlice:
    """What the file says about the images of one unit."""

    def __init__(self, lines: bytes) -> None:
        first, *rest = lines.splitlines()
        head = json.loads(first)
        self.ours: bool = head["ours"]
        self.categories = {c["id"]: str(c.get("name")) for c in head["categories"] if is_int(c.get("id"))}
        self.images: dict[str, dict[str, Any]] = {}
        self.annotations: dict[int, list[dict[str, Any]]] = {}
        for line in rest:
            record = json.loads(line)
            if (image := record.get("image")) is not None:
                self.images[file_name_of(image)] = image
            else:
                found = record["annotation"]
                self.annotations.setdefault(found["image_id"], []).append(found)

    def read(self, key: str) -> ForeignImage:
        """About one image. ValueError for what cannot be taken."""
        image = self.images[key]
        return from_coco(image, self.annotations.get(image["id"], []), self.categories, self.ours)
