"""`maskmill verify`."""

import sys

import click

from maskmill.pipeline.commands.common import FAILED


@click.command()
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
