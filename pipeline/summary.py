"""A build on one screen."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from maskmill.pipeline.status import Status, quarantine, read_status

SHOWN = 10  # quarantined images that are named


def summary(build: Path) -> Iterator[str]:
    """Lines of `name  value`."""
    s = read_status(build)
    for name, value in itertools.chain(totals(build, s), units(s), quarantined(build, s)):
        yield f"{name:<11} {value}"


def totals(build: Path, s: Status) -> Iterator[tuple[str, str]]:
    """What there is."""
    state = "finished" if s.success else "running" if s.running else "stopped: the same generate command continues it"
    of = "" if s.images is None else f" of {s.images}"
    each = max(1, s.images_done)
    yield "build", f"{build} ({state})"
    yield "units", f"{s.units_done} of {s.units} done, {len(s.running)} running, {len(s.failed)} failed"
    ok = s.images_done - s.quarantined - s.empty
    yield "images", f"{s.images_done}{of}: {ok} ok, {s.empty} empty, {s.quarantined} quarantined"
    yield "masks", f"{s.masks} ({s.masks / each:.1f} an image)"
    yield "candidates", f"{s.candidates}"
    yield "work", f"{s.work_seconds:.1f} s in actors, {s.work_seconds / each:.2f} s an image"


def units(s: Status) -> Iterator[tuple[str, str]]:
    """What is not done."""
    for trace in s.running:
        yield "running", f"unit {trace.unit} on {trace.host}: {trace.images_done} images, now {trace.key}"
    for trace in s.failed:
        yield "failed", f"unit {trace.unit}: {trace.error}"
    if s.pending:
        yield "pending", f"{len(s.pending)}: {' '.join(s.pending[:8])}{' ...' if len(s.pending) > 8 else ''}"


def quarantined(build: Path, s: Status) -> Iterator[tuple[str, str]]:
    """The images that were set aside, and why."""
    for row in itertools.islice(quarantine(build), SHOWN):
        yield "quarantined", f"{row['shard']} {row['key']}: {row['error']}"
    if s.quarantined > SHOWN:
        yield "", f"and {s.quarantined - SHOWN} more: select key, error from images where status = 'quarantined'"
