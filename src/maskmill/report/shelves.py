"""The images of a build, a shelf at a time: what a viewer pages through without ever reading all of it.

A shelf is a run of committed units with about SHELF images. The ledger is listed, which opens no file; a unit's
manifest and tables are read when its shelf is asked for.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskmill.errors import UserError
from maskmill.report.sample import read_rows
from maskmill.storage import remote
from maskmill.storage.build import Build
from maskmill.storage.ledger import DataFile, Manifest, file_name
from maskmill.storage.originals import Kept

SHELF = 1000  # images
FRESH = 5.0  # seconds after which the ledger is listed again: the build may be running
SEARCHING = 0.7  # seconds of a search before it gives what it has found

ENTRY = ["image_id", "shard", "key", "width", "height", "status", "error", "num_candidates"]


@dataclass(frozen=True)
class Entry:
    """One image as a list shows it. masks, score: of the filter asked for; None: unknown, or none has a score."""

    unit: str
    image_id: str  # JavaScript has no 63-bit numbers
    shard: str
    key: str
    width: int | None
    height: int | None
    status: str
    error: str | None
    num_candidates: int
    masks: int | None
    score: float | None  # mean predicted IoU of its masks that have one


class Shelves:
    """Lists, manifests and rows of a build, read when they are needed and kept for a while."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.listed: dict[str, tuple[float, dict[str, int]]] = {}  # filter -> when, and the redo of each unit
        self.units: list[str] = []
        self.manifests: Kept[Manifest] = Kept(4096)
        self.entries: Kept[list[Entry]] = Kept(256)
        self.rows: Kept[pa.Table] = Kept(16)

    def redos(self, filter: str) -> dict[str, int]:
        """unit -> redo of what a filter's ledger holds; listed again if that was a while ago."""
        then, found = self.listed.get(filter, (-FRESH, {}))
        if time.monotonic() - then >= FRESH:
            found = self.build.ledger(f"masks/{filter}").redos()
            self.listed[filter] = time.monotonic(), found
            if filter == self.build.own_filter:
                self.units = list(found)
        return found

    def refresh(self) -> None:
        """See what was committed since."""
        self.redos(self.build.own_filter)

    def manifest(self, unit: str, filter: str | None = None) -> Manifest | None:
        """The manifest of a unit that counts, of a filter's ledger; None if there is none."""
        filter = filter or self.build.own_filter
        redo = self.redos(filter).get(unit)
        if redo is None:
            return None
        path = self.build.ledger(f"masks/{filter}").folder / file_name(unit, redo)
        return self.manifests.get(path, lambda: Manifest.read(path))

    def of_images(self, unit: str) -> Manifest:
        """The manifest of a unit's images. UserError if it is not committed."""
        if (manifest := self.manifest(unit)) is None:
            raise UserError(f"unit {unit!r} is not committed")
        return manifest

    def masks_file(self, unit: str, filter: str) -> DataFile | None:
        """The file with a unit's masks of a filter; None if that filter has not reached the unit."""
        manifest = self.manifest(unit, filter)
        return None if manifest is None else manifest.files.get(f"masks/{filter}")

    def shelf(self, start: int, filter: str) -> dict[str, Any]:
        """The images from unit number `start` on, where the shelves beside it begin, and which units are unreadable."""
        self.refresh()
        start = min(max(0, start), max(0, len(self.units) - 1))
        end, images = start, 0
        while end < len(self.units) and (end == start or images < SHELF):
            images += self.of_images(self.units[end]).images
            end += 1
        entries: list[dict[str, Any]] = []
        broken = []
        for unit in self.units[start:end]:
            try:
                entries += [asdict(e) for e in self.of_unit(unit, filter)]
            except OSError as e:
                broken.append(f"unit {unit}: {e}")
        return {
            "start": start,
            "end": end,
            "units": len(self.units),
            "previous": self.before(start) if start else None,
            "next": end if end < len(self.units) else None,
            "images": entries,
            "broken": broken,
        }

    def number(self, unit: str) -> int:
        """The place of a unit among the committed ones."""
        self.refresh()
        return bisect_left(self.units, unit)

    def before(self, start: int) -> int:
        """Where the shelf begins that ends at unit number `start`."""
        images = 0
        while start > 0 and images < SHELF:
            start -= 1
            images += self.of_images(self.units[start]).images
        return start

    def of_unit(self, unit: str, filter: str) -> list[Entry]:
        """A unit's images, by key."""
        manifest, file = self.of_images(unit), self.masks_file(unit, filter)
        key = (unit, manifest.attempt, file.path if file else None)
        return self.entries.get(key, lambda: list(self.read_entries(manifest, file)))

    def read_entries(self, manifest: Manifest, file: DataFile | None) -> Iterator[Entry]:
        """From two or three columns of its tables."""
        masks: dict[int, int] = {}
        scores: dict[int, float] = {}
        if file is not None:
            table = read_rows(self.build, file, ["image_id", "predicted_iou"])
            ids, where, counts = np.unique(table["image_id"].to_numpy(), return_inverse=True, return_counts=True)
            iou = table["predicted_iou"].to_numpy().astype(np.float64)
            known = ~np.isnan(iou)
            sums, scored = (
                np.bincount(where[known], iou[known], len(ids)),
                np.bincount(where[known], minlength=len(ids)),
            )
            masks = dict(zip(ids.tolist(), counts.tolist(), strict=True))
            scores = {int(i): float(s / n) for i, s, n in zip(ids, sums, scored, strict=True) if n}
        rows = self.build.read_unit(manifest, "images", ENTRY).to_pylist()
        for row in sorted(rows, key=lambda row: row["key"]):
            image_id = row.pop("image_id")
            yield Entry(
                unit=manifest.unit,
                image_id=str(image_id),
                **row,
                masks=masks.get(image_id, 0) if file is not None else None,
                score=scores.get(image_id),
            )

    def find(self, words: str, start: int, filter: str, limit: int = 100) -> dict[str, Any]:
        """Images whose key holds `words`, from unit `start` on. After SEARCHING seconds it gives what it has."""
        self.refresh()
        found: list[dict[str, Any]] = []
        begun, number = time.monotonic(), start
        while number < len(self.units) and len(found) < limit and time.monotonic() - begun < SEARCHING:
            unit = self.units[number]
            keys = self.build.read_unit(self.of_images(unit), "images", ["key"])["key"]
            if pc.any(pc.match_substring(keys, words, ignore_case=True)).as_py():
                found += [asdict(e) for e in self.of_unit(unit, filter) if words.lower() in e.key.lower()]
            number += 1
        return {"images": found, "next": number if number < len(self.units) else None, "units": len(self.units)}

    def sha256(self, unit: str, image_id: str) -> str | None:
        """Of the bytes that the build saw; None if it saw none."""
        table = self.build.read_unit(self.of_images(unit), "images", ["image_id", "sha256"])
        found: list[str | None] = table.filter(pc.equal(table["image_id"], int(image_id)))["sha256"].to_pylist()
        return found[0] if found else None

    def entry(self, unit: str, image_id: str, filter: str) -> Entry:
        """One image. UserError if the unit has none of that id."""
        self.refresh()
        for entry in self.of_unit(unit, filter):
            if entry.image_id == image_id:
                return entry
        raise UserError(f"unit {unit} has no image {image_id}")

    def image_rows(self, file: DataFile, image_id: int) -> pa.Table:
        """The rows of one image, all columns; of a large file only the row groups that can hold them are read."""

        def read() -> pa.Table:
            path = self.build.path / file.path
            with remote.named(path), path.open("rb") as opened:
                return pq.read_table(opened, filters=[("image_id", "==", image_id)]).replace_schema_metadata(None)

        return self.rows.get((file.path, image_id), read)
