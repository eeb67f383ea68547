"""Masks that others made, on their way into a build: COCO segmentations of any kind -> rows on the upright grid.

A mask's size decides where it lies: on the grid of the upright image (as a viewer shows it) it is taken as it is; on
that of the stored pixels, whose EXIF orientation turns the image by 90 degrees, it is turned with its image. Anything
else is refused. Boxes and areas are those of the pixels, whatever the source says.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeGuard, TypeVar

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco

from maskmill.masks.rle import compress, decode, encode
from maskmill.storage.files import json_text
from maskmill.storage.pixels import to_upright
from maskmill.storage.schemas import MASKS, runs_of_counts

SOURCE = "import"
T = TypeVar("T")


@dataclass(frozen=True)
class ForeignMask:
    """One annotation. Point (x, y) and crop (XYWH) lie on the grid of the segmentation."""

    mask_id: int
    segmentation: Any  # RLE, compressed or not, or polygons
    predicted_iou: float | None = None
    stability_score: float | None = None
    point: tuple[float, float] | None = None
    crop: tuple[int, int, int, int] | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ForeignImage:
    """What a file says about one image; None where it says nothing."""

    image_id: int | None
    width: int | None
    height: int | None
    masks: list[ForeignMask]
    meta: dict[str, Any] = field(default_factory=dict)
    broken: str | None = None  # an annotation that cannot be taken; there are no masks then


@dataclass(frozen=True)
class Grid:
    """The upright grid of an image, and the EXIF orientation (1-8) that leads to it from the stored pixels."""

    height: int
    width: int
    orientation: int

    @property
    def stored(self) -> tuple[int, int]:
        """Height and width before orientation."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)

    def is_upright(self, height: int, width: int) -> bool:
        """Whether this size is the upright one (else the stored one); ValueError if it is neither."""
        if (height, width) == (self.height, self.width):
            return True
        if (height, width) == self.stored:
            return False
        raise ValueError(f"its size is {width}x{height}, the image is {self.width}x{self.height}")


def foreign_rows(image: ForeignImage, image_id: int, grid: Grid) -> pa.Table:
    """The rows of one image, by mask_id. ValueError, naming the annotation, if one cannot be taken."""
    if image.broken is not None:
        raise ValueError(image.broken)
    if image.height is not None and image.width is not None:
        try:
            grid.is_upright(image.height, image.width)
        except ValueError:
            raise ValueError(
                f"the annotations are for {image.width}x{image.height}, the image is {grid.width}x{grid.height}"
            ) from None
    rows = []
    seen: set[int] = set()
    for mask in image.masks:
        try:
            if mask.mask_id in seen:
                raise ValueError("its id stands there twice")
            seen.add(mask.mask_id)
            rows.append({"image_id": image_id, **foreign_row(mask, image, grid)})
        except ValueError as e:
            raise ValueError(f"annotation {mask.mask_id}: {e}") from e
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["mask_id"]), schema=MASKS)


def foreign_row(mask: ForeignMask, image: ForeignImage, grid: Grid) -> dict[str, Any]:
    """One mask, without its image_id."""
    if isinstance(mask.segmentation, dict):
        height, width = size_of(mask.segmentation)
    else:
        height, width = image.height or grid.height, image.width or grid.width
    upright = grid.is_upright(height, width)  # first: what follows takes memory as the size says
    counts, point, crop = read_counts(mask.segmentation, height, width), mask.point, mask.crop
    if not upright:
        counts = encode(to_upright(decode(counts, height, width), grid.orientation))
        point = point and turn(grid.orientation, *point, width - 1, height - 1)
        crop = crop and turn_box(grid.orientation, crop, width, height)
    rle = {"size": [grid.height, grid.width], "counts": counts.encode()}
    x, y, w, h = coco.toBbox(rle).tolist()
    return {
        "mask_id": mask.mask_id,
        "height": grid.height,
        "width": grid.width,
        "counts": counts,
        "area": int(coco.area(rle)),
        "bbox_x": x,
        "bbox_y": y,
        "bbox_w": max(w - 1, 0),
        "bbox_h": max(h - 1, 0),
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
        **dict(zip(("point_x", "point_y"), point or (None, None), strict=True)),
        **dict(zip(("crop_x", "crop_y", "crop_w", "crop_h"), crop or (None,) * 4, strict=True)),
        "source": SOURCE,
        "model": None,
        "meta": to_meta(mask.meta),
    }


