"""Where a build stands, from its files alone: works while it runs, and after the cluster is gone."""

import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from upath import UPath

from maskmill.pipeline.attempts import DIED, FAILED, RUNNING, Trace, read_attempts
from maskmill.pipeline.filtering.refilter import outdated
from maskmill.pipeline.generate import ledgers_of
from maskmill.pipeline.plan import Unit, read_plan
from maskmill.storage.build import Build
from maskmill.storage.files import exists
from maskmill.storage.ledger import Ledger, Manifest, read_manifests
from maskmill.storage.schemas import QUARANTINED

RECENT = 900.0  # seconds over which the rate is taken
LOST = "lost"  # shown in place of a state that nobody lived to write


@dataclass(frozen=True)
class Status:
    """Counts over the whole build. `images` is what the plan counts exactly; None if a remote tar is in it."""

    units: int
    units_done: int
    images: int | None
    images_done: int
    images_begun: int  # beside these: of units in work
    empty: int
    quarantined: int
    candidates: int
    masks: int
    work_seconds: float
    rate: float  # images a second, over the last RECENT seconds
    running: tuple[Trace, ...]  # with a fresh heartbeat
    failed: tuple[Trace, ...]  # attempts that failed, died or were lost, at units that are still to do
    left: tuple[Unit, ...]  # units without a manifest
    filters: tuple["FilterStatus", ...]
    success: bool

    @property
    def eta(self) -> float | None:
        """Seconds until all images are done, at the rate of the last quarter of an hour."""
        if self.images is None or not self.rate:
            return None
        return max(0, self.images - self.images_done - self.images_begun) / self.rate


@dataclass(frozen=True)
class FilterStatus:
    """A later filter: of the committed units, how many have its masks, and how many masks there are."""

    name: str
    units: int
    outdated: int
    masks: int


def filter_status(build: Build, name: str) -> FilterStatus:
    """From its ledger."""
    manifests = build.manifests(f"masks/{name}")
    return FilterStatus(name, len(manifests), len(outdated(build, name)), sum(m.masks for m in manifests))


def read_status(path: str | Path | UPath) -> Status:
    """From plan, ledger and attempts."""
    build = Build(path)
    plan = read_plan(build.path / "plan.parquet")
    manifests = build.manifests()
    done = {m.unit for m in manifests}
    redos = {name: ledger.redos() for name, ledger in ledgers_of(build.path).items()}
    traces = [t for t in read_attempts(build.path) if t.alive or redos.get(t.ledger, {}).get(t.unit, 0) < t.redo]
    working = [t for t in traces if t.alive and t.ledger == "images" and t.unit not in done]
    counts = [u.count for u in plan]
    return Status(
        units=len(plan),
        units_done=len(done),
        images=None if None in counts else sum(c for c in counts if c is not None),
        images_done=sum(m.images for m in manifests),
        images_begun=sum(t.images_done for t in working),
        empty=sum(m.empty for m in manifests),
        quarantined=sum(m.quarantined for m in manifests),
        candidates=sum(m.candidates for m in manifests),
        masks=sum(m.masks for m in manifests),
        work_seconds=sum(m.seconds for m in manifests),
        rate=recent_rate(manifests, working),
        running=tuple(t for t in traces if t.alive),
        failed=tuple(ended(t) for t in traces if t.state in (FAILED, DIED) or (t.state == RUNNING and not t.alive)),
        left=tuple(u for u in plan if u.unit not in done),
        filters=tuple(filter_status(build, name) for name in build.later_filters),
        success=exists(build.path / "_SUCCESS"),
    )


def ended(trace: Trace) -> Trace:
    """With words of how. One whose heartbeats ended was lost with its actor, its node or its driver."""
    if trace.state != RUNNING:
        return trace
    return replace(trace, state=LOST, error=f"no heartbeat on {trace.host} for {time.time() - trace.updated:.0f} s")


def recent_rate(manifests: Iterable[Manifest], running: Iterable[Trace] = ()) -> float:
    """Images a second in the RECENT seconds before the last sign of life: of committed units and of those in work.

    Work that began before them counts in proportion to its time within them.
    """
    ends = [(datetime.fromisoformat(m.finished).timestamp(), m) for m in manifests]
    work = [(end - m.seconds, end, m.images) for end, m in ends]
    work += [(t.begun, t.updated, t.images_done) for t in running]
    last = max((end for _, end, _ in work), default=0.0)
    since = last - RECENT
    recent = [(begun, end, images) for begun, end, images in work if end > since]
    first = min((max(begun, since) for begun, _, _ in recent), default=last)
    images = sum(count * min(1.0, (end - since) / max(end - begun, 1e-9)) for begun, end, count in recent)
    return images / max(last - first, 1.0)


def quarantine(path: str | Path | UPath) -> Iterator[dict[str, str]]:
    """shard, key and error of the quarantined images; units without any are not opened."""
    build = Build(path)
    for manifest in build.manifests():
        if manifest.quarantined:
            rows = build.read_unit(manifest, "images").select(["shard", "key", "status", "error"]).to_pylist()
            yield from (row for row in rows if row["status"] == QUARANTINED)


class Counter:
    """Live totals for a progress line: manifests are read once each, breadcrumbs at every look.

    `again`: units whose manifests of now count for nothing, because they are to be done again.
    """

    def __init__(self, path: UPath, ledger: str = "images", again: Collection[str] = ()) -> None:
        self.path = path
        self.ledger = Ledger(path, ledger)
        self.old = {unit: path for unit, path in self.ledger.newest().items() if unit in again}
        self.read: dict[str, Manifest] = {}

    def look(self) -> tuple[int, int, int]:
        """(images, masks, quarantined) now; images include those of units in work."""
        newest = self.ledger.newest().items()
        new = {unit: path for unit, path in newest if unit not in self.read and path != self.old.get(unit)}
        self.read |= {m.unit: m for m in read_manifests(new.values())}
        done = self.read.values()
        traces = (t for t in read_attempts(self.path) if t.alive and t.ledger == self.ledger.name)
        begun = sum(t.images_done for t in traces if t.unit not in self.read)
        return sum(m.images for m in done) + begun, sum(m.masks for m in done), sum(m.quarantined for m in done)
