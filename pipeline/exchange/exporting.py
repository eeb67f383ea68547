"""`maskmill export`: a finished build in another tool's format.

The work goes unit by unit. A unit's receipt, DEST/.export/<unit>-<state>.csv, is written after all its files; it lists
them and names the state of the unit's tables. So a killed export goes on with what has no receipt, and one of a build
that has grown since adds only what is new. index.csv and then _SUCCESS come last: without it no export is finished.
"""

import csv
import hashlib
import io
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pyarrow as pa
from upath import UPath

from maskmill.errors import UserError
from maskmill.pipeline.exchange.export_plan import Part, Settings, good_images
from maskmill.pipeline.generate import is_old
from maskmill.pipeline.ticker import Ticker
from maskmill.storage.build import Build, read_table
from maskmill.storage.exports import Picture, Sink, open_sink, picture
from maskmill.storage.files import is_local, names_in, read_bytes, remove, write_bytes
from maskmill.storage.labelmaps import MOST, OverlapError, label_map, overlapping
from maskmill.storage.sources import Item, read_items
from maskmill.storage.whole import sync_files

COLUMNS = ["file", "image_id", "shard", "key", "width", "height", "masks", "orientation", "mask_ids"]
AHEAD = 2  # units handed to each thread


class Stopped(Exception):
    """Another thread has failed, or the command is being stopped."""


