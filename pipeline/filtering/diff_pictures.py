"""Example pictures of a diff: the images that differ most, with the masks of both filters, and what went and came."""

import io

import numpy as np
from PIL import Image
from upath import UPath

from maskmill.filters.compare import Difference
from maskmill.masks.rle import decode
from maskmill.masks.table import MaskTable
from maskmill.pipeline.filtering.diff import Tally
from maskmill.pipeline.plan import Unit, read_plan
from maskmill.report.overlay import overlay, panels, sheet
from maskmill.storage.build import Build
from maskmill.storage.files import write_bytes
from maskmill.storage.pixels import decode_image
from maskmill.storage.sources import read_items

HEIGHT, WIDTH = 240, 2000  # pixels of each picture, and of a row
WENT, CAME, CHANGED = (np.array(rgb, np.float64) for rgb in ((225, 50, 45), (40, 170, 70), (240, 180, 20)))


def write_examples(build: Build, tally: Tally, path: UPath) -> int:
    """Draw the examples of a tally, most differences first: a JPEG at `path`. Returns how many; 0 writes nothing."""
    plan = {unit.unit: unit for unit in read_plan(build.path / "plan.parquet")}
    limit = build.info["recipe"]["generate"]["max_image_mpx"]
    pictures = []
    for _, image_id, unit, found in sorted(tally.examples, key=lambda e: (-e[0], e[1])):
        data = image_bytes(build, plan[unit], image_id)
        if data is not None:
            pictures.append(picture(decode_image(data, limit), found))
    if pictures:
        out = io.BytesIO()
        Image.fromarray(sheet(pictures, WIDTH)).save(out, "JPEG", quality=90)
        write_bytes(path, out.getvalue())
    return len(pictures)


def image_bytes(build: Build, unit: Unit, image_id: int) -> bytes | None:
    """The encoded image, from where the build read it."""
    images = build.read_unit(build.newest(unit.unit), "images", ["image_id", "key"]).to_pylist()
    key = next(row["key"] for row in images if row["image_id"] == image_id)
    items = read_items(unit.kind, unit.url, unit.start, unit.count, unit.keys)
    return next((item.data for item in items if item.key == key), None)


def picture(image: np.ndarray, found: Difference) -> np.ndarray:
    """Masks of the first filter, of the second, and the difference: red went, green came, yellow has other pixels."""
    a, b = pixels(found.a), pixels(found.b)
    went, came = [a[i] for i in found.went], [b[i] for i in found.came]
    other = [a[i] ^ b[i] for i in found.changed]
    inks = [WENT] * len(went) + [CAME] * len(came) + [CHANGED] * len(other)
    grey = np.repeat(image.mean(axis=2, keepdims=True) * 0.5 + 110, 3, axis=2).round().astype(np.uint8)
    changes = overlay(grey, [*went, *came, *other], 0.3, inks)
    return panels([overlay(image, list(a.values())), overlay(image, list(b.values())), changes], HEIGHT)


def pixels(masks: MaskTable) -> dict[int, np.ndarray]:
    """mask_id -> bool H x W."""
    return {int(i): decode(masks.counts(n), masks.height, masks.width) for n, i in enumerate(masks.mask_id)}
