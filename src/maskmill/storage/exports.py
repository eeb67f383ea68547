"""What one image becomes in an export: files of a folder, or members of a tar."""

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from PIL import Image
from upath import UPath

from maskmill.storage.files import write_bytes
from maskmill.storage.labelmaps import encode_labels, encode_mask, label_map
from maskmill.storage.pixels import decode_image, extension_of, orientation_of
from maskmill.storage.sa1b import stem, to_sa1b
from maskmill.storage.whole import open_whole

Format = Literal["sa1b", "sa1b-tar", "coco", "webdataset", "png"]
FORMATS: tuple[Format, ...] = ("sa1b", "sa1b-tar", "coco", "webdataset", "png")
Row = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """An encoded image as it is written; `orientation` is that of its bytes (EXIF, 1-8)."""

    data: bytes
    extension: str
    orientation: int


def picture(data: bytes, upright: bool, max_mpx: float) -> Picture:
    """The bytes as they are; with `upright` an image that its EXIF turns is turned and written as PNG, which loses
    nothing, so that readers with and without EXIF see the same."""
    orientation = orientation_of(data)
    if orientation == 1 or not upright:
        return Picture(data, extension_of(data), orientation)
    out = io.BytesIO()
    Image.fromarray(decode_image(data, max_mpx)).save(out, "PNG", compress_level=4)
    return Picture(out.getvalue(), "png", 1)


class Sink(Protocol):
    """Where the images of one unit go. `written`: files that are not synced yet."""

    written: list[UPath]

    def add(self, image: Row, masks: list[Row], picture: Picture | None) -> str:
        """Write one image and its masks (rows of the tables). Returns the name of its file in the export."""
        ...


@contextmanager
def open_sink(format: Format, dest: UPath, unit: str) -> Iterator[Sink]:
    """For one unit; what goes into a tar is there when the block has ended well."""
    if format == "sa1b-tar" or format == "webdataset":
        name = f"{stem_of_unit(unit)}.tar" if format == "sa1b-tar" else f"{unit}.tar"
        with open_whole(dest / name) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            yield Sa1bTar(tar, name) if format == "sa1b-tar" else WebDataset(tar, name)
    elif format == "sa1b":
        yield Sa1bFolder(dest, stem_of_unit(unit))
    else:
        yield CocoImages(dest) if format == "coco" else LabelMaps(dest, unit)


def stem_of_unit(unit: str) -> str:
    """SA-1B's tars are called sa_000000.tar and so on."""
    return f"sa_{unit}"


@dataclass
class Sa1bFolder:
    """sa_UNIT/sa_ID.jpg and sa_ID.json: an unpacked tar of SA-1B."""

    dest: UPath
    folder: str
    written: list[UPath] = field(default_factory=list)

    def add(self, image: Row, masks: list[Row], picture: Picture | None) -> str:
        """Two files, or the JSON alone."""
        name = stem(image["image_id"])
        file_name = f"{name}.{picture.extension}" if picture else image["key"]
        if picture:
            put(self, self.dest / self.folder / file_name, picture.data)
        text = json.dumps(to_sa1b(image, masks, file_name)).encode()
        put(self, self.dest / self.folder / f"{name}.json", text)
        return f"{self.folder}/{file_name if picture else name + '.json'}"


@dataclass
class Sa1bTar:
    """sa_ID.jpg and sa_ID.json side by side in a tar, as SA-1B ships them."""

    tar: tarfile.TarFile
    name: str
    written: list[UPath] = field(default_factory=list)

    def add(self, image: Row, masks: list[Row], picture: Picture | None) -> str:
        """Two members, or the JSON alone."""
        name = stem(image["image_id"])
        file_name = f"{name}.{picture.extension}" if picture else image["key"]
        if picture:
            add_member(self.tar, f"./{file_name}", picture.data)
        add_member(self.tar, f"./{name}.json", json.dumps(to_sa1b(image, masks, file_name)).encode())
        return f"{self.name}/{file_name if picture else name + '.json'}"


@dataclass
class WebDataset:
    """One sample for each image: ID.jpg, ID.json and ID.MASK.png for each mask, white on black, one bit a pixel.

    The JSON is SA-1B's with what the tables hold besides; each annotation names its picture in `mask`.
    """

    tar: tarfile.TarFile
    name: str
    written: list[UPath] = field(default_factory=list)

    def add(self, image: Row, masks: list[Row], picture: Picture | None) -> str:
        """All members of the sample, one after another as WebDataset needs them."""
        key = f"{image['image_id']:012d}"
        file_name = f"{key}.{picture.extension}" if picture else image["key"]
        tree = to_sa1b(image, masks, file_name)
        tree["image"] |= {name: image[name] for name in ("shard", "key", "sha256")}
        for record, row in zip(tree["annotations"], masks, strict=True):
            record |= {"mask": f"{row['mask_id']}.png", "source": row["source"], "model": row["model"]}
        if picture:
            add_member(self.tar, file_name, picture.data)
        add_member(self.tar, f"{key}.json", json.dumps(tree).encode())
        for row in masks:
            add_member(self.tar, f"{key}.{row['mask_id']}.png", encode_mask(row))
        return f"{self.name}/{file_name if picture else key + '.json'}"


@dataclass
class CocoImages:
    """images/ID.jpg; the JSON over all of them is written at the end."""

    dest: UPath
    written: list[UPath] = field(default_factory=list)

    def add(self, image: Row, masks: list[Row], picture: Picture | None) -> str:
        """One file, or none: then the JSON names images by their key."""
        if picture is None:
            return str(image["key"])
        name = f"images/{image['image_id']:012d}.{picture.extension}"
        put(self, self.dest / name, picture.data)
        return name


@dataclass
class LabelMaps:
    """UNIT/ID.png: a label map, 16 bits a pixel: 0 where no mask lies, n on the n-th mask by mask_id."""

    dest: UPath
    unit: str
    written: list[UPath] = field(default_factory=list)

    def add(self, image: Row, masks: list[Row], picture: Picture | None) -> str:
        """One file."""
        name = f"{self.unit}/{image['image_id']:012d}.png"
        labels = label_map(image["height"], image["width"], masks)
        put(self, self.dest / name, encode_labels(labels))
        return name


def put(sink: Sink, path: UPath, data: bytes) -> None:
    """A file that is to be synced with all of its unit."""
    write_bytes(path, data, synced=False)
    sink.written.append(path)


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member without time or owner: the same build gives the same tar."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
