"""What passes between a driver, its actors and their worker processes: a job, a task, a receipt. Imports no model."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from maskmill.config import Config
from maskmill.pipeline.plan import Unit


@dataclass(frozen=True)
class Job:
    """What a worker must know, small enough to send to each."""

    build: str  # an absolute path or URL
    run_id: str  # of this driver
    config: Config
    model_id: str
    model_sha256: str
    filter_name: str
    device: str | None
    candidates: bool
    segmenter: str = "maskmill.pipeline.worker:SamSegmenter"  # module:factory of job; tests and benchmarks give another
    worker: str = "maskmill.pipeline.worker:Worker"  # module:class of job; what does the tasks


@dataclass(frozen=True)
class Task:
    """A unit to do, or its quarantined images to do again; of a later filter: its masks."""

    unit: Unit
    redo: int = 1  # 1: the whole unit; n: the quarantined images of manifest n - 1
    dead: dict[str, str] = field(default_factory=dict)  # key -> why: images that killed their process
    suspect: str | None = None  # the image that will be set aside at one more death: it goes first
    careful: bool = False  # one image at a time, and each is named: an earlier attempt died
    ledger: str = "images"  # where it is committed; masks.<filter> for the masks of a later filter

    @property
    def name(self) -> str:
        """`000003`, `000003@2`, `masks.strict.000003`: what its attempts are filed under."""
        filed = "" if self.ledger == "images" else f"{self.ledger}."
        return f"{filed}{self.unit.unit}" if self.redo == 1 else f"{filed}{self.unit.unit}@{self.redo}"

    def without(self, key: str, why: str) -> "Task":
        """The same task, with one more image set aside."""
        return replace(self, dead={**self.dead, key: why})


@dataclass(frozen=True)
class Receipt:
    """What comes back for a task. With `error` or `deferred` the unit is still to do."""

    unit: str
    images: int = 0
    empty: int = 0
    quarantined: int = 0
    masks: int = 0
    seconds: float = 0.0
    steps: dict[str, float] = field(default_factory=dict)  # seconds in read, decode, segment, write, commit
    deaths: int = 0  # of worker processes on the way
    error: str | None = None
    unable: bool = False  # no worker process can be made ready here
    deferred: bool = False  # the run is being stopped


class Works(Protocol):
    """Does tasks, one after another."""

    def run(self, task: Task, report: Callable[..., None]) -> Receipt:
        """Do and commit a task. Errors come as receipts."""
        ...


def make_worker(job: Job) -> Works:
    """What `job.worker` names. Imported here: its libraries are slow to load."""
    module, _, name = job.worker.partition(":")
    worker: Works = getattr(importlib.import_module(module), name)(job)
    return worker


def describe(error: BaseException) -> str:
    """`Class: words`, one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
