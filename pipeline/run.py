"""Run tasks to their end: rounds over an engine, a stop on request, and images that take whole actors with them."""

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from maskmill.errors import UserError
from maskmill.pipeline.attempts import RUNNING, condemn, condemned, read_attempts, stop_file
from maskmill.pipeline.engines import Engine
from maskmill.pipeline.unit import Job, Receipt, Task
from maskmill.storage.files import at, remove, write_bytes
from maskmill.storage.ledger import Ledger

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # USR1: what Slurm's --signal is often set to

PATIENCE_S = 30  # after the grace time of a stop
FAILURES_IN_A_ROW = 12  # end a round: then it is not the units


@dataclass
class Outcome:
    """What became of the tasks."""

    receipts: list[Receipt] = field(default_factory=list)
    left: list[Task] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)  # unit -> its last error
    stopped: bool = False

    def __add__(self, other: "Outcome") -> "Outcome":
        """Of two runs, one after the other."""
        return Outcome(
            self.receipts + other.receipts,
            self.left + other.left,
            self.errors | other.errors,
            self.stopped or other.stopped,
        )


def run_tasks(job: Job, tasks: list[Task], engine: Engine, tell: Callable[[str], None]) -> Outcome:
    """Do all tasks, in rounds: what failed or was lost in one is tried in the next, as long as that helps.

    A round without a commit or a verdict is barren; after `run.max_retries` barren ones the rest is given up.
    """
    outcome = Outcome(left=list(tasks))
    barren = 0
    with stop_on_signal(job, tell) as stop, engine:  # the handlers first: starting an engine takes seconds
        while outcome.left and not stop.is_set() and barren <= job.config.run.max_retries:
            if barren:
                stop.wait(min(30, 2**barren))  # a storage or a node that is ill for a moment
            before, since = len(outcome.left), time.time()
            in_a_row = 0
            for receipt in engine.run(job, outcome.left):
                take(outcome, receipt)
                check_able(job, outcome.receipts)
                in_a_row = 0 if receipt.error is None else in_a_row + 1
                if (in_a_row >= FAILURES_IN_A_ROW or stop.is_set()) and not at_work(job):
                    break  # a storage that is down, or a queue that would only come back undone
            # what failed goes last, so that it cannot keep the rest from its turn
            outcome.left = sorted(still_to_do(job, outcome.left), key=lambda t: t.unit.unit in outcome.errors)
            found = 0 if stop.is_set() else blame_lost(job, outcome.left, since)
            barren = 0 if found or len(outcome.left) < before else barren + 1
            if outcome.left and barren <= job.config.run.max_retries and not stop.is_set():
                tell(f"{len(outcome.left)} units are left: once more")
        outcome.stopped = stop.is_set()
    return outcome


def take(outcome: Outcome, receipt: Receipt) -> None:
    """Note a receipt."""
    outcome.receipts.append(receipt)
    if receipt.error is not None:
        outcome.errors[receipt.unit] = receipt.error


def check_able(job: Job, receipts: list[Receipt]) -> None:
    """Workers that cannot be made ready end the run, unless it works elsewhere."""
    if len(receipts) >= 3 and all(r.unable for r in receipts) and not at_work(job):
        raise UserError(str(receipts[-1].error))


def at_work(job: Job) -> bool:
    """Whether any attempt of this run is going on."""
    return any(t.alive and t.run_id == job.run_id for t in read_attempts(at(job.build)))


def still_to_do(job: Job, tasks: list[Task]) -> list[Task]:
    """Those without a manifest."""
    redos = {name: Ledger(at(job.build), name).redos() for name in {task.ledger for task in tasks}}
    return [task for task in tasks if redos[task.ledger].get(task.unit.unit, 0) < task.redo]


def blame_lost(job: Job, tasks: list[Task], since: float) -> int:
    """Set aside images at which whole actors or nodes were lost, time and again; how many.

    A supervisor outlives what an image does to its worker process. Where the whole container dies with it (its memory
    limit, for instance) only the heartbeat is left. Any loss of a node leaves one too, so a single trace proves
    nothing: it takes `run.max_retries + 1` careful ones of this run (each names the very image) at the same image.
    """
    build, found = at(job.build), 0
    names = {task.name for task in tasks}
    lost = [
        t for t in read_attempts(build, names)
        if t.state == RUNNING and t.run_id == job.run_id and t.careful and t.begun >= since and t.key is not None
    ]  # fmt: skip
    for (name, key), times in Counter((t.task, t.key) for t in lost).items():
        if times > job.config.run.max_retries and key is not None and key not in condemned(build, name):
            condemn(build, name, key, f"ActorLost: its actor or node was lost {times} times at this image")
            found += 1
    return found


@contextmanager
def stop_on_signal(job: Job, tell: Callable[[str], None]) -> Iterator[threading.Event]:
    """The first SIGTERM, SIGINT or SIGUSR1 asks every actor to stop, by a file; the second stops at once."""
    asked = threading.Event()
    path = stop_file(at(job.build), job.run_id)

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt  # the second request, or the alarm: actors that never started give no receipt
        asked.set()
        tell(
            f"{signal.Signals(number).name}: stopping; running units have {job.config.run.grace_s:g} s to finish "
            f"(once more: stop at once)"
        )
        with contextlib.suppress(OSError):  # a full disk: then only the driver stops, and its actors with it
            write_bytes(path, str(time.time()).encode())
        signal.alarm(int(job.config.run.grace_s) + PATIENCE_S)

    old: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        old = {number: signal.signal(number, handle) for number in (*STOPS, signal.SIGALRM)}
    try:
        yield asked
    finally:
        if old:
            signal.alarm(0)
        for number, handler in old.items():
            signal.signal(number, handler)
        if asked.is_set():
            with contextlib.suppress(OSError):
                remove(path)
