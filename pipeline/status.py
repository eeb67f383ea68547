"""Where a build stands, from its files alone: works while it runs, and after the cluster is gone."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maskmill.pipeline.attempts import Trace, read_attempts
from maskmill.pipeline.plan import read_plan
from maskmill.storage.build import Build
from maskmill.storage.ledger import Ledger, Manifest
from maskmill.storage.schemas import QUARANTINED

STALE = 600.0  # seconds without a breadcrumb: the attempt is taken for dead


@dataclass(frozen=True)
class Status:
    """Counts over the whole build. `images` is what the plan counts exactly; None if a remote tar is in it."""

    units: int
    units_done: int
    images: int | None
    images_done: int
    empty: int
    quarantined: int
    candidates: int
    masks: int
    work_seconds: float
    running: tuple[Trace, ...]
    failed: tuple[Trace, ...]
    pending: tuple[str, ...]
    success: bool


def read_status(path: Path) -> Status:
    """From plan, ledger and attempts."""
    build = Build(path)
    plan = read_plan(path / "plan.parquet")
    manifests = build.manifests()
    done = {m.unit for m in manifests}
    traces = [t for t in read_attempts(path) if t.unit not in done]
    counts = [u.count for u in plan]
    return Status(
        units=len(plan),
        units_done=len(done),
        images=None if None in counts else sum(c for c in counts if c is not None),
        images_done=sum(m.images for m in manifests),
        empty=sum(m.empty for m in manifests),
        quarantined=sum(m.quarantined for m in manifests),
        candidates=sum(m.candidates for m in manifests),
        masks=sum(m.masks for m in manifests),
        work_seconds=sum(m.seconds for m in manifests),
        running=tuple(t for t in traces if t.state == "running" and time.time() - t.updated < STALE),
        failed=tuple(t for t in traces if t.state == "failed"),
        pending=tuple(u.unit for u in plan if u.unit not in done),
        success=(path / "_SUCCESS").exists(),
    )


def quarantine(path: Path) -> Iterator[dict[str, str]]:
    """shard, key and error of the quarantined images; units without any are not opened."""
    build = Build(path)
    for manifest in build.manifests():
        if manifest.quarantined:
            rows = build.read_unit(manifest, "images").select(["shard", "key", "status", "error"]).to_pylist()
            yield from (row for row in rows if row["status"] == QUARANTINED)


class Counter:
    """Live totals for a progress line: manifests are read once each, breadcrumbs at every look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = Ledger(path)
        self.read: dict[str, Manifest] = {}

    def look(self) -> tuple[int, int, int]:
        """(images, masks, quarantined) now; images include those of units in work."""
        for unit, path in self.ledger.newest().items():
            if unit not in self.read:
                self.read[unit] = Manifest.read(path)
        done = self.read.values()
        begun = sum(t.images_done for t in read_attempts(self.path) if t.state == "running" and t.unit not in self.read)
        return sum(m.images for m in done) + begun, sum(m.masks for m in done), sum(m.quarantined for m in done)
