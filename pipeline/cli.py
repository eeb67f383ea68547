"""The `maskmill` command. Exit codes: 0 done, 1 failed, 2 bad usage or input, 75 stopped early but resumable."""

import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from maskmill import __version__
from maskmill.errors import UserError

DONE, FAILED, BAD_INPUT, RESUMABLE = 0, 1, 2, 75


class Commands(click.Group):
    """Turns a UserError into one line, and anything unforeseen into one line that says how to see more."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except UserError as e:
            stop(ctx, e, BAD_INPUT, str(e))
        except KeyboardInterrupt as e:
            stop(ctx, e, RESUMABLE, "stopped; the same command continues where it stopped")
        except Exception as e:
            words = f"{type(e).__name__}: {' '.join(str(e).split())[:400]}"
            stop(ctx, e, FAILED, f"{words} (maskmill --debug {ctx.invoked_subcommand} shows where)")


def stop(ctx: click.Context, error: BaseException, code: int, words: str) -> NoReturn:
    """One line, or the whole traceback with --debug."""
    if ctx.params.get("debug"):
        traceback.print_exception(error)
    click.echo(f"maskmill: {words}", err=True)
    ctx.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="maskmill")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """An open data engine for segmentation masks: SAM over image sets, on Ray, into Parquet.

    \b
    Examples:
      maskmill generate photos/ --out masks/           masks for a folder of photos
      maskmill status masks/                           how far it is
      maskmill verify masks/                           check every promise of a finished build
    """


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that decide what is made; `generate` and `plan` share them."""
    for option in reversed(
        (
            click.option("--model", metavar="NAME", help="A name that `maskmill models` lists. Default: nano."),
            click.option("--checkpoint", metavar="FILE", help="Weights: Meta's .pth as it is, or .safetensors."),
            click.option("--config", metavar="YAML", help="A config file, or a name: default, sa1b."),
            click.option("--filter", "filter_name", metavar="NAME|YAML", help="Thresholds: default, sa1b, or a file."),
            click.option("--set", "assignments", multiple=True, metavar="key=value", help="Change one config key."),
            click.option("--device", metavar="D", help="cpu, cuda, cuda:1 ... Default: a GPU where there is one."),
        )
    ):
        command = option(command)
    return command


@main.command()
@click.argument("images")
@click.option("--out", required=True, metavar="BUILD", help="The folder to write.")
@recipe_options
@click.option("--engine", type=click.Choice(["ray", "local"]), default="ray", show_default=True)
@click.option("--no-candidates", is_flag=True, help="Store the masks only: smaller, but no later filter rerun.")
@click.option("--append", is_flag=True, help="Include images that are new since the build was begun.")
@click.option("--quiet", is_flag=True, help="No progress, no summary.")
def generate(
    images: str,
    out: str,
    model: str | None,
    checkpoint: str | None,
    config: str | None,
    filter_name: str | None,
    assignments: tuple[str, ...],
    device: str | None,
    engine: str,
    no_candidates: bool,
    append: bool,
    quiet: bool,
) -> None:
    """Masks for every image of IMAGES, written to BUILD.

    IMAGES is a folder of images, a folder of WebDataset tars, a tar, a glob or brace range of tars, or Parquet with an
    image column; local or any fsspec URL. The same command again continues a build, or leaves a finished one as it is.

    \b
    Examples:
      maskmill generate photos/ --out masks/
      maskmill generate 'shards/{0000..0099}.tar' --out masks/ --config sa1b
      maskmill generate s3://bucket/shards --out masks/ --model vit_h --checkpoint sam_vit_h_4b8939.pth
      maskmill generate photos/ --out masks/ --set generate.points_per_side=16 --set run.actors=2
    """
    from maskmill.config import resolve
    from maskmill.pipeline.recipe import Recipe
    from maskmill.sam.build import checkpoint_sha256

    signal.signal(signal.SIGTERM, interrupt)
    cfg = resolve(model, checkpoint, config, filter_name, assignments)
    sha256 = checkpoint_sha256(cfg.model.name, cfg.model.checkpoint)
    check_device(device, here=engine == "local")
    name = Path(filter_name or "default").stem
    recipe = Recipe(cfg, sha256, images, name, candidates=not no_candidates)
    sys.exit(run_generate(recipe, Path(out), engine, device, append, quiet))


