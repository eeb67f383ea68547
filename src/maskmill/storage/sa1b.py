"""SA-1B's JSON: one file for each image, beside it (segment-anything, README.md:118-145).

Field order and types are those of the published files. Boxes are XYWH with w = xmax - xmin, as in our tables. What
SA-1B has no field for stands in `meta`, after its own fields, and only where there is something.
"""

import json
from typing import Any

from maskmill.storage.foreign import ForeignImage, ForeignMask, is_int, is_number, need_id, need_score, take_masks

Row = dict[str, Any]

_IMAGE = ("image_id", "width", "height", "file_name", "meta")
_ANNOTATION = (
    "bbox", "area", "segmentation", "predicted_iou", "point_coords", "crop_box", "id", "stability_score", "meta",
)  # fmt: skip


def stem(image_id: int) -> str:
    """SA-1B's name for an image and its JSON, without the extension."""
    return f"sa_{image_id}"


def to_sa1b(image: Row, masks: list[Row], file_name: str) -> dict[str, Any]:
    """The tree of one image, from its row in `images` and its masks. Absent scores, points and crops are null."""
    about = {
        "image_id": image["image_id"],
        "width": image["width"],
        "height": image["height"],
        "file_name": file_name,
        **_meta_of(image),
    }
    return {"image": about, "annotations": [annotation(row) for row in masks]}


def annotation(row: Row) -> dict[str, Any]:
    """One mask."""
    crop = [row[f"crop_{name}"] for name in "xywh"]
    return {
        "bbox": [row[f"bbox_{name}"] for name in "xywh"],
        "area": row["area"],
        "segmentation": {"size": [row["height"], row["width"]], "counts": row["counts"]},
        "predicted_iou": row["predicted_iou"],
        "point_coords": None if row["point_x"] is None else [[row["point_x"], row["point_y"]]],
        "crop_box": None if None in crop else [float(v) for v in crop],
        "id": row["mask_id"],
        "stability_score": row["stability_score"],
        **_meta_of(row),
    }


def _meta_of(row: Row) -> dict[str, Any]:
    return {} if row["meta"] is None else {"meta": json.loads(row["meta"])}


def from_sa1b(data: bytes) -> ForeignImage:
    """The content of one JSON file. Fields that SA-1B does not have go to `meta`. ValueError if it is no such file."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"broken JSON: {' '.join(str(e).split())}") from e
    annotations = tree.get("annotations") if isinstance(tree, dict) else None
    if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
        raise ValueError("not SA-1B JSON: it has no list of 'annotations'")
    image = tree.get("image", {})
    if not isinstance(image, dict):
        raise ValueError(f"not SA-1B JSON: 'image' is {str(image)[:40]!r}")
    image_id = need_id(image, "image", "image_id") if image.get("image_id") is not None else None
    width, height = (image[k] if is_int(image.get(k)) else None for k in ("width", "height"))
    masks, broken = take_masks(list(enumerate(annotations)), lambda a: _mask(a[1], f"annotation number {a[0] + 1}"))
    return ForeignImage(image_id, width, height, masks, extras(image, _IMAGE), broken)


def _mask(record: dict[str, Any], what: str) -> ForeignMask:
    mask_id = need_id(record, what)
    meta = extras(record, _ANNOTATION)
    point, crop = take_point(record, meta), take_crop(record, meta)
    try:
        scores = need_score(record, "predicted_iou"), need_score(record, "stability_score")
    except ValueError as e:
        raise ValueError(f"annotation {mask_id}: {e}") from e
    return ForeignMask(mask_id, record.get("segmentation"), *scores, point, crop, meta)


def extras(record: dict[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """What is not among the known fields, and the content of `meta`."""
    own = record.get("meta")
    rest = {name: value for name, value in record.items() if name not in known and value is not None}
    return rest | (own if isinstance(own, dict) else {} if own is None else {"meta": own})


def take_point(record: dict[str, Any], meta: dict[str, Any]) -> tuple[float, float] | None:
    """The only point of `point_coords`; any other list of points goes to `meta`, as our columns hold one."""
    points = record.get("point_coords")
    match points:
        case [[x, y]] if is_number(x) and is_number(y):
            return float(x), float(y)
    if points is not None:
        meta["point_coords"] = points
    return None


def take_crop(record: dict[str, Any], meta: dict[str, Any]) -> tuple[int, int, int, int] | None:
    """`crop_box` in whole pixels; any other one goes to `meta`."""
    crop = record.get("crop_box")
    match crop:
        case [_, _, _, _] if all(is_number(v) and float(v).is_integer() and abs(v) < 1 << 31 for v in crop):
            x, y, w, h = (int(v) for v in crop)
            return x, y, w, h
    if crop is not None:
        meta["crop_box"] = crop
    return None
