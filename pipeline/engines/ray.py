"""The Ray engine: Ray Data over unit descriptors with a pool of actors.

One row = one block = one unit. The actor decodes, segments, writes and commits, and returns a receipt, so no pixel
and no mask crosses the object store. Ray owns actors, autoscaling, retries and node loss.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import ray
import ray.data

from maskmill.config import RunConfig
from maskmill.pipeline.plan import Unit
from maskmill.pipeline.unit import Job, Receipt, Worker


class UnitActor:
    """A worker that lives in an actor: the model is loaded once."""

    def __init__(self, job: Job) -> None:
        self.worker = Worker(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A unit descriptor -> a receipt."""
        keys = row["keys"]
        unit = Unit(**{**row, "keys": None if keys is None else tuple(keys)})
        return asdict(self.worker.run(unit))


class RayEngine:
    """On the cluster that RAY_ADDRESS names, else on a new one on this machine."""

    def __init__(self, run: RunConfig) -> None:
        self.config = run

    def run(self, job: Job, units: list[Unit]) -> Iterator[Receipt]:
        """Receipts as units end. A unit whose process died too often has none."""
        began_ray = connect(self.config)
        try:
            yield from self.stream(job, units)
        finally:
            if began_ray:
                ray.shutdown()

    def stream(self, job: Job, units: list[Unit]) -> Iterator[Receipt]:
        """The Ray Data pipeline."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # a unit that kills its actor costs only itself
        # With one task in flight an actor is never more than 100% used; Ray's default of 175% would never add one.
        context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        cpus, gpus = actor_resources(self.config, job)
        size = min(len(units), pool_size(self.config, cpus, gpus))
        rows = [asdict(unit) for unit in units]
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
                max_task_retries=self.config.max_retries,  # Ray's own default repeats a crash for ever
            )
        for row in dataset.iter_rows():
            yield Receipt(**row)


def connect(run: RunConfig) -> bool:
    """Join or start a cluster. True if this call started one."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's C++ side prints its own bookkeeping to the terminal; its log files keep everything that matters.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=run.object_store_mb << 20,
        )
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