class Exporter:
    """One export at work."""

    def __init__(self, build: Build, dest: UPath, settings: Settings, parts: list[Part]) -> None:
        self.build, self.dest, self.settings, self.parts = build, dest, settings, parts
        self.max_mpx = build.info["recipe"]["generate"]["max_image_mpx"]
        self.stop = threading.Event()

    def pending(self) -> list[Part]:
        """The parts without a receipt."""
        done = set(names_in(self.dest / ".export"))
        return [part for part in self.parts if part.receipt not in done]

    def run(self, parts: list[Part], threads: int, ticker: Ticker) -> None:
        """Write these parts. The first error stops all threads at their next image, and is raised."""
        waiting, running = iter(parts), set[Future[int]]()
        with ThreadPoolExecutor(threads) as pool:
            try:
                while True:
                    while len(running) < AHEAD * threads and (part := next(waiting, None)) is not None:
                        running.add(pool.submit(self.write, part, ticker))
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
            except BaseException:
                self.stop.set()
                for future in running:
                    future.cancel()
                raise

    def write(self, part: Part, ticker: Ticker) -> int:
        """One unit: its files, then its receipt. Returns the number of its images."""
        rows: list[dict[str, Any]] = []
        with open_sink(self.settings.format, self.dest, part.unit.unit) as sink:
            for image, masks, data in self.images_of(part):
                rows.append(self.write_image(part, sink, image, masks, data))
                ticker.add()
        sync_files(sink.written)  # a power cut must not leave a receipt without its files
        write_bytes(self.dest / ".export" / part.receipt, to_csv(rows))
        return len(rows)

    def write_image(
        self, part: Part, sink: Sink, image: dict[str, Any], masks: list[dict[str, Any]], data: bytes | None
    ) -> dict[str, Any]:
        """One image; its line of the index."""
        if self.stop.is_set():
            raise Stopped
        shown: Picture | None = None
        if data is not None:
            shown = picture(data, self.settings.upright, self.max_mpx)
        try:
            file = sink.add(image, masks, shown)
        except OverlapError as e:
            raise self.overlap(part, image, e) from e
        labels = " ".join(str(m["mask_id"]) for m in masks) if self.settings.format == "png" else ""
        return {
            **{name: image[name] for name in ("image_id", "shard", "key", "width", "height")},
            "file": file,
            "masks": len(masks),
            "orientation": shown.orientation if shown else "",
            "mask_ids": labels,
        }

    def check_disjoint(self, parts: list[Part], ticker: Ticker) -> None:
        """UserError if two masks of an image overlap: before anything is written."""
        for part in parts:
            masks = read_table(self.build.path / part.masks.path)
            for image in good_images(self.build, part):
                rows = rows_of(masks, image["image_id"])
                ticker.add()
                if len(rows) > MOST:
                    raise UserError(
                        f"image {image['key']!r} of {part.unit.shard!r} has {len(rows)} masks: a 16-bit label map "
                        f"holds {MOST}; export coco or sa1b"
                    )
                if overlapping(rows):
                    try:
                        label_map(image["height"], image["width"], rows)
                    except OverlapError as e:
                        raise self.overlap(part, image, e) from e

    def overlap(self, part: Part, image: dict[str, Any], e: OverlapError) -> UserError:
        """What to do about it."""
        return UserError(
            f"image {image['key']!r} of {part.unit.shard!r}: {e}; a label map holds one mask a pixel. Export a filter "
            f"without overlaps: maskmill filter {self.build.path} --name flat --set filter.shared_pixels=smallest"
        )

    def images_of(self, part: Part) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]], bytes | None]]:
        """(row of images, rows of masks, encoded bytes) of each good image; the bytes only where they are needed."""
        good = {row["key"]: row for row in good_images(self.build, part)}
        wants_masks = self.settings.format != "coco"
        masks = read_table(self.build.path / part.masks.path, None if wants_masks else ["image_id", "mask_id"])
        if not self.settings.images:
            yield from ((row, rows_of(masks, row["image_id"]), None) for row in good.values())
            return
        for item in self.items(part, good):
            row = good.pop(item.key)
            yield row, rows_of(masks, row["image_id"]), item.data
        if good:
            raise UserError(f"{part.unit.shard!r} no longer holds {next(iter(good))!r}: restore it, or give --images")

    def items(self, part: Part, good: dict[str, Any]) -> Iterator[Item]:
        """The source images of these keys, each the very one that the build saw."""
        unit = part.unit
        keys = None if unit.keys is None else [key for key in unit.keys if key in good]
        try:
            for item in read_items(unit.kind, unit.url, unit.start, unit.count, keys):
                if item.key not in good:
                    continue
                if item.data is None or hashlib.sha256(item.data).hexdigest() != good[item.key]["sha256"]:
                    why = item.error or "its bytes are others now"
                    raise UserError(f"image {item.key!r} of {unit.url!r}: {why}: restore it, or give --images")
                yield item
        except FileNotFoundError as e:
            raise UserError(f"{unit.url!r} is gone: say with --images where the images lie now") from e

    def receipts(self) -> Iterator[list[dict[str, str]]]:
        """The index of each unit, in order."""
        for part in self.parts:
            text = read_bytes(self.dest / ".export" / part.receipt).decode()
            csv.field_size_limit(len(text) + 1)  # mask_ids of one image may be longer than csv expects
            yield list(csv.DictReader(io.StringIO(text, newline="")))

    def drop_stale(self) -> None:
        """Remove receipts of earlier states of the build, and old halves of tars that killed exports left."""
        named = {part.receipt for part in self.parts} | {"export.json"}
        for name in names_in(self.dest / ".export"):
            if name not in named:
                remove(self.dest / ".export" / name)
        places = (self.dest, self.dest / "annotations") if is_local(self.dest) else ()
        for path in [place / name for place in places for name in names_in(place)]:
            if path.name.startswith(".") and path.name.endswith(".tmp") and is_old(path):
                remove(path)


def rows_of(masks: pa.Table, image_id: int) -> list[dict[str, Any]]:
    """The masks of one image out of a table that is sorted by image_id."""
    ids = masks["image_id"].to_numpy()
    first, last = np.searchsorted(ids, image_id, side="left"), np.searchsorted(ids, image_id, side="right")
    rows: list[dict[str, Any]] = masks.slice(first, last - first).to_pylist()
    return rows


def to_csv(rows: Iterable[dict[str, Any]]) -> bytes:
    """With a header line."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS)  # RFC 4180: lines end with CR LF, so a key with either is quoted
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()
