"""The Ray engine: a pool of actors, each with one unit at a time.

The actor's worker process decodes, segments, writes and commits, and a receipt comes back, so no pixel and no mask
crosses the object store. Ray owns where actors run, and what becomes of them and their nodes. Plain actors, not Ray
Data: units are few, long and commit themselves, so blocks, their order and their retries would only be in the way
(12 ms a unit, memory in the driver, a unit bound to an actor that waits for a lost node).
"""

import logging
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from maskmill.config import RunConfig
from maskmill.errors import UserError
from maskmill.pipeline.engines.metrics import Metrics, UnitGauge
from maskmill.pipeline.supervisor import Supervisor
from maskmill.pipeline.unit import Job, Receipt, Task, describe

START_TRIES = 3  # actors that die at their start, one after another
GROWTH_S = 10.0  # how often to look whether the cluster has grown
HINT_S = 60.0  # without any actor

log = logging.getLogger("maskmill")


class UnitActor:
    """Supervises a worker process. The process of the actor itself holds no model, and Ray sees no crash of one."""

    def __init__(self, job: Job) -> None:
        os.environ.setdefault("MASKMILL_LOG", "INFO")
        self.supervisor = Supervisor(job)
        self.metrics = Metrics()

    def ready(self) -> None:
        """Returns once the actor runs."""

    def run(self, task: Task) -> Receipt:
        """Do one task."""
        receipt = self.supervisor.run(task)
        self.metrics.count(receipt)
        return receipt


@dataclass
class Call:
    """What an actor is asked: a task, or (None) whether it runs."""

    actor: Any
    task: Task | None


class Pool:
    """The actors of one run. Each has one call open, so those that are idle do not exist."""

    def __init__(self, config: RunConfig, job: Job) -> None:
        self.config, self.job = config, job
        self.cpus, self.gpus = actor_resources(config, job)
        self.actor = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus)(UnitActor)  # type: ignore[call-overload]
        self.calls: dict[Any, Call] = {}  # by the reference of the answer
        self.failed_starts: list[str] = []  # since the last that succeeded
        self.size, self.looked = 0, -GROWTH_S
        self.idle_since: float | None = time.monotonic()  # since when no actor runs; None: one does, or it was said

    def run(self, tasks: list[Task]) -> Iterator[Receipt]:
        """Receipts as tasks end. A task whose actors were lost more than `max_retries` times has that as its error."""
        queue, losses = deque(tasks), Counter[str]()
        try:
            while queue or self.working():
                self.staff(len(queue))
                for ref in self.answers():
                    call = self.calls.pop(ref)
                    try:
                        receipt = ray.get(ref)
                    except RayTaskError as e:  # the supervisor makes receipts of errors, so this is one of Ray's side
                        assert call.task is not None, "`ready` raises nothing"
                        receipt = Receipt(call.task.unit.unit, error=describe(e))
                    except RayError as e:
                        ray.kill(call.actor)
                        if call.task is None:
                            self.failed_starts.append(describe(e))
                        elif losses[call.task.name] < self.config.max_retries:
                            losses[call.task.name] += 1
                            queue.appendleft(call.task)
                        else:
                            yield Receipt(call.task.unit.unit, error=describe(e))
                        continue
                    self.failed_starts, self.idle_since = [], None
                    if queue:  # else its handle goes, and the actor with it: its resources are free for others
                        self.ask(call.actor, queue.popleft())
                    if call.task is not None:
                        yield receipt
        finally:
            for call in self.calls.values():
                ray.kill(call.actor)

    def working(self) -> int:
        """Tasks in work."""
        return sum(call.task is not None for call in self.calls.values())

    def ask(self, actor: Any, task: Task | None) -> None:
        """Open a call."""
        ref = actor.ready.remote() if task is None else actor.run.remote(task)
        self.calls[ref] = Call(actor, task)

    def answers(self) -> list[Any]:
        """References of answers that are there, after a short wait for one."""
        found, _ = ray.wait(list(self.calls), num_returns=1, timeout=1.0)
        if self.idle_since is not None and time.monotonic() - self.idle_since > HINT_S:
            self.idle_since = None
            log.warning(
                f"no actor could be started for {HINT_S:.0f} s: each wants {self.cpus:g} CPU and {self.gpus:g} GPU "
                f"(run.cpus_per_actor, run.gpus_per_actor), the cluster has {resources()}; waiting"
            )
        return list(found)

    def staff(self, waiting: int) -> None:
        """Start as many actors as the cluster holds and the tasks in the queue can use, in place of lost ones too."""
        if (now := time.monotonic()) - self.looked >= GROWTH_S:
            self.looked, self.size = now, pool_size(self.config, self.cpus, self.gpus)
        if len(self.failed_starts) >= START_TRIES:
            if not self.calls:
                raise UserError(f"no actor can be started on the cluster, last: {self.failed_starts[-1][:800]}")
            return
        starting = len(self.calls) - self.working()
        for _ in range(min(waiting - starting, self.size - len(self.calls))):
            self.ask(self.actor.remote(self.job), None)


class RayEngine:
    """On the cluster that RAY_ADDRESS names, else on a new one on this machine."""

    def __init__(self, run: RunConfig) -> None:
        self.config = run
        self.began_ray = False

    def __enter__(self) -> "RayEngine":
        self.began_ray = connect(self.config)
        return self

    def __exit__(self, *_: object) -> None:
        if self.began_ray:
            ray.shutdown()

    def run(self, job: Job, tasks: list[Task]) -> Iterator[Receipt]:
        """Receipts as tasks end."""
        gauge, done, failed = UnitGauge(), 0, 0
        for receipt in Pool(self.config, job).run(tasks):
            failed += receipt.error is not None
            done += receipt.error is None and not receipt.deferred
            gauge.set(done, len(tasks) - done - failed, failed)
            yield receipt


def connect(run: RunConfig) -> bool:
    """Join or start a cluster. True if this call started one."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's C++ side prints its own bookkeeping to the terminal; its log files keep everything that matters.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=run.object_store_mb << 20,
        )
    for number, handler in handlers.items():  # Ray puts its own in their place
        signal.signal(number, handler)
    return True


def actor_resources(run: RunConfig, job: Job) -> tuple[float, float]:
    """(CPUs, GPUs) of one actor. A cluster with GPUs gives each actor one; else an actor takes its torch threads."""
    wants_cpu = job.device is not None and not job.device.startswith("cuda")
    has_gpus = not wants_cpu and resources().get("GPU", 0) > 0
    gpus = run.gpus_per_actor if run.gpus_per_actor is not None else float(has_gpus)
    cpus = run.cpus_per_actor if run.cpus_per_actor is not None else float(job.config.generate.threads)
    return cpus, gpus


def pool_size(run: RunConfig, cpus: float, gpus: float) -> int:
    """As many actors as the cluster holds, unless `run.actors` says."""
    if run.actors is not None:
        return run.actors
    have = resources()
    fits = have.get("GPU", 0) / gpus if gpus else have.get("CPU", 1) / max(cpus, 0.01)
    return max(1, int(fits))


def resources() -> dict[str, float]:
    """What the cluster has in all, CPUs and GPUs."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return {name: have[name] for name in ("CPU", "GPU") if name in have}
