"""`maskmill status`."""

import click


@click.command()
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
