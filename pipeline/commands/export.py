"""`maskmill export`."""

import sys
from typing import TYPE_CHECKING

import click

from maskmill.pipeline.commands.common import stop_resumable

if TYPE_CHECKING:
    from maskmill.storage.exports import Format


@click.command()
@click.argument("build")
@click.argument("dest")
@click.option(
    "--format",
    "format_",
    required=True,
    type=click.Choice(["sa1b", "sa1b-tar", "coco", "webdataset", "png"]),
    help="sa1b: a JSON beside each image. sa1b-tar: the same in tars. coco: one instances JSON, and the images. "
    "webdataset: tars with the JSON and a PNG of each mask. png: label maps, for filters without overlaps.",
)
@click.option("--filter", "filter_name", metavar="NAME", help="Whose masks. Default: the build's own filter.")
@click.option("--no-images", is_flag=True, help="Annotations only: images are named by their key and not copied.")
@click.option("--upright", is_flag=True, help="Write images that EXIF turns as upright PNGs; others stay as they are.")
@click.option("--images", metavar="IMAGES", help="Where the images lie now, if they were moved since the build.")
@click.option("--threads", type=click.IntRange(1), default=4, show_default=True, help="Units written at a time.")
@click.option("--quiet", is_flag=True, help="No progress, no summary.")
def export(
    build: str,
    dest: str,
    format_: "Format",
    filter_name: str | None,
    no_images: bool,
    upright: bool,
    images: str | None,
    threads: int,
    quiet: bool,
) -> None:
    """The masks of a finished BUILD for other tools, written to DEST: a new folder, local, s3:// or gs://.

    Images are copied as they are, byte by byte. Masks lie on the upright grid that viewers and cv2.imread show; a
    reader that ignores EXIF orientation needs --upright. index.csv says which file is which image. The same command
    again continues an export; DEST/_SUCCESS says that it is whole.

    \b
    Examples:
      maskmill export masks/ sa1b/ --format sa1b
      maskmill export masks/ coco/ --format coco --filter strict
      maskmill export masks/ coco/ --format coco --no-images      for images that lie in a folder already
      maskmill export masks/ s3://bucket/shards --format webdataset
    """
    from maskmill.pipeline.exchange.export_drive import run_export
    from maskmill.pipeline.exchange.export_plan import settings_for
    from maskmill.storage.build import Build

    stop_resumable()
    made = Build(build)
    settings = settings_for(made, format_, filter_name, not no_images, upright)
    sys.exit(run_export(made, dest, settings, images, threads, quiet))
