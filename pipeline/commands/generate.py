"""`maskmill generate` and `maskmill plan`."""

import sys
from pathlib import Path

import click

from maskmill.pipeline.commands.common import check_device, debugging, recipe_options, stop_resumable


@click.command()
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
    from maskmill.pipeline.weights import weights_sha256

    stop_resumable()
    cfg = resolve(model, checkpoint, config, filter_name, assignments)
    sha256 = weights_sha256(cfg.model.name, cfg.model.checkpoint)
    check_device(device, here=engine == "local")
    recipe = Recipe(cfg, sha256, images, Path(filter_name or "default").stem, candidates=not no_candidates)
    sys.exit(drive.generate(recipe, out, drive.make_engine(engine, cfg.run, debugging()), device, append, quiet))


@click.command()
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
