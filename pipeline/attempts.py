"""What is being tried: BUILD/attempts/<unit>-<attempt>.json, a breadcrumb of the image in work. Not data.

A committed unit leaves none (its manifest says it all); a crash leaves the last breadcrumb, a failure its words.
Progress and `maskmill status` read these files, so they need no engine.
"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from maskmill.storage.files import temporary

EVERY = 1.0  # seconds between breadcrumbs of quick images


@dataclass(frozen=True)
class Trace:
    """The content of one file. Times are seconds since the epoch."""

    unit: str
    attempt: str
    state: str  # running, failed, lost
    host: str
    pid: int
    begun: float
    updated: float
    images_done: int = 0
    key: str | None = None
    error: str | None = None


class Attempt:
    """One try at one unit."""

    def __init__(self, build: Path, unit: str, attempt: str) -> None:
        self.id = attempt
        self.path = build / "attempts" / f"{unit}-{attempt}.json"
        now = time.time()
        self.trace = Trace(unit, attempt, "running", socket.gethostname(), os.getpid(), now, now)
        self.write()

    def at(self, key: str, images_done: int) -> None:
        """The image that is worked on now."""
        if time.time() - self.trace.updated >= EVERY or images_done == 0:
            self.trace = replace(self.trace, key=key, images_done=images_done, updated=time.time())
            self.write()

    def failed(self, error: str) -> None:
        """The unit as a whole could not be done."""
        self.trace = replace(self.trace, state="failed", error=error, updated=time.time())
        self.write()

    def lost(self) -> None:
        """Another attempt committed first: this one's files are orphans."""
        self.trace = replace(self.trace, state="lost", updated=time.time())
        self.write()

    def done(self) -> None:
        """Committed."""
        self.path.unlink(missing_ok=True)

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tmp = temporary(self.path)
        tmp.write_text(json.dumps(asdict(self.trace)))
        tmp.rename(self.path)


def read_attempts(build: Path) -> list[Trace]:
    """Every trace there is; one that vanishes or is torn while it is read is left out."""
    traces = []
    for path in sorted((build / "attempts").glob("*.json")):
        try:
            traces.append(Trace(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return traces
