"""BUILD/preview.jpg: a few images of the build beside their masks, for a first look."""

import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from maskmill.pipeline.plan import read_plan
from maskmill.report.overlay import sheet, side_by_side
from maskmill.storage.build import Build
from maskmill.storage.files import write_bytes
from maskmill.storage.pixels import decode_image
from maskmill.storage.schemas import OK
from maskmill.storage.sources import read_items

HEIGHT = 320  # pixels of each picture
WIDTH = 1800  # pixels of a row


def write_preview(path: Path, count: int = 8, filter_name: str = "default") -> Path | None:
    """Draw the first `count` images that have masks. None if there is no such image."""
    pictures = list(pictures_of(path, count, filter_name))
    if not pictures:
        return None
    out = io.BytesIO()
    Image.fromarray(sheet(pictures, WIDTH)).save(out, "JPEG", quality=90)
    write_bytes(path / "preview.jpg", out.getvalue())
    return path / "preview.jpg"


def pictures_of(path: Path, count: int, filter_name: str) -> Iterator[np.ndarray]:
    """`image | overlay` for the first images with masks, in the order of the plan."""
    build = Build(path)
    ids = {(r["shard"], r["key"]): r["image_id"] for r in build.images().to_pylist() if r["status"] == OK}
    masks = build.masks(filter_name).select(["image_id", "height", "width", "counts"])
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, image in enumerate(masks["image_id"].to_pylist()):
        rows_of[image].append(row)
    drawn = 0
    for unit in read_plan(path / "plan.parquet"):
        for item in read_items(unit.kind, unit.url, unit.start, unit.count, unit.keys):
            rows = rows_of.get(ids.get((unit.shard, item.key), -1))
            if not rows or item.data is None:
                continue
            if drawn == count:
                return
            drawn += 1
            image = decode_image(item.data, max_mpx=float("inf"))
            yield side_by_side(image, [build.decode(row) for row in masks.take(rows).to_pylist()], HEIGHT)
