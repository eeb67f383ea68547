"""`maskmill import`."""

import sys
from typing import TYPE_CHECKING

import click

from maskmill.errors import UserError
from maskmill.pipeline.commands.common import debugging, stop_resumable

if TYPE_CHECKING:
    from maskmill.pipeline.exchange.importing import Ids


@click.command("import")
@click.argument("source", metavar="SRC")
@click.option("--out", required=True, metavar="BUILD", help="The folder to write: local, s3:// or gs://.")
@click.option(
    "--format",
    "format_",
    required=True,
    type=click.Choice(["sa1b", "coco"]),
    help="sa1b: a folder of images with a .json beside each, or tars of both. coco: an instances .json, or its folder.",
)
@click.option("--images", metavar="FOLDER", help="coco: the folder of the images. Default: where COCO sets have it.")
@click.option(
    "--ids",
    type=click.Choice(["keep", "hash"]),
    default="keep",
    show_default=True,
    help="Image ids: the source's, or numbers made of the images' names where the source's are not unique.",
)
@click.option("--no-candidates", is_flag=True, help="Store the masks only: half the size, but no later filter rerun.")
@click.option("--append", is_flag=True, help="sa1b: include images that are new since the import was begun.")
@click.option("--set", "assignments", multiple=True, metavar="key=value", help="run.* or generate.max_image_mpx.")
@click.option("--engine", type=click.Choice(["ray", "local"]), default="local", show_default=True)
@click.option("--quiet", is_flag=True, help="No progress, no summary.")
def imports(
    source: str,
    out: str,
    format_: str,
    images: str | None,
    ids: "Ids",
    no_candidates: bool,
    append: bool,
    assignments: tuple[str, ...],
    engine: str,
    quiet: bool,
) -> None:
    """Masks that people or other tools made, into a BUILD like any other: for filters, reports and training.

    Ids, scores, prompts, categories and every other field are kept, the last ones in `meta`; boxes and areas are taken
    from the pixels. A mask that fits only the image as it is stored is turned with it as its EXIF says. An image that
    is missing, or whose annotations are broken, is quarantined alone. All masks are candidates too, so `maskmill
    filter` works; a mask without a score passes only a threshold that is off (0).

    \b
    Examples:
      maskmill import sa1b/ --out masks/ --format sa1b
      maskmill import 'sa_{000000..000009}.tar' --out masks/ --format sa1b --engine ray
      maskmill import annotations/instances_val2017.json --images val2017/ --out masks/ --format coco
    """
    from maskmill.config import parse_set, sections
    from maskmill.pipeline import drive
    from maskmill.pipeline.exchange import import_drive
    from maskmill.pipeline.exchange.importing import import_config, make_recipe
    from maskmill.storage import coco_source

    stop_resumable()
    for option, given, other in (("--images", images, "coco"), ("--append", append, "sa1b")):
        if given and format_ != other:
            raise UserError(f"{option} is for --format {other}: leave it out")
    run, max_mpx = import_config(sections(parse_set(assignments)))
    recipe = make_recipe(source, format_, ids, run, max_mpx, not no_candidates)
    runner = drive.make_engine(engine, run, debugging())
    if format_ == "sa1b":
        sys.exit(import_drive.import_sa1b(recipe, out, runner, append, quiet))
    json_url = coco_source.find_json(source)
    sys.exit(import_drive.import_coco(recipe, json_url, images, out, runner, quiet))
