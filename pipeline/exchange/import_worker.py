"""The work on one unit of an import: read what others say of each image, check it against the image, commit.

The same as of any other unit (worker.py), but that masks come from a file and not from a model.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from maskmill.masks.table import MaskTable
from maskmill.pipeline.exchange.importing import ImportJob, slice_name
from maskmill.pipeline.plan import Unit
from maskmill.pipeline.unit import Receipt, Task, describe
from maskmill.pipeline.worker import USUAL_MPX, Report, Rows, Worker
from maskmill.storage.coco_source import CocoSlice
from maskmill.storage.files import read_bytes
from maskmill.storage.foreign import ForeignImage, Grid, foreign_rows, to_meta
from maskmill.storage.pixels import decode_image, orientation_of
from maskmill.storage.sa1b_source import Annotations, open_sa1b
from maskmill.storage.schemas import EMPTY, MASKS, OK, QUARANTINED
from maskmill.storage.sources import Item, image_id


def no_model(image: np.ndarray, image_id: int) -> tuple[MaskTable, MaskTable]:
    """Never called: an import segments nothing."""
    raise AssertionError("an import has no model")


class ImportWorker(Worker):
    """Does tasks, one after another, without a model."""

    def __init__(self, job: ImportJob) -> None:
        super().__init__(job, no_model)
        self.what = job
        self.annotations: Annotations | None = None

    def do(self, task: Task, report: Report) -> Receipt:
        """With the annotations of the unit at hand."""
        with self.open_annotations(task.unit) as self.annotations:
            return super().do(task, report)

    @contextmanager
    def open_annotations(self, unit: Unit) -> Iterator[Annotations]:
        """What the source says about this unit's images."""
        if self.what.format == "coco":
            yield CocoSlice(read_bytes(self.build / slice_name(unit.unit)))
        else:
            with open_sa1b(unit.kind, unit.url) as found:
                yield found

    def image(self, unit: Unit, item: Item, patience: Callable[[float], None]) -> Rows:
        """The row of one image and those of its masks, which are its candidates too. What is broken costs one image."""
        row: dict[str, Any] = {"shard": unit.shard, "key": item.key, "num_candidates": 0}
        row["image_id"] = image_id(unit.shard, item.key)
        row["sha256"] = None if item.data is None else hashlib.sha256(item.data).hexdigest()
        nothing = MASKS.empty_table()
        error = item.error if item.data is not None or item.error else "no data"
        try:
            with self.step("annotations"):
                said = self.read(item.key)
            row |= self.identity(row["image_id"], said)
            if item.data is not None and error is None:
                with self.step("decode"):
                    grid = self.grid(item.data)
                row |= {"height": grid.height, "width": grid.width}
                patience(max(1.0, grid.height * grid.width / 1e6 / USUAL_MPX))
                with self.step("masks"):
                    masks = foreign_rows(said, row["image_id"], grid)
        except Exception as e:
            error = error or describe(e)
        if error is not None:
            return row | {"status": QUARANTINED, "error": error}, nothing, nothing
        row |= {"status": OK if masks.num_rows else EMPTY, "num_candidates": masks.num_rows}
        return row, masks if self.job.candidates else nothing, masks

    def read(self, key: str) -> ForeignImage:
        """What is said about one image."""
        assert self.annotations is not None, "opened by `do`"
        return self.annotations.read(key)

    def identity(self, own: int, said: ForeignImage) -> dict[str, Any]:
        """Its id, `own` where the source has none, and meta."""
        if said.image_id is None or said.image_id == own:
            return {"image_id": own, "meta": to_meta(said.meta)}
        if self.what.ids == "hash":
            return {"image_id": own, "meta": to_meta(said.meta | {"image_id": said.image_id})}
        return {"image_id": said.image_id, "meta": to_meta(said.meta)}

    def grid(self, data: bytes) -> Grid:
        """The image's size and orientation. It is decoded to the end: a broken one must not get masks."""
        height, width = decode_image(data, self.job.config.generate.max_image_mpx).shape[:2]
        return Grid(height, width, orientation_of(data))

    def footer(self, unit: Unit) -> dict[str, str]:
        """How the file was made."""
        return {
            "maskmill.unit": unit.unit,
            "maskmill.shard": unit.shard,
            "maskmill.import": f"{self.what.format} ids={self.what.ids}",
        }
