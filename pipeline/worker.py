"""The work on one unit: decode -> segment -> filter -> write -> commit. The same in every engine."""

import hashlib
import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from maskmill.filters.apply import apply_filter
from maskmill.generate.candidates import find_candidates
from maskmill.generate.grids import crop_plan
from maskmill.masks.table import MaskTable
from maskmill.pipeline.commit import commit_unit, footer
from maskmill.pipeline.memory import keep_freed_memory
from maskmill.pipeline.overlap import Budget, in_order
from maskmill.pipeline.plan import Unit
from maskmill.pipeline.unit import Job, Receipt, Task, describe
from maskmill.sam.build import load_model
from maskmill.storage.files import at
from maskmill.storage.ledger import Ledger, Manifest, hash_keys
from maskmill.storage.pixels import decode_image, megapixels
from maskmill.storage.schemas import EMPTY, IMAGES, MASKS, OK, QUARANTINED, mask_rows
from maskmill.storage.sources import Item, image_id, read_items

log = logging.getLogger("maskmill")

# One image and its id -> its candidates and its masks. An exception quarantines the image.
Segmenter = Callable[[np.ndarray, int], tuple[MaskTable, MaskTable]]
# (the image in work, None between images; images done before; how much more time than others it may take; False: more
# than one is in work, and none is named)
Report = Callable[[str | None, int, float, bool], None]
Rows = tuple[dict[str, Any], pa.Table, pa.Table]  # of one image: in images, candidates, masks
USUAL_MPX = 16.0  # images beyond it get more time in proportion
IN_FLIGHT_MPX = 64.0  # of the images that are in work at a time, unless one alone has more


class SamSegmenter:
    """The model and its settings, loaded once in each worker."""

    def __init__(self, job: Job) -> None:
        keep_freed_memory()
        # Part of the recipe: another number of threads rounds sums in another order (promise 4).
        torch.set_num_threads(job.config.generate.threads)
        self.config = job.config
        name, checkpoint = job.config.model.name, job.config.model.checkpoint
        self.model = load_model(name, checkpoint, job.device, job.config.generate.precision)

    def __call__(self, image: np.ndarray, image_id: int) -> tuple[MaskTable, MaskTable]:
        """H x W x 3 uint8 -> candidates and masks."""
        cfg = self.config
        candidates = find_candidates(self.model, image, cfg.generate)
        crops = crop_plan(image.shape[0], image.shape[1], cfg.generate)
        return candidates, apply_filter(candidates, cfg.filter, len(crops), image_id)


def default_in_flight(job: Job) -> int:
    """Three where a GPU would wait for decoding and for rows; one on a CPU, whose cores have actors of their own."""
    return 3 if job.device != "cpu" and torch.cuda.is_available() else 1


def make_segmenter(job: Job) -> Segmenter:
    """What `job.segmenter` names."""
    module, _, factory = job.segmenter.partition(":")
    segmenter: Segmenter = getattr(importlib.import_module(module), factory)(job)
    return segmenter


class NotTheImage(RuntimeError):
    """What a segmenter keeps beside the images could not be read or written: its unit fails and is tried again, as
    when the build's own disk is full; no image is to blame."""


