"""A build on one screen."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from upath import UPath

from maskmill.pipeline.attempts import Trace
from maskmill.pipeline.progress import clock
from maskmill.pipeline.status import Status, quarantine, read_status

SHOWN = 10  # quarantined images that are named


def summary(build: str | Path | UPath, remaining: bool = False) -> Iterator[str]:
    """Lines of `name  value`; with `remaining` every unit that is still to do."""
    s = read_status(build)
    for name, value in itertools.chain(totals(build, s), units(s, remaining), quarantined(build, s)):
        yield f"{name:<11} {value}"


def totals(build: str | Path | UPath, s: Status) -> Iterator[tuple[str, str]]:
    """What there is."""
    state = "finished" if s.success else "running" if s.running else "stopped: the same command continues it"
    of = "" if s.images is None else f" of {s.images}"
    each = max(1, s.images_done)
    yield "build", f"{build} ({state})"
    running = {t.unit for t in s.running if t.ledger == "images"}
    waiting = sum(u.unit not in running for u in s.left)
    yield "units", f"{s.units_done} of {s.units} done, {len(running)} running, {waiting} pending"
    ok = s.images_done - s.quarantined - s.empty
    yield "images", f"{s.images_done}{of}: {ok} ok, {s.empty} empty, {s.quarantined} quarantined"
    yield "masks", f"{s.masks} ({s.masks / each:.1f} an image)"
    yield "candidates", f"{s.candidates}"
    for f in s.filters:
        lack = f", {f.outdated} to do: maskmill filter {build} --name {f.name}" if f.outdated else ""
        yield "filter", f"{f.name}: {f.masks} masks of {f.units} units{lack}"
    yield "work", f"{s.work_seconds:.1f} s in workers, {s.work_seconds / each:.2f} s an image"
    if s.left and s.rate:
        yield "rate", f"{s.rate:.2f} images/s lately, {'ETA unknown' if s.eta is None else 'ETA ' + clock(s.eta)}"


def units(s: Status, remaining: bool) -> Iterator[tuple[str, str]]:
    """What is not done."""
    for t in s.running:
        yield "running", f"unit {t.task} on {t.host}: {t.images_done} images, now {t.key}, seen {age(t)} ago"
    for t in s.failed[: None if remaining else SHOWN]:
        at = f" at {t.key}" if t.key else ""
        yield t.state, f"unit {t.task}{at}: {t.error}"
    if remaining:
        for u in s.left:
            keys = "" if u.first_key is None else f"  {u.first_key} .. {u.last_key}"
            yield "remaining", f"{u.unit}  {u.shard}  {'?' if u.count is None else u.count} images{keys}"
    elif s.left:
        names = " ".join(u.unit for u in s.left[:8])
        yield "remaining", f"{names}{' ... (--remaining lists all)' if len(s.left) > 8 else ''}"


def age(trace: Trace) -> str:
    """Since its last heartbeat."""
    return f"{max(0.0, time.time() - trace.updated):.0f} s"


def quarantined(build: str | Path | UPath, s: Status) -> Iterator[tuple[str, str]]:
    """The images that were set aside, and why."""
    for row in itertools.islice(quarantine(build), SHOWN):
        yield "quarantined", f"{row['shard']} {row['key']}: {row['error']}"
    if s.quarantined > SHOWN:
        yield "", f"and {s.quarantined - SHOWN} more: select key, error from images where status = 'quarantined'"
