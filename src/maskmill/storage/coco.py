"""COCO instances JSON: written as a stream, and read record by record (cocodataset.org/#format-data).

COCO's own conventions: boxes XYWH with w = xmax - xmin + 1, ids from 1 (evaluation takes an id of 0 for "no match").
Our ids, scores, prompts and `meta` stand in each record's `meta`, from where an import takes them back.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from maskmill.storage.files import json_text
from maskmill.storage.foreign import SOURCE, ForeignImage, ForeignMask, is_int, need_id, need_score, take_masks
from maskmill.storage.sa1b import extras, take_crop, take_point

Row = dict[str, Any]

NO_CATEGORY = "object"  # the name for masks without a category
OURS = "maskmill"  # in `info`: the `meta` of each record is of our making

_IMAGE = ("id", "width", "height", "file_name", "meta")
_ANNOTATION = ("id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd", "meta")


class Categories:
    """The categories of an export: those that an import brought along, then what stands in the `meta` of masks."""

    def __init__(self, known: Iterable[dict[str, Any]] = ()) -> None:
        self.records: dict[int, dict[str, Any]] = {record["id"]: record for record in known}
        self.names: dict[str, None] = {}  # without an id, in the order they came

    def add(self, meta: str | None) -> None:
        """Take up what the `meta` of one mask says."""
        tree = json.loads(meta) if meta is not None else {}
        number, name = tree.get("category_id"), str(tree.get("category", NO_CATEGORY))
        if not is_int(number):
            self.names[name] = None
        elif number not in self.records:
            self.records[number] = {"id": number, "name": name, "supercategory": name}

    def settle(self) -> None:
        """Number what has no id yet. After the last `add`: no id may be given twice."""
        taken = {record.get("name") for record in self.records.values()}
        for name in self.names:
            if name not in taken:
                number = max(self.records, default=0) + 1
                self.records[number] = {"id": number, "name": name, "supercategory": name}
        self.numbers = {str(record.get("name")): number for number, record in self.records.items()}

    def find(self, tree: dict[str, Any]) -> int:
        """The id of a mask's category by its `meta`."""
        number = tree.get("category_id")
        return number if is_int(number) else self.numbers[str(tree.get("category", NO_CATEGORY))]

    def listed(self) -> list[dict[str, Any]]:
        """By id."""
        return [self.records[number] for number in sorted(self.records)]


def to_coco_image(row: Row, number: int, file_name: str) -> dict[str, Any]:
    """The record of an image from its row in `images`; `number` is its id in the file."""
    ours = {"image_id": row["image_id"], "shard": row["shard"], "key": row["key"]}
    if row["meta"] is not None:
        ours["meta"] = json.loads(row["meta"])
    return {"id": number, "width": row["width"], "height": row["height"], "file_name": file_name, "meta": ours}


def to_coco_mask(row: Row, number: int, image_number: int, categories: Categories) -> dict[str, Any]:
    """The record of a mask. `number`, `image_number`: its id and its image's id in the file."""
    meta = json.loads(row["meta"]) if row["meta"] is not None else {}
    crop = [row[f"crop_{name}"] for name in "xywh"]
    ours = {
        "mask_id": row["mask_id"],
        "predicted_iou": row["predicted_iou"],
        "stability_score": row["stability_score"],
        "point_coords": None if row["point_x"] is None else [[row["point_x"], row["point_y"]]],
        "crop_box": None if None in crop else crop,
        "source": row["source"],
        "model": row["model"],
        "meta": meta or None,
    }
    x, y, w, h = (row[f"bbox_{name}"] for name in "xywh")
    return {
        "id": number,
        "image_id": image_number,
        "category_id": categories.find(meta),
        "segmentation": {"size": [row["height"], row["width"]], "counts": row["counts"]},
        "area": row["area"],
        "bbox": [x, y, w + 1, h + 1] if row["area"] else [0.0, 0.0, 0.0, 0.0],
        "iscrowd": int(bool(meta.get("iscrowd", 0))),
        "meta": {name: value for name, value in ours.items() if value is not None},
    }


