"""The work on one unit: decode -> segment -> filter -> write -> commit. The same in every engine.

Every crash window leaves either nothing, or orphan files that no manifest names; the manifest is the last act.
"""

import hashlib
import json
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from maskmill.config import Config, to_tree
from maskmill.filters.apply import apply_filter
from maskmill.generate.candidates import find_candidates
from maskmill.generate.grids import crop_plan
from maskmill.masks.table import MaskTable
from maskmill.pipeline.attempts import Attempt
from maskmill.pipeline.memory import keep_freed_memory
from maskmill.pipeline.plan import Unit
from maskmill.sam.build import load_model
from maskmill.storage.files import write_parquet
from maskmill.storage.ledger import DataFile, Ledger, Manifest, hash_keys
from maskmill.storage.pixels import decode_image
from maskmill.storage.schemas import EMPTY, IMAGES, MASKS, OK, QUARANTINED, mask_rows
from maskmill.storage.sources import Item, image_id, read_items

# One image -> its candidates and its masks. An exception quarantines the image.
Segmenter = Callable[[np.ndarray], tuple[MaskTable, MaskTable]]


@dataclass(frozen=True)
class Job:
    """What a worker must know, small enough to send to each."""

    build: str
    config: Config
    model_id: str
    model_sha256: str
    filter_name: str
    device: str | None
    candidates: bool


@dataclass(frozen=True)
class Receipt:
    """What comes back for a unit. `error` is set when it could not be done as a whole."""

    unit: str
    images: int = 0
    quarantined: int = 0
    masks: int = 0
    seconds: float = 0.0
    error: str | None = None


class SamSegmenter:
    """The model and its settings, loaded once in each worker."""

    def __init__(self, job: Job) -> None:
        keep_freed_memory()
        # Part of the recipe: another number of threads rounds sums in another order (promise 4).
        torch.set_num_threads(job.config.generate.threads)
        self.config = job.config
        self.model = load_model(job.config.model.name, job.config.model.checkpoint, job.device)

    def __call__(self, image: np.ndarray) -> tuple[MaskTable, MaskTable]:
        """H x W x 3 uint8 -> candidates and masks."""
        cfg = self.config
        candidates = find_candidates(self.model, image, cfg.generate)
        crops = crop_plan(image.shape[0], image.shape[1], cfg.generate)
        return candidates, apply_filter(candidates, cfg.filter, len(crops))


class Worker:
    """Does units. One for each actor, or one in this process."""

    def __init__(self, job: Job, segmenter: Segmenter | None = None) -> None:
        self.job = job
        self.build = Path(job.build)
        self.ledger = Ledger(self.build)
        self.segment = segmenter or SamSegmenter(job)

    def run(self, unit: Unit) -> Receipt:
        """Do and commit one unit; a unit that is already committed costs one look at the ledger."""
        if self.ledger.is_committed(unit.unit):
            return Receipt(unit.unit)
        attempt = Attempt(self.build, unit.unit, uuid.uuid4().hex[:8])
        try:
            return self.do(unit, attempt)
        except Exception as e:
            # The unit stays pending; the driver reports it, and the next run tries again.
            attempt.failed(describe(e))
            return Receipt(unit.unit, error=describe(e))

    def do(self, unit: Unit, attempt: Attempt) -> Receipt:
        """Segment every image, write the tables, commit."""
        begun = time.monotonic()
        images: list[dict[str, Any]] = []
        candidates, masks = [MASKS.empty_table()], [MASKS.empty_table()]
        keys: list[str] = []
        for item in self.items(unit):
            attempt.at(item.key, len(images))
            row, image_candidates, image_masks = self.image(unit, item)
            keys.append(item.key)
            images.append(row)
            candidates += [image_candidates] if self.job.candidates else []
            masks.append(image_masks)
        tables = {
            "images": pa.Table.from_pylist(images, schema=IMAGES),
            **({"candidates": pa.concat_tables(candidates)} if self.job.candidates else {}),
            f"masks/{self.job.filter_name}": pa.concat_tables(masks),
        }
        files = {name: self.write(name, table, unit, attempt) for name, table in tables.items()}
        status = [row["status"] for row in images]
        manifest = Manifest(
            unit=unit.unit,
            attempt=attempt.id,
            files=files,
            images=len(images),
            empty=status.count(EMPTY),
            quarantined=status.count(QUARANTINED),
            candidates=sum(row["num_candidates"] for row in images),
            masks=sum(part.num_rows for part in masks),
            key_hash=hash_keys(keys),
            seconds=round(time.monotonic() - begun, 3),
            host=socket.gethostname(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if not self.ledger.commit(manifest):
            attempt.lost()
            return Receipt(unit.unit)
        attempt.done()
        return Receipt(unit.unit, manifest.images, manifest.quarantined, manifest.masks, manifest.seconds)

    def items(self, unit: Unit) -> Iterator[Item]:
        """The unit's images; refused if there are more or fewer than planned."""
        seen = 0
        for item in read_items(unit.kind, unit.url, unit.start, unit.count, unit.keys):
            seen += 1
            yield item
        if unit.count is not None and seen != unit.count:
            raise ValueError(
                f"{unit.shard} now holds {seen} images where {unit.count} were planned: it changed meanwhile"
            )

    def image(self, unit: Unit, item: Item) -> tuple[dict[str, Any], pa.Table, pa.Table]:
        """The row of one image and those of its candidates and masks. What cannot be read costs only itself."""
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
            pixels = decode_image(item.data, self.job.config.generate.max_image_mpx)
            row |= {"height": pixels.shape[0], "width": pixels.shape[1]}
            candidates, masks = self.segment(pixels)
        except Exception as e:
            return row | {"status": QUARANTINED, "error": describe(e)}, nothing, nothing
        row |= {"status": OK if len(candidates) else EMPTY, "num_candidates": len(candidates)}
        stored = mask_rows(row["image_id"], candidates, self.job.model_id) if self.job.candidates else nothing
        return row, stored, mask_rows(row["image_id"], masks, self.job.model_id)

    def write(self, table_name: str, table: pa.Table, unit: Unit, attempt: Attempt) -> DataFile:
        """One Parquet file of this attempt."""
        path = self.build / table_name / f"{unit.unit}-{attempt.id}.parquet"
        by = ["image_id"] if table_name == "images" else ["image_id", "mask_id"]
        write_parquet(path, table, by, self.footer(unit))
        return DataFile.of(self.build, path, table.num_rows)

    def footer(self, unit: Unit) -> dict[str, str]:
        """How the file was made; no time, attempt, host or absolute path."""
        made_by = {
            "unit": unit.unit,
            "shard": unit.shard,
            "model": self.job.model_id,
            "model_sha256": self.job.model_sha256,
            "generate": self.job.config.generate,
            "filter": self.job.config.filter,
        }
        return {f"maskmill.{k}": v if isinstance(v, str) else json.dumps(to_tree(v)) for k, v in made_by.items()}


def describe(error: Exception) -> str:
    """`Class: words`, one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