class Worker:
    """Does tasks, one after another, with one model."""

    def __init__(self, job: Job, segmenter: Segmenter | None = None) -> None:
        self.job = job
        self.build = at(job.build)
        self.ledger = Ledger(self.build)
        self.segment = segmenter or make_segmenter(job)
        self.steps: dict[str, float] = {}
        self.lock = threading.Lock()  # over `steps` and the link to the supervisor
        self.budget = Budget(IN_FLIGHT_MPX)
        self.in_flight = job.config.run.images_in_flight or default_in_flight(job)

    def run(self, task: Task, report: Report) -> Receipt:
        """Do and commit a task; one that is already committed costs one look at the ledger. Errors come as receipts."""
        try:
            if self.ledger.is_committed(task.unit.unit, task.redo):
                return Receipt(task.unit.unit)
            return self.do(task, report)
        except Exception as e:
            log.warning("unit %s failed: %s", task.name, describe(e))
            return Receipt(task.unit.unit, error=describe(e))

    def do(self, task: Task, report: Report) -> Receipt:
        """Segment every image, write the tables, commit."""
        begun = time.monotonic()
        self.steps = {}
        unit = task.unit
        tables = self.kept(task)
        again = None if task.redo == 1 else self.quarantined_keys(unit)
        rows: list[dict[str, Any]] = []
        keys: list[str] = []
        first = self.first(task, report)

        def wanted() -> Iterator[Item]:
            for item in self.items(unit):
                keys.append(item.key)
                if again is None or item.key in again:
                    yield item

        def rows_of(item: Item) -> Rows:
            return first.get(item.key) or self.try_image(task, item, report, len(rows))

        for row, candidates, masks in in_order(rows_of, wanted(), self.threads(task)):
            rows.append(row)
            tables[self.masks].append(masks)
            if self.job.candidates:
                tables["candidates"].append(candidates)
            if row["status"] == QUARANTINED:
                log.warning("unit %s image %s quarantined: %s", task.name, row["key"], row["error"])
        if again is not None and (gone := again - set(keys)):
            raise ValueError(f"{unit.shard} no longer holds {min(gone)!r}: it changed since it was planned")
        tables["images"].append(pa.Table.from_pylist(rows, schema=IMAGES))
        whole = {name: pa.concat_tables(parts) for name, parts in tables.items()}
        return self.commit(task, whole, keys, begun, [row["status"] for row in rows])

    def first(self, task: Task, report: Report) -> dict[str, Rows]:
        """The image under suspicion, before all others: in a fresh process it is judged by what it does alone."""
        for item in self.items(task.unit) if task.suspect is not None else ():
            if item.key == task.suspect:
                return {item.key: self.try_image(task, item, report, 0)}
        return {}

    def try_image(self, task: Task, item: Item, report: Report, done: int) -> Rows:
        """`image`, told before and after; one that was set aside is not begun again."""
        alone = self.threads(task) == 1

        def tell(key: str | None, done: int, more: float) -> None:
            with self.lock:
                report(key if alone else None, done, more, alone)

        if why := task.dead.get(item.key):
            item = Item(item.key, item.data, why)
        else:
            tell(item.key, done, 1.0)
        rows = self.image(task.unit, item, partial(tell, item.key, done))
        tell(None, done + 1, 1.0)  # a death from here on is not this image's
        return rows

    def threads(self, task: Task) -> int:
        """Images in work at a time. After a death one by one, so that the next death names its image."""
        return 1 if task.careful else self.in_flight

    @property
    def masks(self) -> str:
        """The table of the build's own masks."""
        return f"masks/{self.job.filter_name}"

    def kept(self, task: Task) -> dict[str, list[pa.Table]]:
        """What each table begins with: nothing, or the good rows of the manifest before."""
        names = ["images", *(["candidates"] if self.job.candidates else []), self.masks]
        if task.redo == 1:
            return {name: [(IMAGES if name == "images" else MASKS).empty_table()] for name in names}
        before = self.before(task.unit)
        tables = {name: self.committed(before, name) for name in names}
        # a quarantined image has no candidates and no masks: only its row in images is replaced
        tables["images"] = tables["images"].filter(pc.not_equal(tables["images"]["status"], QUARANTINED))
        return {name: [table] for name, table in tables.items()}

    def before(self, unit: Unit) -> Manifest:
        """The manifest that counts now."""
        return Manifest.read(self.ledger.newest()[unit.unit])

    def committed(self, manifest: Manifest, name: str) -> pa.Table:
        """A table as it was committed: what is copied from a damaged file would be damaged for good, and pass for
        sound. DamagedFile."""
        data = manifest.files[name].read(self.build)
        return pq.ParquetFile(pa.BufferReader(data)).read().replace_schema_metadata(None)

    def quarantined_keys(self, unit: Unit) -> set[str]:
        """The keys that a redo does again."""
        images = self.committed(self.before(unit), "images")
        return set(images.filter(pc.equal(images["status"], QUARANTINED))["key"].to_pylist())

    def commit(
        self, task: Task, tables: dict[str, pa.Table], keys: list[str], begun: float, done: list[str]
    ) -> Receipt:
        """Write the tables and commit the unit. `done`: the status of each image that this task did."""
        unit, status = task.unit, tables["images"]["status"].to_pylist()
        draft = Manifest(
            unit=unit.unit,
            attempt="",
            files={},
            images=len(status),
            empty=status.count(EMPTY),
            quarantined=status.count(QUARANTINED),
            candidates=int(np.sum(tables["images"]["num_candidates"].to_numpy(), dtype=np.int64)),
            masks=tables[self.masks].num_rows,
            key_hash=hash_keys(keys),
            seconds=self.before(unit).seconds if task.redo > 1 else 0.0,
            host="",
            finished="",
        )
        manifest = commit_unit(self.build, task, tables, draft, begun, self.footer(unit), self.step)
        if manifest is None:
            return Receipt(unit.unit)
        log.info("unit %s committed: %d images, %d masks", task.name, manifest.images, manifest.masks)
        return Receipt(
            unit=unit.unit,
            images=len(done),
            empty=done.count(EMPTY),
            quarantined=done.count(QUARANTINED),
            masks=manifest.masks,
            seconds=manifest.seconds,
            steps={name: round(seconds, 4) for name, seconds in self.steps.items()},
        )

    def items(self, unit: Unit) -> Iterator[Item]:
        """The unit's images; refused if there are more or fewer than planned."""
        seen = 0
        source = read_items(unit.kind, unit.url, unit.start, unit.count, unit.keys)
        while True:
            with self.step("read"):
                item = next(source, None)
            if item is None:
                break
            seen += 1
            yield item
        if unit.count is not None and seen != unit.count:
            raise ValueError(
                f"{unit.shard} now holds {seen} images where {unit.count} were planned: it changed meanwhile"
            )

    def image(self, unit: Unit, item: Item, patience: Callable[[float], None]) -> Rows:
        """The row of one image and those of its candidates and masks. What cannot be read costs only itself.

        `patience` is told how much longer than others it may take, once its size is known.
        """
        row: dict[str, Any] = {
            "image_id": image_id(unit.shard, item.key),
            "shard": unit.shard,
            "key": item.key,
            "sha256": None if item.data is None else hashlib.sha256(item.data).hexdigest(),
            "num_candidates": 0,
        }
        nothing = MASKS.empty_table()
        if item.data is None or item.error is not None:
            return row | {"status": QUARANTINED, "error": item.error or "no data"}, nothing, nothing
        try:
            with self.budget.hold(megapixels(item.data)):
                with self.step("decode"):
                    pixels = decode_image(item.data, self.job.config.generate.max_image_mpx)
                row |= {"height": pixels.shape[0], "width": pixels.shape[1]}
                patience(max(1.0, pixels.shape[0] * pixels.shape[1] / 1e6 / USUAL_MPX))
                with self.step("segment"):
                    candidates, masks = self.segment(pixels, row["image_id"])
        except NotTheImage:
            raise
        except Exception as e:
            return row | {"status": QUARANTINED, "error": describe(e)}, nothing, nothing
        row |= {"status": OK if len(candidates) else EMPTY, "num_candidates": len(candidates)}
        stored = mask_rows(row["image_id"], candidates, self.job.model_id) if self.job.candidates else nothing
        return row, stored, mask_rows(row["image_id"], masks, self.job.model_id)

    def footer(self, unit: Unit) -> dict[str, str]:
        """How the unit's files were made."""
        return footer(self.job, unit)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Adds its seconds to those of the step."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            with self.lock:
                self.steps[name] = self.steps.get(name, 0.0) + time.perf_counter() - begun
