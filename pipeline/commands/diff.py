"""`maskmill diff`."""

import click


@click.command()
@click.argument("build")
@click.argument("filter_a")
@click.argument("filter_b")
@click.option("--images", default=1000, show_default=True, metavar="N", help="Look at about N images; 0: at all.")
@click.option("--examples", default=6, show_default=True, metavar="N", help="Draw the N images that differ most.")
@click.option("--picture", metavar="FILE", help="Where they are drawn. Default: BUILD/diff-A-B.jpg.")
@click.option("--quiet", is_flag=True, help="No progress.")
def diff(
    build: str, filter_a: str, filter_b: str, images: int, examples: int, picture: str | None, quiet: bool
) -> None:
    """What FILTER_B drops of FILTER_A's masks, what it adds, which rules are why, and how large they are.

    A filter is one that the build has, or one that it could have: a YAML file, or a name of those that come with
    maskmill. Both are worked out from the stored candidates, so nothing need be made first.

    \b
    Examples:
      maskmill diff masks/ default strict
      maskmill diff masks/ default my-thresholds.yaml --images 0
    """
    from pathlib import Path

    from maskmill.errors import UserError
    from maskmill.pipeline.filtering import diff as work
    from maskmill.pipeline.filtering.diff_pictures import write_examples
    from maskmill.storage.build import Build
    from maskmill.storage.files import at

    made = Build(build)
    a, b = (work.filter_called(made, name) for name in (filter_a, filter_b))
    tally = work.diff(made, a, b, images, examples, quiet)
    for line in work.lines(made, tally, (Path(filter_a).stem, Path(filter_b).stem)):
        click.echo(line)
    path = at(picture) if picture else made.path / f"diff-{Path(filter_a).stem}-{Path(filter_b).stem}.jpg"
    try:
        drawn = write_examples(made, tally, path) if tally.examples else 0
    except (OSError, UserError) as e:
        click.echo(f"{'picture':<24} none: {e}")
        return
    click.echo(f"{'picture':<24} {path if drawn else 'none: no image differs'}")