def coco_json(
    head: dict[str, Any],
    images: Iterable[dict[str, Any]],
    annotations: Iterable[dict[str, Any]],
) -> Iterator[bytes]:
    """The file in pieces, one record a line; nothing is held but the record in work. `head`: what comes before them."""
    yield json_text(head)[:-1].encode()
    for name, records in (("images", images), ("annotations", annotations)):
        yield f', "{name}": ['.encode()
        for i, record in enumerate(records):
            yield ((",\n" if i else "\n") + json_text(record)).encode()
        yield b"\n]"
    yield b"}\n"


def file_name_of(image: Row) -> str:
    """The path of an image within its folder. LVIS has only an address, whose last two parts are that."""
    name = image.get("file_name") or "/".join(str(image.get("coco_url") or "").split("/")[-2:])
    if not isinstance(name, str) or not name or re.search("[\ud800-\udfff]", name):
        raise ValueError(f"image {image.get('id')} has file_name {str(image.get('file_name'))[:80]!r}")
    if name.startswith("/") or ".." in re.split(r"[/\\]", name):
        raise ValueError(f"image {image.get('id')} has file_name {name[:80]!r}: it leads out of the images' folder")
    return name


def from_coco(image: Row, annotations: list[Row], categories: dict[int, str], ours: bool) -> ForeignImage:
    """One image of a COCO file. `ours`: the file is an export of ours. ValueError if it has no id."""
    about = image["meta"] if ours and isinstance(image.get("meta"), dict) else {}
    meta = extras(bare(image) if ours else image, _IMAGE)
    if ours:
        meta |= {k: v for k, v in about.items() if k not in ("image_id", "meta")} | (about.get("meta") or {})
    image_id = need_id(about, "image", "image_id") if "image_id" in about else need_id(image, "image")
    width, height = (image[k] if is_int(image.get(k)) else None for k in ("width", "height"))
    taken = {_own_id(a) for a in annotations} if ours else set()
    free = (n for n in itertools.count(max((n for n in taken if is_int(n)), default=-1) + 1))
    masks, broken = take_masks(annotations, lambda a: _mask(a, categories, ours, free))
    return ForeignImage(image_id, width, height, masks, meta, broken)


def bare(record: Row) -> Row:
    """A record of ours without its `meta`, which is taken apart."""
    return {k: v for k, v in record.items() if k != "meta"}


def _own_id(record: Row) -> Any:
    """The mask_id of a record of ours; None if another tool added it."""
    return record["meta"].get("mask_id") if isinstance(record.get("meta"), dict) else None


def _mask(record: Row, categories: dict[int, str], ours: bool, free: Iterator[int]) -> ForeignMask:
    """`free`: ids for records that another tool added to a file of ours, whose own ids count through the file."""
    number = need_id(record, "an annotation")
    try:
        about = record["meta"] if ours and isinstance(record.get("meta"), dict) else {}
        mask_id = need_id(about, "meta", "mask_id") if "mask_id" in about else next(free) if ours else number
        scores = need_score(about, "predicted_iou"), need_score(about, "stability_score")
        meta = _meta(record, about, categories, ours)
        point, crop = take_point(about, meta), take_crop(about, meta)
    except ValueError as e:
        raise ValueError(f"annotation {number}: {e}") from e
    return ForeignMask(mask_id, record.get("segmentation"), *scores, point, crop, meta)


def _meta(record: Row, about: Row, categories: dict[int, str], ours: bool) -> dict[str, Any]:
    """Category, crowd flag, and every field that our columns have no place for."""
    meta = extras(bare(record) if ours else record, _ANNOTATION)
    if ours:
        made_by = {k: about[k] for k in ("source", "model") if about.get(k) not in (None, SOURCE)}
        meta |= made_by | (about.get("meta") or {})
    if record.get("iscrowd"):
        meta["iscrowd"] = record["iscrowd"]
    number = record.get("category_id")
    if number is None:
        return meta
    if not categories:  # a name is known to nobody
        return meta | {"category_id": number}
    if number not in categories:
        raise ValueError(f"its category_id {str(number)[:40]!r} is not among the file's categories")
    name = categories[number]
    if name != meta.get("category", NO_CATEGORY if ours else None):  # ours: unless another tool has changed it since
        meta |= {"category": name, "category_id": number}
    return meta
