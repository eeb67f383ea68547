"""The COCO JSON of an export: streamed from the tables, so its memory does not grow with the build."""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskmill import __version__
from maskmill.pipeline.exchange.export_plan import Part, good_images
from maskmill.pipeline.exchange.exporting import Exporter
from maskmill.storage import remote
from maskmill.storage.build import Build
from maskmill.storage.coco import OURS, Categories, coco_json, to_coco_image, to_coco_mask
from maskmill.storage.whole import open_whole

FILE = "annotations/instances.json"
BATCH = 1024  # masks in memory at a time, beside one row group
Row = dict[str, Any]


def write_coco_json(export: Exporter, tell: Callable[[int], None]) -> None:
    """DEST/annotations/instances.json, whole or not at all. `tell` is told of every so many masks."""
    categories = find_categories(export)
    known = export.build.info.get("import") or {}
    head = {
        "info": {"description": f"masks of filter {export.settings.filter!r}", OURS: __version__},
        "licenses": known.get("licenses") or [],
        "categories": categories.listed(),
    }
    images, masks = image_records(export), mask_records(export, categories, tell)
    with open_whole(export.dest / FILE) as file:
        for piece in coco_json(head, images, masks):
            file.write(piece)


def find_categories(export: Exporter) -> Categories:
    """From what an import brought along, and from the `meta` of every mask; a column that is all null is not read."""
    categories = Categories((export.build.info.get("import") or {}).get("categories") or ())
    for part in export.parts:
        for batch in batches(export.build, part, ["meta"]):
            for meta in pc.unique(batch["meta"]).to_pylist():
                categories.add(meta)
    categories.settle()
    return categories


def image_records(export: Exporter) -> Iterator[Row]:
    """Ids from 1, in the order of the units, then of image_id."""
    number, ours = 0, "images/" if export.settings.images else ""  # without images, `file` is the source's own key
    for part, lines in zip(export.parts, export.receipts(), strict=True):
        files = {int(line["image_id"]): line["file"] for line in lines}
        for row in good_images(export.build, part):
            number += 1
            yield to_coco_image(row, number, files[row["image_id"]].removeprefix(ours))


def mask_records(export: Exporter, categories: Categories, tell: Callable[[int], None]) -> Iterator[Row]:
    """Ids from 1, in the order of the images, then of mask_id."""
    number = images = 0
    for part in export.parts:
        ids = {row["image_id"]: images + i + 1 for i, row in enumerate(good_images(export.build, part))}
        images += len(ids)
        for batch in batches(export.build, part):
            for row in batch.to_pylist():
                number += 1
                yield to_coco_mask(row, number, ids[row["image_id"]], categories)
            tell(batch.num_rows)


def batches(build: Build, part: Part, columns: list[str] | None = None) -> Iterator[Any]:
    """The masks of one unit, some at a time."""
    path = build.path / part.masks.path
    with remote.named(path), path.open("rb") as file:
        yield from pq.ParquetFile(file).iter_batches(BATCH, columns=columns, use_threads=False)
