"""`maskmill filter`."""

import sys

import click

from maskmill.errors import UserError
from maskmill.pipeline.commands.common import debugging, stop_resumable


@click.command("filter")
@click.argument("build")
@click.option("--name", required=True, metavar="NAME", help="What the masks are stored under: masks/NAME.")
@click.option("--filter", "given", metavar="NAME|YAML", help="Settings to begin with. Default: the build's own filter.")
@click.option("--set", "assignments", multiple=True, metavar="key=value", help="Change one key of filter or run.")
@click.option("--engine", type=click.Choice(["ray", "local"]), default="ray", show_default=True)
@click.option("--quiet", is_flag=True, help="No progress, no summary.")
def filter_command(
    build: str, name: str, given: str | None, assignments: tuple[str, ...], engine: str, quiet: bool
) -> None:
    """Other masks from the stored candidates of BUILD: no model, no GPU, no images.

    The rows are those that a fresh build with this filter would have; thresholds below the build's floor are refused.
    The same command again continues, or leaves a finished filter as it is. A filter belongs to its build: generate and
    retry apply it to whatever they add.

    \b
    Examples:
      maskmill filter masks/ --name strict --set filter.pred_iou_thresh=0.92
      maskmill filter masks/ --name labels --set filter.shared_pixels=smallest --set filter.min_area=100
      maskmill filter s3://bucket/masks --name sa1b --filter sa1b --set run.actors=32
    """
    from maskmill.config import parse_set, sections
    from maskmill.pipeline.drive import make_engine
    from maskmill.pipeline.filtering.filter_drive import run_filter
    from maskmill.pipeline.filtering.refilter import run_config, settings
    from maskmill.storage.build import Build

    stop_resumable()
    tree = sections(parse_set(assignments))
    if foreign := tree.keys() - {"filter", "run"}:
        raise UserError(
            f"--set {sorted(foreign)[0]}...: candidates stay as they are; only filter.* and run.* can be set"
        )
    made = Build(build)
    cfg, run = settings(made, name, given, tree.get("filter", {})), run_config(made, tree.get("run", {}))
    sys.exit(run_filter(made, name, cfg, run, make_engine(engine, run, debugging()), quiet))
