"""`generate` and `retry` as a user meets them: progress, words and exit codes around the run."""

from collections.abc import Callable
from dataclasses import replace

import click
from upath import UPath

from maskmill.config import RunConfig
from maskmill.errors import UserError
from maskmill.pipeline.attempts import read_attempts
from maskmill.pipeline.engines import Engine
from maskmill.pipeline.engines.local import LocalEngine
from maskmill.pipeline.filtering.refilter import filter_job, filter_tasks, lagging, masks_by
from maskmill.pipeline.generate import check_inputs, close_build, collect_orphans, follow, new_job, open_build, orphans
from maskmill.pipeline.plan import Unit, compare, read_plan
from maskmill.pipeline.preview import write_preview
from maskmill.pipeline.progress import ProgressReporter
from maskmill.pipeline.recipe import Recipe
from maskmill.pipeline.retry import changes, masks_of, quarantined_now, retry_tasks
from maskmill.pipeline.run import Outcome, run_tasks
from maskmill.pipeline.summary import summary
from maskmill.pipeline.unit import Job, Task
from maskmill.storage.build import Build
from maskmill.storage.files import exists, relative, remove
from maskmill.storage.sources import scan

DONE, FAILED, BAD_INPUT, RESUMABLE = 0, 1, 2, 75
Tell = Callable[[str], None]


def make_engine(name: str, run: RunConfig, inside: bool) -> Engine:
    """`ray` or `local`. Ray is imported only where it is used."""
    if name == "local":
        return LocalEngine(inside)
    from maskmill.pipeline.engines.ray import RayEngine

    return RayEngine(run)


def generate(recipe: Recipe, out: str, engine: Engine, device: str | None, append: bool, quiet: bool) -> int:
    """Plan, run, close, summarise. Returns the exit code."""
    tell = teller(quiet)
    opened = open_build(recipe, out, append)
    build = opened.build
    if not opened.pending:
        return go_over(build, len(opened.plan), recipe.config.run, engine, tell)
    job = new_job(recipe, build, device)
    tasks = beside_others(build, [Task(unit) for unit in opened.pending], tell)
    tell(f"{len(tasks)} of {len(opened.plan)} units to do, with {recipe.model_id}")
    with ProgressReporter(build, count_images(opened.plan), quiet):
        outcome = run_tasks(job, tasks, engine, tell)
    outcome = bring_along(outcome, build, recipe.config.run, engine, tell)
    code = finish(build, outcome)
    if not quiet:
        for line in summary(build):
            click.echo(line)
        if code == DONE:
            click.echo(f"{'picture':<11} {picture(build)}")
    return code


def go_over(build: UPath, units: int, run: RunConfig, engine: Engine, tell: Tell) -> int:
    """The rest of a build whose units are all committed, if the last run did not come to it. Returns the code."""
    code = finish(build, bring_along(Outcome(), build, run, engine, tell))
    if code == DONE and exists(build / "_SUCCESS"):
        click.echo(f"{build} is finished: {units} units; nothing to do")
    return code


def picture(build: UPath) -> str:
    """Where the preview is. A picture that cannot be drawn is no reason to fail."""
    try:
        return str(write_preview(build) or "none: no image has a mask")
    except (OSError, UserError) as e:
        return f"none: {e}"


def count_images(plan: list[Unit]) -> int | None:
    """Images of the plan; None if a shard is counted only as it is read."""
    counts = [unit.count for unit in plan]
    return None if None in counts else sum(count for count in counts if count is not None)


def teller(quiet: bool) -> Tell:
    """A line for the log."""
    return lambda words: None if quiet else click.echo(words, err=True)


def beside_others(build: UPath, tasks: list[Task], tell: Tell) -> list[Task]:
    """The tasks. Beside another driver from the other end, so that the two meet in the middle."""
    others = [t for t in read_attempts(build) if t.alive and t.ledger == tasks[0].ledger]
    if not others:
        return tasks
    hosts = ", ".join(sorted({t.host for t in others}))
    tell(
        f"another run is at work on {build}: {len(others)} units in work on {hosts}. Both may go on: "
        f"each unit is committed once, by whoever is first"
    )
    return tasks[::-1]


