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

FAILED, BAD_INPUT, RESUMABLE = 1, 2, 75


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
      maskmill retry masks/                            do what was quarantined again
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
@click.option("--out", required=True, metavar="BUILD", help="The folder to write: local, s3:// or gs://.")
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
    from maskmill.pipeline import drive
    from maskmill.pipeline.recipe import Recipe
    from maskmill.sam.build import checkpoint_sha256

    stop_resumable()
    cfg = resolve(model, checkpoint, config, filter_name, assignments)
    sha256 = checkpoint_sha256(cfg.model.name, cfg.model.checkpoint)
    check_device(device, here=engine == "local")
    recipe = Recipe(cfg, sha256, images, Path(filter_name or "default").stem, candidates=not no_candidates)
    sys.exit(drive.generate(recipe, out, drive.make_engine(engine, cfg.run, debugging()), device, append, quiet))


def stop_resumable() -> None:
    """Before and after the run itself, which drains, a signal ends the command at once, as Ctrl-C does: with 75."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, interrupt)


def debugging() -> bool:
    """Whether --debug was given: the local engine then works in this process, where a debugger can follow it."""
    return bool(click.get_current_context().find_root().params.get("debug"))


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
@click.argument("build")
@click.option("--remaining", is_flag=True, help="List every unit that is still to do.")
def status(build: str, remaining: bool) -> None:
    """How far a build is, from its files alone: also while it runs, and after the cluster is gone.

    \b
    Examples:
      maskmill status masks/
      maskmill status s3://bucket/masks --remaining
    """
    from maskmill.pipeline.summary import summary

    for line in summary(build, remaining):
        click.echo(line)


@main.command()
@click.argument("build")
@click.option("--quick", is_flag=True, help="Skip hashing the files and walking the sources.")
def verify(build: str, quick: bool) -> None:
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
@click.argument("build")
@click.option("--checkpoint", metavar="FILE", help="Where the build's weights lie now. Default: where they were.")
@click.option("--set", "assignments", multiple=True, metavar="run.key=value", help="Change one key of run.")
@click.option("--device", metavar="D", help="cpu, cuda, cuda:1 ... Default: a GPU where there is one.")
@click.option("--engine", type=click.Choice(["ray", "local"]), default="ray", show_default=True)
@click.option("--quiet", is_flag=True, help="Say nothing on the way.")
def retry(
    build: str, checkpoint: str | None, assignments: tuple[str, ...], device: str | None, engine: str, quiet: bool
) -> None:
    """Do only the quarantined images again, and say what changed. The good rows stay as they are.

    \b
    Examples:
      maskmill retry masks/
      maskmill retry masks/ --set run.image_timeout_s=7200
    """
    from maskmill.config import parse_set
    from maskmill.pipeline import drive
    from maskmill.pipeline.retry import recipe_of
    from maskmill.storage.build import Build

    stop_resumable()
    tree = parse_set(assignments)
    if foreign := tree.keys() - {"run"}:
        raise UserError(f"--set {sorted(foreign)[0]}...: a build keeps its recipe; only run.* may be changed")
    check_device(device, here=engine == "local")
    made = Build(build)
    recipe = recipe_of(made, tree.get("run", {}), checkpoint)
    runner = drive.make_engine(engine, recipe.config.run, debugging())
    sys.exit(drive.retry(recipe, made.path, runner, device, quiet))


@main.command()
@click.argument("build")
@click.option("--dry-run", is_flag=True, help="Only name the files.")
def gc(build: str, dry_run: bool) -> None:
    """Remove files that no manifest names: what killed attempts left of units that were committed later.

    Files of units that are not committed yet are never touched: an attempt may be writing them.

    \b
    Example:
      maskmill gc masks/ --dry-run
    """
    from maskmill.pipeline import drive
    from maskmill.storage.build import Build

    found = drive.gc(Build(build).path, dry_run)
    for name in found:
        click.echo(name)
    click.echo(f"{len(found)} files {'would be removed' if dry_run else 'removed'}")


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
