"""`maskmill train`."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from maskmill.errors import UserError
from maskmill.pipeline.commands.common import FAILED, RESUMABLE, check_device, stop_resumable

if TYPE_CHECKING:
    from maskmill.training.config import TrainConfig
    from maskmill.training.fit import Progress

QUIET_FOR = 10.0  # seconds between lines of a log


@click.command()
@click.argument("config", metavar="CONFIG")
@click.option("--data", multiple=True, metavar="PATH", help="A build, an SA-1B-style folder or tar, or COCO JSON.")
@click.option("--images", metavar="FOLDER", help="Where the images of a build or of COCO JSON lie now.")
@click.option("--out", required=True, metavar="DIR", help="Checkpoints, metrics, weights: local, s3:// or gs://.")
@click.option("--set", "assignments", multiple=True, metavar="key=value", help="Change one key of CONFIG.")
@click.option(
    "--processes",
    type=click.IntRange(1),
    metavar="N",
    default=1,
    show_default=True,
    help="Train data-parallel by Ray Train on so many GPUs.",
)
@click.option("--quiet", is_flag=True, help="No progress.")
def train(
    config: str,
    data: tuple[str, ...],
    images: str | None,
    out: str,
    assignments: tuple[str, ...],
    processes: int,
    quiet: bool,
) -> None:
    """Train or fine-tune a model by SAM's own recipe. CONFIG: a YAML file, or sam, finetune, decoder, small,
    small_fine, small_wide, small_last, small_finest, small_short; or nano, which makes the built-in model anew.

    The same command again continues where DIR stands, bit by bit as if it had never stopped (on a CPU). DIR holds
    metrics.jsonl and model.safetensors, which --checkpoint takes. Only run.* may change in between. The keys of CONFIG
    are in docs/training.md and src/maskmill/training/config.py.

    \b
    Examples:
      maskmill train finetune --data annotations/instances.json --out nuclei/
      maskmill train decoder --data masks/ --out round1/ --set model.name=vit_b --set model.checkpoint=sam_vit_b.pth
      maskmill train nano --data 'coco-panoptic/train-000[012].tar' --out nano/
      maskmill train sam --data '/data/sa_{000000..000999}.tar' --out s3://bucket/run1 --processes 256 \\
        --set model.encoder=mae_pretrain_vit_huge.pth
    """
    from maskmill.config import merge, parse_set, read_yaml
    from maskmill.storage.files import at, check_writable
    from maskmill.training.fit import fit
    from maskmill.training.trainer import Diverged

    tree = merge(read_yaml("train", config), parse_set(assignments))
    if images is not None and (not data or tree.get("recipe") == "nano"):
        raise UserError(f"--images {images}: it says where the images of --data lie; in a config, data.sources has it")
    check_writable(at(out))
    nano = tree.get("recipe") == "nano"
    cfg = None if nano else read_config(tree, data, images)
    if cfg is not None:
        check_device(cfg.run.device, here=processes == 1, name="run.device")
    try:
        if cfg is None:
            done = train_nano(tree, data, out, processes, quiet, stop_between_steps())
        elif processes > 1:
            from maskmill.pipeline.ray_train import fit_on_ray

            stop_resumable()  # at once: the processes keep what they saved last
            done = fit_on_ray(cfg, out, processes, reporter(quiet))
        else:
            done = fit(cfg, out, say=reporter(quiet), stopped=stop_between_steps())
    except Diverged as e:
        click.echo(f"maskmill: {e}; {out} keeps its last checkpoint", err=True)
        sys.exit(FAILED)
    except OSError as e:  # a full disk, storage that is gone
        words = " ".join((e.strerror or str(e) or type(e).__name__).split())
        more = f"{out} keeps its last checkpoint: once this is mended, the same command continues from there"
        click.echo(f"maskmill: {words}; {more}", err=True)
        sys.exit(FAILED)
    if not quiet:
        file = f"{out}/{'nano' if nano else 'model'}.safetensors"
        words = f"done: {file}" if done else "stopped; the same command continues where it stopped"
        click.echo(f"train: {words}", err=True)
    sys.exit(0 if done else RESUMABLE)


def read_config(tree: dict[str, Any], data: tuple[str, ...], images: str | None) -> "TrainConfig":
    """The recipe with --data on top."""
    from maskmill.config import from_tree, merge
    from maskmill.training.config import TrainConfig, for_model

    if data:
        sources: list[dict[str, Any]] = [{"path": path, "images": images} for path in data]
        tree = merge(tree, {"data": {"sources": sources}})
    return from_tree(TrainConfig, for_model(tree))


def train_nano(
    tree: dict[str, Any], data: tuple[str, ...], out: str, processes: int, quiet: bool, stopped: Callable[[], bool]
) -> bool:
    """The built-in model's own recipe; whether it came to its end."""
    from maskmill.config import from_tree
    from maskmill.training.nano import read_photos
    from maskmill.training.nano import train as fit_nano
    from maskmill.training.nano_trainer import NanoConfig

    if processes > 1:
        raise UserError(f"--processes {processes}: nano is trained by one process")
    if "://" in out:
        raise UserError(f"--out {out}: nano is trained into a local folder")
    cfg = from_tree(NanoConfig, {key: value for key, value in tree.items() if key != "recipe"})
    check_device(cfg.device, here=True, name="device")
    return fit_nano(cfg, Path(out), read_photos(data), quiet, stopped)


def stop_between_steps() -> Callable[[], bool]:
    """Ctrl-C and the signals of schedulers end the run after the step at hand; a second Ctrl-C ends it at once."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, note)
    return lambda: bool(asked)


def reporter(quiet: bool) -> Callable[["Progress"], None]:
    """`step 40/150  loss 0.31  iou 0.71 best, 0.74 last  ETA 0:03:10`: rewritten on a terminal, lines in a log."""
    from maskmill.pipeline.progress import clock

    live, last = sys.stderr.isatty(), [0.0]

    def say(progress: "Progress") -> None:
        ends = progress.step == progress.steps
        if quiet or (not live and not ends and time.monotonic() - last[0] < QUIET_FOR):
            return
        last[0] = time.monotonic()
        f = progress.figures
        words = f"step {progress.step}/{progress.steps}  loss {f.get('loss', 0):.4f}  "
        words += f"IoU {f.get('iou_first', 0):.3f} first, {f.get('iou_last', 0):.3f} last  ETA {clock(progress.left)}"
        click.echo(f"\r{words}  " if live and not ends else words, err=True, nl=not live or ends)

    return say
