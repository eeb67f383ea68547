"""`maskmill import` as a user meets it: progress, words and exit codes around the work."""

import click
from upath import UPath

from maskmill.pipeline import drive
from maskmill.pipeline.engines import Engine
from maskmill.pipeline.exchange.importing import (
    ImportRecipe,
    check_ids,
    import_job,
    open_coco_import,
    open_sa1b_import,
)
from maskmill.pipeline.generate import Opened
from maskmill.pipeline.progress import ProgressReporter
from maskmill.pipeline.run import run_tasks
from maskmill.pipeline.summary import summary
from maskmill.pipeline.unit import Task
from maskmill.storage.files import at


def import_sa1b(recipe: ImportRecipe, out: str, engine: Engine, append: bool, quiet: bool) -> int:
    """Begin, continue or leave an import of SA-1B files. Returns the exit code."""
    opened = open_sa1b_import(recipe, at(out), append, drive.teller(quiet))
    return run_import(recipe, opened, engine, quiet)


def import_coco(recipe: ImportRecipe, json_url: str, images: str | None, out: str, engine: Engine, quiet: bool) -> int:
    """Begin, continue or leave an import of a COCO file. Returns the exit code."""
    opened, recipe = open_coco_import(recipe, json_url, images, at(out))
    return run_import(recipe, opened, engine, quiet)


def run_import(recipe: ImportRecipe, opened: Opened, engine: Engine, quiet: bool) -> int:
    """Do what is pending, close, summarise."""
    build, tell = opened.build, drive.teller(quiet)
    if not opened.pending:
        check_ids(build)
        return drive.go_over(build, len(opened.plan), recipe.config.run, engine, tell)
    tasks = drive.beside_others(build, [Task(unit) for unit in opened.pending], tell)
    tell(f"{len(tasks)} of {len(opened.plan)} units to do, from {recipe.format} in {recipe.inputs}")
    with ProgressReporter(build, drive.count_images(opened.plan), quiet):
        outcome = run_tasks(import_job(recipe, build), tasks, engine, tell)
    if not outcome.left:
        check_ids(build)
    code = drive.finish(build, drive.bring_along(outcome, build, recipe.config.run, engine, tell))
    if not quiet:
        say(build, code)
    return code


def say(build: UPath, code: int) -> None:
    """The build on one screen, and a picture."""
    for line in summary(build):
        click.echo(line)
    if code == drive.DONE:
        click.echo(f"{'picture':<11} {drive.picture(build)}")