def run_generate(recipe: Any, out: Path, engine: str, device: str | None, append: bool, quiet: bool) -> int:
    """Plan, run, close, summarise. Returns the exit code."""
    from maskmill.pipeline.engines import Engine
    from maskmill.pipeline.engines.local import LocalEngine
    from maskmill.pipeline.generate import close_build, open_build, run_pending
    from maskmill.pipeline.preview import write_preview
    from maskmill.pipeline.progress import ProgressReporter
    from maskmill.pipeline.status import read_status
    from maskmill.pipeline.summary import summary

    opened = open_build(recipe, out, append)
    if not opened.pending:
        close_build(opened)
        click.echo(f"{out} is finished: {len(opened.plan)} units; nothing to do")
        return DONE
    runner: Engine
    if engine == "local":
        runner = LocalEngine()
    else:
        from maskmill.pipeline.engines.ray import RayEngine

        runner = RayEngine(recipe.config.run)
    say(quiet, f"{len(opened.pending)} of {len(opened.plan)} units to do, with {recipe.model_id}, engine {engine}")
    errors = []
    with ProgressReporter(out, read_status(out).images, quiet):
        for receipt in run_pending(opened, recipe, runner, device):
            if receipt.error:
                errors.append(f"unit {receipt.unit}: {receipt.error}")
    done = close_build(opened)
    if not quiet:
        for line in summary(out):
            click.echo(line)
        click.echo(f"{'picture':<11} {write_preview(out) or 'none: no image has a mask'}")
    if done:
        return DONE
    for error in errors[:10]:
        click.echo(f"maskmill: {error}", err=True)
    left = read_status(out)
    click.echo(
        f"maskmill: {len(left.pending)} of {left.units} units failed (first: {left.pending[0]}); their traces are in "
        f"{out / 'attempts'}; the same command tries them again",
        err=True,
    )
    return FAILED


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM ends the run as Ctrl-C does: committed units stay, the rest is done next time."""
    raise KeyboardInterrupt


def check_device(device: str | None, here: bool) -> None:
    """Refuse a device that torch does not know, or that is missing where the work runs `here`, not on a cluster."""
    import torch

    if device is None:
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as e:
        raise UserError(f"--device {device!r} is no device: expected cpu, cuda or cuda:N") from e
    if here and kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {device!r}: torch finds no CUDA GPU here; leave --device out to use the CPU")


def say(quiet: bool, words: str) -> None:
    """A line for the log."""
    if not quiet:
        click.echo(words, err=True)


@main.command()
@click.argument("images")
@recipe_options
def plan(
    images: str,
    model: str | None,
    checkpoint: str | None,
    config: str | None,
    filter_name: str | None,
    assignments: tuple[str, ...],
    device: str | None,
) -> None:
    """What generate would do: units, images, an estimate. Writes nothing.

    \b
    Example:
      maskmill plan photos/ --config sa1b
    """
    from maskmill.config import resolve
    from maskmill.pipeline.estimate import estimate

    cfg = resolve(model, checkpoint, config, filter_name, assignments)
    check_device(device, here=True)
    for line in estimate(images, cfg, device):
        click.echo(line)


@main.command()
@click.argument("build", type=click.Path(path_type=Path))
def status(build: Path) -> None:
    """How far a build is, from its files alone.

    \b
    Example:
      maskmill status masks/
    """
    from maskmill.pipeline.summary import summary

    for line in summary(build):
        click.echo(line)


@main.command()
@click.argument("build", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Skip hashing the files and walking the sources.")
def verify(build: Path, quick: bool) -> None:
    """Check every promise of a build; exit 1 and one line for each break.

    \b
    Example:
      maskmill verify masks/
    """
    from maskmill.pipeline.verify import verify as check

    problems = 0
    for problem in check(build, quick):
        problems += 1
        click.echo(problem)
    if problems:
        click.echo(f"maskmill: {build} breaks {problems} promise{'s' if problems > 1 else ''}", err=True)
        sys.exit(FAILED)
    click.echo(f"{build}: every promise holds{' (quick: no hashes, no source walk)' if quick else ''}")


@main.command()
def models() -> None:
    """The models, and where their weights come from.

    \b
    Example:
      maskmill models
    """
    from maskmill.config import names, read_yaml

    for name in names("model"):
        tree = read_yaml("model", name)
        click.echo(f"{name:<8} {tree['image_encoder']['img_size']:>4} px  {tree.get('about', '')}")
    click.echo(
        "\nPublished weights: the checkpoint links in the README of github.com/facebookresearch/segment-anything;\n"
        "pass the file with --checkpoint. The digits in its name are the first of its sha256."
    )


if __name__ == "__main__":
    main()
