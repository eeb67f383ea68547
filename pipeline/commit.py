"""The commit of one unit: data files under names of this attempt alone, then one manifest.

Every crash window leaves either nothing, or orphan files that no manifest names; the manifest is the last act.
"""

import json
import socket
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
from upath import UPath

from maskmill.config import to_tree
from maskmill.pipeline.plan import Unit
from maskmill.pipeline.unit import Job, Task
from maskmill.storage.files import exists, parquet_bytes, remove
from maskmill.storage.ledger import DataFile, Ledger, Manifest

Step = Callable[[str], AbstractContextManager[None]]  # adds the seconds in it to those of a name


def commit_unit(
    build: UPath,
    task: Task,
    tables: dict[str, pa.Table],
    draft: Manifest,
    begun: float,
    footer: dict[str, str],
    step: Step,
) -> Manifest | None:
    """Write the tables of a task, then commit its manifest.

    `draft` is that manifest but for what belongs to this attempt; its seconds are those of attempts before `begun`.
    Returns the whole manifest; None if another attempt was first: a loser takes its files away again.
    """
    ledger, unit, attempt = Ledger(build, task.ledger), task.unit.unit, uuid.uuid4().hex[:8]
    if ledger.is_committed(unit, task.redo):  # another attempt was quicker: write nothing
        return None
    paths = {name: f"{name}/{unit}-{attempt}.parquet" for name in tables}
    try:
        with step("write"):
            files = {name: write_table(build, paths[name], name, table, footer) for name, table in tables.items()}
        manifest = replace(
            draft,
            attempt=attempt,
            files=files,
            seconds=round(time.monotonic() - begun + draft.seconds, 3),
            host=socket.gethostname(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if task.redo > 1 and not all(exists(build / f.path) for f in files.values()):
            raise FileNotFoundError("gc took this redo's files for orphans: they must be written again")
        if task.redo > 1 or task.ledger != "images":
            remove(build / "_SUCCESS")  # plain readers would see two versions of the unit, until it is closed
        with step("commit"):
            won = ledger.commit(manifest, task.redo)
    except Exception:
        if not ledger.is_committed(unit, task.redo):
            raise
        won = False  # another driver has finished the unit, and may have collected these files
    if not won:
        withdraw(build, ledger, unit, paths.values())
    return manifest if won else None


def write_table(build: UPath, path: str, name: str, table: pa.Table, footer: dict[str, str]) -> DataFile:
    """One Parquet file of an attempt."""
    by = ["image_id"] if name == "images" else ["image_id", "mask_id"]
    return DataFile.write(build, path, table.num_rows, parquet_bytes(table, by, footer))


def footer(job: Job, unit: Unit) -> dict[str, str]:
    """How a file was made; no time, attempt, host or absolute path."""
    made_by = {
        "unit": unit.unit,
        "shard": unit.shard,
        "model": job.model_id,
        "model_sha256": job.model_sha256,
        "generate": job.config.generate,
        "filter": job.config.filter,
    }
    return {f"maskmill.{k}": v if isinstance(v, str) else json.dumps(to_tree(v)) for k, v in made_by.items()}


def withdraw(build: UPath, ledger: Ledger, unit: str, paths: Iterable[str]) -> None:
    """Remove an attempt's files, unless the manifest that counts names them after all."""
    named = {f.path for f in Manifest.read(ledger.newest()[unit]).files.values()}
    for path in paths:
        if path not in named:
            remove(build / path)
