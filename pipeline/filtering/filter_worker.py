"""The work on one unit of a later filter: stored candidates -> masks -> commit in the filter's own ledger. No model."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskmill.filters.rerun import by_image, filter_rows
from maskmill.generate.grids import crop_plan
from maskmill.pipeline.commit import commit_unit, footer
from maskmill.pipeline.unit import Job, Receipt, Task, describe
from maskmill.storage.files import at, read_bytes
from maskmill.storage.ledger import Ledger, Manifest
from maskmill.storage.schemas import MASKS

log = logging.getLogger("maskmill")

USUAL_MPX = 16.0  # images beyond it get more time in proportion


class FilterWorker:
    """Does tasks, one after another. It imports no model, so it starts at once and stays small."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.build = at(job.build)
        self.steps: dict[str, float] = {}
        self.first_prompts = lru_cache(1024)(self.plan_of)

    def run(self, task: Task, report: Callable[..., None]) -> Receipt:
        """Do and commit a task; one that is already committed costs one look at the ledger. Errors come as receipts."""
        unit = task.unit.unit
        try:
            if Ledger(self.build, task.ledger).is_committed(unit, task.redo):
                return Receipt(unit)
            return self.do(task, report)
        except Exception as e:
            log.warning("unit %s failed: %s", task.name, describe(e))
            return Receipt(unit, error=describe(e))

    def do(self, task: Task, report: Callable[..., None]) -> Receipt:
        """Filter the candidates of every image of the manifest that counts now, and name it in the new one."""
        begun, self.steps = time.monotonic(), {}
        path = Ledger(self.build).newest()[task.unit.unit]
        data = read_bytes(path)
        read = Manifest.parse(data, path)
        with self.step("read"):
            file = pq.ParquetFile(pa.BufferReader(read.files["candidates"].read(self.build)))
        parts = [MASKS.empty_table()]
        with self.step("filter"):
            for done, rows in enumerate(by_image(file)):
                mpx = rows["height"][0].as_py() * rows["width"][0].as_py() / 1e6
                report(None, done, max(1.0, mpx / USUAL_MPX), True)  # no key: a death fails the unit, not an image
                parts.append(filter_rows(rows, self.job.config.filter, self.first_prompts))
        masks = pa.concat_tables(parts)
        sha256 = hashlib.sha256(data).hexdigest()
        draft = replace(read, files={}, masks=masks.num_rows, seconds=0.0, read_sha256=sha256)
        table = f"masks/{self.job.filter_name}"
        made_by = footer(self.job, task.unit)
        manifest = commit_unit(self.build, task, {table: masks}, draft, begun, made_by, self.step)
        if manifest is None:
            return Receipt(task.unit.unit)
        log.info("unit %s committed: %d masks", task.name, manifest.masks)
        return Receipt(
            unit=task.unit.unit,
            images=manifest.images,
            empty=manifest.empty,
            quarantined=manifest.quarantined,
            masks=manifest.masks,
            seconds=manifest.seconds,
            steps={name: round(seconds, 4) for name, seconds in self.steps.items()},
        )

    def plan_of(self, height: int, width: int) -> np.ndarray:
        """For each crop of such an image's plan the place of its first prompt."""
        return np.array([crop.first_prompt for crop in crop_plan(height, width, self.job.config.generate)])

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Adds its seconds to those of the step."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.steps[name] = self.steps.get(name, 0.0) + time.perf_counter() - begun