def bring_along(total: Outcome, build: UPath, run: RunConfig, engine: Engine, tell: Tell) -> Outcome:
    """Apply the later filters of a build to the units that were committed since, and say what that changed.

    `total`: of the run so far. If it is stopped with nothing left, what filters still have to do is left.
    """
    made = Build(build)
    if exists(build / "_SUCCESS") or (total.stopped and total.left):
        return total
    for name in made.later_filters:
        tasks = filter_tasks(made, name)
        if total.stopped:
            total += Outcome(left=tasks)
        if not tasks or total.stopped:
            continue
        before = masks_by(made, name, tasks)
        total += run_tasks(filter_job(made, name, run), tasks, engine, tell)
        tell(f"filter {name}: applied to {len(tasks)} units, {before} -> {masks_by(made, name, tasks)} masks in them")
    return total


def finish(build: UPath, outcome: Outcome) -> int:
    """Close the build if it is complete, else say what is left and how to go on."""
    if not outcome.left:
        closed = close_build(build)
        if closed == "others":
            click.echo(f"every unit is committed; another run is still at work on {build} and will close it", err=True)
        if closed == "incomplete":
            click.echo(f"other units of {build} are still to do: maskmill generate continues them", err=True)
        if closed == "filters":
            names = ", ".join(lagging(Build(build)))
            click.echo(f"not all units of {build} have masks by {names} yet: maskmill filter continues it", err=True)
        return DONE
    if outcome.stopped:
        units = {task.unit.unit for task in outcome.left}
        click.echo(f"maskmill: stopped; {len(units)} units are left; the same command continues", err=True)
        return RESUMABLE
    left = [task.unit.unit for task in outcome.left]
    for unit in [u for u in left if u in outcome.errors][:10]:
        click.echo(f"maskmill: unit {unit}: {outcome.errors[unit]}", err=True)
    click.echo(
        f"maskmill: {len(left)} units failed (first: {left[0]}); their traces are in {build / 'attempts'}; "
        f"the same command tries them again",
        err=True,
    )
    return FAILED


def retry(recipe: Recipe, build: UPath, engine: Engine, device: str | None, quiet: bool) -> int:
    """Do what is quarantined again, and say what changed. Returns the exit code."""
    tell = teller(quiet)
    plan, tasks = read_plan(build / "plan.parquet"), retry_tasks(build)
    before = quarantined_now(build)
    if not tasks:
        click.echo(f"{build}: nothing is quarantined; nothing to do")
        followed = bring_along(Outcome(), build, recipe.config.run, engine, click.echo)  # if the last retry was killed
        return finish(build, followed)
    images = scan(recipe.inputs)
    check_inputs(build, compare(plan, images), append=True)
    now = {unit.unit: unit for unit in follow(build, images)}
    tasks = [replace(t, unit=now[t.unit.unit]) for t in tasks]
    tell(f"{len(before)} quarantined images in {len(tasks)} units, with {recipe.model_id}")
    remove(build / "_SUCCESS")  # until the files of the old manifests are gone again
    job: Job = new_job(recipe, build, device)
    outcome = run_tasks(job, tasks, engine, tell)
    after = quarantined_now(build)
    found = changes(before, after)
    for c in found:
        click.echo(f"{c.shard} {c.key}: {'done' if c.after is None else c.after}, was {c.before}")
    good = sum(c.after is None for c in found)
    masks = masks_of(build, [task for task in tasks if task not in outcome.left], found)
    click.echo(f"{good} of {len(found)} are done now, with {masks} masks; {len(after)} stay quarantined")
    return finish(build, bring_along(outcome, build, recipe.config.run, engine, click.echo))


def gc(build: UPath, dry_run: bool) -> list[str]:
    """Remove what no manifest names, among the files of committed units. The names."""
    found = orphans(build) if dry_run else collect_orphans(build)
    return [relative(path, build) for path in found]
