"""`maskmill report`."""

import itertools
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from maskmill.report.facts import Standing
    from maskmill.storage.build import Build

LISTED = 200  # quarantined images that are named


@click.command()
@click.argument("build")
@click.option("--filter", "filter_name", metavar="NAME", help="Whose masks. Default: the build's own filter.")
@click.option("--out", metavar="FILE", help="Where to. Default: BUILD/report.html, or BUILD/report-NAME.html.")
@click.option("--images", metavar="IMAGES", help="Where the images lie now. Default: where they were.")
@click.option("--quiet", is_flag=True, help="Say nothing on the way.")
def report(build: str, filter_name: str | None, out: str | None, images: str | None, quiet: bool) -> None:
    """One HTML page on a build: figures of the paper, scores, thresholds, suspicious masks, a gallery.

    It needs no network and nothing beside itself. Of a large build a sample is read; the page says so. Of an unfinished
    one it shows the committed units.

    \b
    Examples:
      maskmill report masks/
      maskmill report masks/ --filter strict --out strict.html
    """
    from maskmill.report.facts import read_facts
    from maskmill.report.page import make_page
    from maskmill.report.sample import parts_of
    from maskmill.storage.build import Build
    from maskmill.storage.files import at, write_bytes

    def say(words: str) -> None:
        if not quiet:
            click.echo(f"report: {words}", err=True)

    made = Build(build)
    name = filter_name or made.own_filter
    say("reading")
    page = make_page(read_facts(made, name, parts_of(made, name), standing(made), images), say)
    path = at(out) if out else made.path / ("report.html" if name == made.own_filter else f"report-{name}.html")
    write_bytes(path, page.encode())
    click.echo(str(path))


def standing(build: "Build") -> "Standing":
    """How far the build is."""
    from maskmill.pipeline.status import quarantine, read_status
    from maskmill.report.facts import Standing

    s = read_status(build.path)
    return Standing(
        finished=not s.left,
        units=s.units,
        units_done=s.units_done,
        images=s.images,
        images_done=s.images_done,
        empty=s.empty,
        quarantined=s.quarantined,
        candidates=s.candidates,
        quarantine=tuple(itertools.islice(quarantine(build.path), LISTED)),
    )
