"""`maskmill retry`."""

import sys

import click

from maskmill.errors import UserError
from maskmill.pipeline.commands.common import check_device, debugging, stop_resumable


@click.command()
@click.argument("build")
@click.option("--checkpoint", metavar="FILE", help="Where the build's weights lie now. Default: where they were.")
@click.option("--images", metavar="IMAGES", help="Where the images lie now. Default: where they were.")
@click.option("--set", "assignments", multiple=True, metavar="run.key=value", help="Change one key of run.")
@click.option("--device", metavar="D", help="cpu, cuda; without Ray cuda:1 ... Default: a GPU if any.")
@click.option("--engine", type=click.Choice(["ray", "local"]), default="ray", show_default=True)
@click.option("--quiet", is_flag=True, help="Say nothing on the way.")
def retry(
    build: str,
    checkpoint: str | None,
    images: str | None,
    assignments: tuple[str, ...],
    device: str | None,
    engine: str,
    quiet: bool,
) -> None:
    """Do only the quarantined images again, and say what changed. The good rows stay as they are.

    \b
    Examples:
      maskmill retry masks/
      maskmill retry masks/ --set run.image_timeout_s=7200
    """
    from maskmill.config import parse_set, sections
    from maskmill.pipeline import drive
    from maskmill.pipeline.retry import recipe_of
    from maskmill.storage.build import Build

    stop_resumable()
    tree = sections(parse_set(assignments))
    if foreign := tree.keys() - {"run"}:
        raise UserError(f"--set {sorted(foreign)[0]}...: a build keeps its recipe; only run.* may be changed")
    check_device(device, here=engine == "local")
    made = Build(build)
    recipe = recipe_of(made, tree.get("run", {}), checkpoint, images)
    runner = drive.make_engine(engine, recipe.config.run, debugging())
    sys.exit(drive.retry(recipe, made.path, runner, device, quiet))
