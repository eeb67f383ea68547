"""BUILD/preview.jpg: a few images of the build beside their masks, for a first look."""

import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from upath import UPath

from maskmill.pipeline.plan import read_plan
from maskmill.report.overlay import sheet, side_by_side
from maskmill.storage.build import Build
from maskmill.storage.files import at, write_bytes
from maskmill.storage.ledger import Manifest
from maskmill.storage.pixels import decode_image
from maskmill.storage.sources import read_items

HEIGHT = 240  # pixels of each picture
WIDTH = 2000  # pixels of a row


def write_preview(path: str | Path | UPath, count: int = 8) -> UPath | None:
    """Draw the first `count` images that have masks. None if there is no such image."""
    path = at(path)
    pictures = list(pictures_of(path, count))
    if not pictures:
        return None
    out = io.BytesIO()
    Image.fromarray(sheet(pictures, WIDTH)).save(out, "JPEG", quality=90)
    write_bytes(path / "preview.jpg", out.getvalue())
    return path / "preview.jpg"


def pictures_of(path: UPath, count: int) -> Iterator[np.ndarray]:
    """`image | overlay` for the first images with masks, in the order of the plan."""
    build = Build(path)
    plan = {unit.unit: unit for unit in read_plan(path / "plan.parquet")}
    limit = build.info["recipe"]["generate"]["max_image_mpx"]
    drawn = 0
    for manifest in build.manifests():
        unit = plan[manifest.unit]
        rows = rows_by_key(build, manifest)
        for item in read_items(unit.kind, unit.url, unit.start, unit.count, unit.keys) if rows else ():
            if item.data is None or item.key not in rows:
                continue
            if drawn == count:
                return
            drawn += 1
            masks = [build.decode(row) for row in rows[item.key]]
            yield side_by_side(decode_image(item.data, limit), masks, HEIGHT)


def rows_by_key(build: Build, manifest: Manifest) -> dict[str, list[dict[str, Any]]]:
    """The masks of one unit by the key of their image, from the build's own filter."""
    images = build.read_unit(manifest, "images")
    key = dict(zip(images["image_id"].to_pylist(), images["key"].to_pylist(), strict=True))
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    columns = ["image_id", "height", "width", "counts"]
    for row in build.read_unit(manifest, f"masks/{build.own_filter}").select(columns).to_pylist():
        rows[key[row["image_id"]]].append(row)
    return rows
