"""`maskmill diff`."""

import click


@click.command()
@click.argument("build")
@click.argument("filter_a")
@click.argument("filter_b")
@click.option(
    "--images",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    metavar="N",
    help="Look at about N images; 0: at all.",
)
@click.option(
    "--examples",
    type=click.IntRange(0),
    default=6,
    show_default=True,
    metavar="N",
    help="Draw the N images that differ most.",
)
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
    # a filter of the build may have dots in its name
    names = [Path(n).stem if n.endswith((".yaml", ".yml")) else n for n in (filter_a, filter_b)]
    for line in work.lines(made, tally, (names[0], names[1])):
        click.echo(line)
    path = at(picture) if picture else made.path / f"diff-{names[0]}-{names[1]}.jpg"
    try:
        drawn = write_examples(made, tally, path) if tally.examples else 0
    except (OSError, UserError) as e:
        click.echo(f"{'picture':<24} none: {e}")
        return
    none = "none: no image differs" if examples else "none: --examples 0"
    click.echo(f"{'picture':<24} {path if drawn else none}")
