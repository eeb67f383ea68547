"""`maskmill gc`."""

import click


@click.command()
@click.argument("build")
@click.option("--dry-run", is_flag=True, help="Only name the files.")
def gc(build: str, dry_run: bool) -> None:
    """Remove files that no manifest names: what killed attempts left of units that were committed later.

    Files of units that are not committed yet are never touched: an attempt may be writing them.

    \b
    Example:
      maskmill gc masks/ --dry-run
    """
    from maskmill.pipeline import drive
    from maskmill.storage.build import Build

    found = drive.gc(Build(build).path, dry_run)
    for name in found:
        click.echo(name)
    click.echo(f"{len(found)} files {'would be removed' if dry_run else 'removed'}")
