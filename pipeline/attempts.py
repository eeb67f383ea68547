"""What is being tried and how it ended: BUILD/attempts/<task>-<attempt>.json. Not data.

While a task is in work its file is a heartbeat that names the image; afterwards it stays only if the attempt died,
failed or was abandoned, until the unit is committed. Progress, `maskmill status` and the search for an image that kills
its process read these files, so they need no engine and outlive a node.
"""

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from upath import UPath

from maskmill.storage.files import at, files_in, is_local, read_bytes, remove, to_json, write_bytes

log = logging.getLogger("maskmill")

RUNNING, FAILED, DIED, ABANDONED = "running", "failed", "died", "abandoned"
HEARTBEAT_LOCAL, HEARTBEAT_REMOTE = 1.0, 10.0  # seconds; in an object store each costs a request


def heartbeat(build: UPath) -> float:
    """Seconds between two heartbeats of an attempt."""
    return HEARTBEAT_LOCAL if is_local(build) else HEARTBEAT_REMOTE


@dataclass(frozen=True)
class Trace:
    """The content of one file. Times are seconds since the epoch."""

    task: str  # unit or unit@n, of a later filter masks.<filter>.unit
    attempt: str
    state: str
    run_id: str
    host: str
    pid: int
    begun: float
    updated: float
    beat: float  # the seconds after which the next heartbeat is due
    images_done: int = 0
    key: str | None = None  # the image in work
    careful: bool = False  # `key` was written as each image began, not once a heartbeat
    error: str | None = None

    @property
    def unit(self) -> str:
        """The unit of the task."""
        return parse_task(self.task)[1]

    @property
    def ledger(self) -> str:
        """Where the task is committed."""
        return parse_task(self.task)[0]

    @property
    def redo(self) -> int:
        """The number of the manifest that it was to commit."""
        return parse_task(self.task)[2]

    @property
    def alive(self) -> bool:
        """Whether a heartbeat was seen lately."""
        return self.state == RUNNING and time.time() - self.updated < 5 * self.beat + 5


def parse_task(name: str) -> tuple[str, str, int]:
    """The inverse of `Task.name`: ledger, unit, redo."""
    filed, _, redo = name.partition("@")
    ledger, _, unit = filed.rpartition(".")
    return ledger or "images", unit, int(redo) if redo.isdecimal() else 1


class Attempt:
    """One try at one task."""

    def __init__(self, build: UPath, task: str, run_id: str, careful: bool = False) -> None:
        attempt, now = uuid.uuid4().hex[:8], time.time()
        self.path = build / "attempts" / f"{task}-{attempt}.json"
        self.beat = heartbeat(build)
        self.trace = Trace(
            task, attempt, RUNNING, run_id, socket.gethostname(), os.getpid(), now, now, self.beat, careful=careful
        )
        self.write()

    def at(self, key: str | None, images_done: int) -> None:
        """The image that is worked on now; None: what comes between images and after them."""
        self.trace = replace(self.trace, key=key, images_done=images_done)
        if key is not None:
            self.tick(now=self.trace.careful)

    def tick(self, now: bool = False) -> None:
        """A heartbeat, if one is due. One that cannot be written is only missed: the work itself may go on."""
        if now or time.time() - self.trace.updated >= self.beat:
            try:
                self.write()
            except OSError as e:
                log.warning("no heartbeat for %s: %s", self.path, e)

    def end(self, state: str, error: str) -> None:
        """It came to nothing; the file stays."""
        self.trace = replace(self.trace, state=state, error=error)
        self.write()

    def done(self) -> None:
        """Committed, by this attempt or another."""
        remove(self.path)

    def write(self) -> None:
        self.trace = replace(self.trace, updated=time.time())
        write_bytes(self.path, to_json(asdict(self.trace)), synced=False)


def read_attempts(
    build: UPath, tasks: Iterable[str] | None = None, files: Iterable[UPath] | None = None
) -> list[Trace]:
    """Every trace there is, or those of some tasks; one that vanishes or is torn while it is read is left out.

    `files`: a listing of attempts/, if it was just made.
    """
    wanted = None if tasks is None else set(tasks)
    traces = []
    for path in files_in(at(build) / "attempts") if files is None else files:
        if not is_trace(path) or (wanted is not None and path.name.rpartition("-")[0] not in wanted):
            continue
        try:
            traces.append(Trace(**json.loads(read_bytes(path))))
        except (OSError, ValueError, TypeError):
            continue
    return traces


def trace_file(build: UPath, trace: Trace) -> UPath:
    """Where a trace lies."""
    return build / "attempts" / f"{trace.task}-{trace.attempt}.json"


def is_trace(path: UPath) -> bool:
    """Whether this file of attempts/ is one attempt's (`stop-*` and temporary files are not)."""
    return path.name.endswith(".json") and not path.name.startswith((".", "stop-", "verdict-", "append-"))


# A key that has killed its process for good is written down, so that no later attempt at its unit has to find it again.


def condemn(build: UPath, task: str, key: str, why: str) -> None:
    """Set an image of a task aside: every later attempt quarantines it with these words."""
    name = f"verdict-{task}-{uuid.uuid4().hex[:8]}.json"
    write_bytes(build / "attempts" / name, to_json({"task": task, "key": key, "why": why}))


def condemned(build: UPath, task: str, files: Iterable[UPath] | None = None) -> dict[str, str]:
    """key -> why of the images of a task that were set aside."""
    found = {}
    for path in files_in(build / "attempts") if files is None else files:
        if path.name.startswith(f"verdict-{task}-"):
            verdict = json.loads(read_bytes(path))
            found[verdict["key"]] = verdict["why"]
    return found


def stop_file(build: UPath, run_id: str) -> UPath:
    """Present while this run is to stop."""
    return build / "attempts" / f"stop-{run_id}.json"
