"""Training on many GPUs: Ray Train starts the processes, the library's `fit` runs in each of them.

Gradients are summed by the library itself, once a step (training/trainer.py): iterations are back-propagated one by
one, which DistributedDataParallel's hooks do not expect. Samples are numbered over all processes, so a run gives the
same updates on any number of them, but for rounding. The first process writes; a run that was killed, or whose cluster
is gone, is continued by the same command.
"""

import json
import signal
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from maskmill.config import RunConfig as RayConfig
from maskmill.config import from_tree, merge, to_tree
from maskmill.errors import UserError
from maskmill.storage import listing
from maskmill.storage.files import at, exists, read_bytes
from maskmill.training.config import TrainConfig
from maskmill.training.fit import Progress, ignore

WATCH_S = 2.0  # seconds between looks at the log
RETRIES = 3  # a process or a machine that is lost: all begin again from the last checkpoint


def fit_on_ray(cfg: TrainConfig, out: str, processes: int, say: Callable[[Progress], None] = ignore) -> bool:
    """`fit` in so many processes, one GPU each where the cluster has any: whether it came to the last step. UserError
    as of `fit`."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from maskmill.pipeline.engines.ray import connect, resources

    if cfg.optim.images % processes:
        raise UserError(f"optim.images={cfg.optim.images} cannot be shared evenly by {processes} processes")
    connect(RayConfig())
    gpus = 0.0 if cfg.run.device == "cpu" else resources().get("GPU", 0.0)
    if 0 < gpus < processes:
        raise UserError(f"--processes {processes}: the cluster has {gpus:g} GPUs; give --processes {gpus:g}")
    with tempfile.TemporaryDirectory(prefix="maskmill-") as scratch:
        trainer = TorchTrainer(
            in_each,
            train_loop_config={"config": absolute(cfg), "out": listing.absolute(out)},
            scaling_config=ScalingConfig(num_workers=processes, use_gpu=gpus > 0),
            run_config=RunConfig(storage_path=scratch, failure_config=FailureConfig(max_failures=RETRIES)),
        )
        ended = threading.Event()
        watcher = threading.Thread(target=watch, args=(cfg, out, say, ended), daemon=True)
        watcher.start()
        try:
            return run(trainer)
        finally:
            ended.set()
            watcher.join()


def watch(cfg: TrainConfig, out: str, say: Callable[[Progress], None], ended: threading.Event) -> None:
    """Tell each new line of the log, which all processes share, until the end. What they print stays on their hosts."""
    told = last_line(out).get("step")
    over = False
    while not over:
        over = ended.wait(WATCH_S)
        line = last_line(out)
        if (step := line.get("step")) is not None and step != told:
            told, steps = step, cfg.optim.steps
            say(Progress(int(step), steps, line.get("seconds", 0.0) * (steps - step), line))


def last_line(out: str) -> dict[str, float]:
    """Of metrics.jsonl; nothing if there is none."""
    path = at(out) / "metrics.jsonl"
    lines = read_bytes(path).splitlines() if exists(path) else []
    found: dict[str, float] = json.loads(lines[-1]) if lines else {}
    return found


def run(trainer: Any) -> bool:
    """Whether it came to the end. What a process says about bad input or a loss that is no number is told here, in one
    line."""
    from maskmill.training.fit import NothingToLearn
    from maskmill.training.trainer import Diverged

    ours = signal.getsignal(signal.SIGINT)  # Ray sets its own, and leaves it there
    try:
        trainer.fit()
        return True
    except SystemExit:  # Ctrl-C: Ray stops the processes, and would end this one with 0
        return False
    except Exception as e:
        for kind in (UserError, NothingToLearn, Diverged):
            if found := words_of(e, kind.__name__):
                raise kind(found) from e
        raise
    finally:
        signal.signal(signal.SIGINT, ours)


def words_of(error: BaseException, name: str) -> str:
    """The words of an error of this name among the lines of a remote traceback; "" if it is not there."""
    for line in reversed(str(error).splitlines()):
        head, _, words = line.partition(": ")
        if head.rpartition(".")[2] == name:
            return words
    return ""


def absolute(cfg: TrainConfig) -> dict[str, Any]:
    """The config as a tree whose places hold on every machine, whatever folder a process works in."""
    tree = to_tree(cfg)
    model, run = tree["model"], tree["run"]
    for key in ("checkpoint", "encoder"):
        model[key] = model[key] and listing.absolute(model[key])
    run["embeddings"] = run["embeddings"] and listing.absolute(run["embeddings"])
    if model["name"].endswith((".yaml", ".yml")):
        model["name"] = listing.absolute(model["name"])
    for source in tree["data"]["sources"]:
        source["path"] = listing.absolute(source["path"])
        source["images"] = source["images"] and listing.absolute(source["images"])
    return tree


def in_each(job: dict[str, Any]) -> None:
    """What one process does."""
    import ray.train
    from ray.train.torch import get_device

    from maskmill.training.fit import fit
    from maskmill.training.trainer import Place

    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size())
    tree = merge(job["config"], {"run": {"device": str(get_device())}})
    fit(from_tree(TrainConfig, tree), job["out"], place)