def take_masks(records: list[T], take: Callable[[T], ForeignMask]) -> tuple[list[ForeignMask], str | None]:
    """Every record as a mask; none, and what is wrong, if one is broken."""
    try:
        return [take(record) for record in records], None
    except ValueError as e:
        return [], str(e)


def to_meta(tree: dict[str, Any]) -> str | None:
    """What stands in a `meta` column."""
    return json_text(tree) if tree else None


def size_of(rle: dict[str, Any]) -> tuple[int, int]:
    """Height and width that an RLE states."""
    size = rle.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(is_int(n) and n > 0 for n in size)):
        raise ValueError(f"its RLE has size {ascii(size)[:40]}: expected [height, width]")
    return size[0], size[1]


def read_counts(segmentation: Any, height: int, width: int) -> str:
    """COCO's compressed counts of a segmentation of any kind on a height x width grid. ValueError if it is broken."""
    if isinstance(segmentation, dict):
        return read_rle(segmentation.get("counts"), height, width)
    if isinstance(segmentation, list) and segmentation:
        return draw_polygons(segmentation, height, width)
    raise ValueError(f"it has no mask: its segmentation is {str(segmentation)[:40]!r}")


def read_rle(counts: Any, height: int, width: int) -> str:
    """From a compressed string or a list of runs."""
    runs = counts if isinstance(counts, list) else runs_of_counts(counts) if isinstance(counts, str) else None
    if runs is None or not all(is_int(n) and n >= 0 for n in runs):
        raise ValueError(f"its RLE is broken: counts are {str(counts)[:40]!r}")
    if sum(runs) != height * width:
        raise ValueError(f"its RLE is broken: counts cover {sum(runs)} pixels of {width}x{height}")
    # an empty run in the middle is legal, but pycocotools would find a box that is too large
    plain = isinstance(counts, str) and 0 not in runs[1:]
    return counts if plain else compress(join_runs(runs), height, width)


def join_runs(runs: list[int]) -> np.ndarray:
    """The same pixels without empty runs, but for a first one."""
    values = np.repeat(np.arange(len(runs)) % 2, np.asarray(runs, np.int64) > 0)
    lengths = np.asarray([n for n in runs if n > 0], np.int64)
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    joined = np.add.reduceat(lengths, starts) if len(starts) else lengths
    return joined if not len(values) or values[0] == 0 else np.concatenate([[0], joined])


def draw_polygons(polygons: list[Any], height: int, width: int) -> str:
    """Polygons as pycocotools draws them, one mask of all. They may reach over the edge of the image, within reason."""
    for polygon in polygons:
        if not (isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0):
            raise ValueError(f"its polygon {str(polygon)[:40]} is not a list of three or more x, y")
        if not all(is_number(v) for v in polygon):
            raise ValueError("its polygon holds what is no number")
        most = 2 * max(height, width)  # beyond, pycocotools' memory grows with the polygon, not with the image
        if any(not -most <= v <= 2 * most for v in polygon):
            raise ValueError(f"its polygon leaves the image, {width}x{height}, by far")
    parts = coco.frPyObjects([[float(v) for v in polygon] for polygon in polygons], height, width)
    counts: bytes = coco.merge(parts)["counts"]
    return counts.decode("ascii")


def turn(orientation: int, x: float, y: float, width: float, height: float) -> tuple[float, float]:
    """A place in a stored image whose corner opposite to (0, 0) is (width, height), after orientation 5-8."""
    places = {5: (y, x), 6: (height - y, x), 7: (height - y, width - x), 8: (y, width - x)}
    return places[orientation]


def turn_box(orientation: int, box: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """XYWH, after orientation 5-8."""
    x, y, w, h = box
    (x0, y0), (x1, y1) = (turn(orientation, *p, width, height) for p in ((x, y), (x + w, y + h)))
    return int(min(x0, x1)), int(min(y0, y1)), int(abs(x1 - x0)), int(abs(y1 - y0))


def is_int(value: Any) -> TypeGuard[int]:
    """A whole number of JSON; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[float]:
    """A finite number of JSON."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def need_id(record: dict[str, Any], what: str, name: str = "id") -> int:
    """The id of a record, an int64. ValueError without one."""
    value = record.get(name)
    if not is_int(value) or not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{what} has {name} {str(value)[:40]!r}: expected a whole number")
    return value


def need_score(record: dict[str, Any], name: str) -> float | None:
    """A number, or None where there is none. ValueError for anything else."""
    value = record.get(name)
    if value is not None and not is_number(value):
        raise ValueError(f"{name} is {str(value)[:40]!r}: expected a number")
    return None if value is None else float(value)
