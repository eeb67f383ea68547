"""The Ray engine: Ray Data over unit descriptors with a pool of actors.

One row = one block = one unit. The actor's worker process decodes, segments, writes and commits, and a receipt comes
back, so no pixel and no mask crosses the object store. Ray owns actors, autoscaling and the loss of nodes.
"""

import logging
import os
import pickle
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import ray
import ray.data

from maskmill.config import RunConfig
from maskmill.pipeline.engines.metrics import Metrics, UnitGauge
from maskmill.pipeline.supervisor import Supervisor
from maskmill.pipeline.unit import Job, Receipt, Task


class UnitActor:
    """Supervises a worker process. The process of the actor itself holds no model, and Ray sees no crash of one."""

    def __init__(self, job: Job) -> None:
        os.environ.setdefault("MASKMILL_LOG", "INFO")
        self.supervisor = Supervisor(job)
        self.metrics = Metrics()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A task -> a receipt."""
        receipt = self.supervisor.run(pickle.loads(row["task"]))
        self.metrics.count(receipt)
        return {"receipt": pickle.dumps(receipt)}


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
        """Receipts as tasks end. A task whose actors died too often has none."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # a unit that kills its actor costs only itself
        # With one task in flight an actor is never more than 100% used; Ray's default of 175% would never add one.
        context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        cpus, gpus = actor_resources(self.config, job)
        size = min(len(tasks), pool_size(self.config, cpus, gpus))
        rows = [{"task": pickle.dumps(task)} for task in tasks]
        with warnings.catch_warnings():
            # Until 2.64 retries of actor tasks have no other public parameter; pyproject.toml pins below it.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                UnitActor,  # type: ignore[arg-type]
                fn_constructor_args=(job,),
                compute=ray.data.ActorPoolStrategy(
                    min_size=1, initial_size=size, max_size=size, max_tasks_in_flight_per_actor=1
                ),
                num_cpus=cpus,
                num_gpus=gpus,
                max_restarts=-1,
                max_task_retries=self.config.max_retries,  # of a lost actor; Ray's own default repeats for ever
            )
        gauge, done, failed = UnitGauge(), 0, 0
        for row in dataset.iter_rows():
            receipt: Receipt = pickle.loads(row["receipt"])
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
    """What the cluster has in all."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return have
