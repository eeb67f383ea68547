"""Label maps: one PNG for each image, a whole number for each pixel. Only for masks that do not overlap."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from maskmill.masks.rle import decode

MOST = 65_535  # labels of a 16-bit PNG


class OverlapError(ValueError):
    """Two masks share pixels: a label map cannot hold both."""


def overlapping(masks: Sequence[dict[str, Any]]) -> bool:
    """Whether any two masks (rows of one image) share a pixel: from the run lengths, without pixels."""
    rles = [{"size": [row["height"], row["width"]], "counts": row["counts"].encode("ascii")} for row in masks]
    return len(rles) > 1 and int(coco.area(coco.merge(rles))) < sum(row["area"] for row in masks)


def label_map(height: int, width: int, masks: Iterable[dict[str, Any]]) -> np.ndarray:
    """uint16 H x W: 0 where no mask lies, n on the n-th of `masks` (rows). OverlapError if two share a pixel."""
    labels = np.zeros((height, width), np.uint16)
    ids: list[int] = []
    for row in masks:
        ids.append(row["mask_id"])
        if len(ids) > MOST:
            raise ValueError(f"it has more than {MOST} masks: a 16-bit label map holds no more")
        inside = decode(row["counts"], height, width)
        if under := int(labels[inside].max(initial=0)):
            shared = int(np.count_nonzero(labels[inside]))
            raise OverlapError(f"masks {ids[under - 1]} and {ids[-1]} overlap ({shared} pixels are taken already)")
        labels[inside] = len(ids)
    return labels


def encode_labels(labels: np.ndarray) -> bytes:
    """A 16-bit grey PNG."""
    out = io.BytesIO()
    Image.fromarray(labels).save(out, "PNG", compress_level=4)
    return out.getvalue()


def encode_mask(row: dict[str, Any]) -> bytes:
    """A 1-bit PNG of one mask: white where it lies."""
    out = io.BytesIO()
    Image.fromarray(decode(row["counts"], row["height"], row["width"])).save(out, "PNG", compress_level=4)
    return out.getvalue()
