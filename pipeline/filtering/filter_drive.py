"""`maskmill filter` as a user meets it: progress, words and exit codes around the run."""

import click

from maskmill.config import FilterConfig, RunConfig
from maskmill.pipeline.drive import DONE, beside_others, finish, teller
from maskmill.pipeline.engines import Engine
from maskmill.pipeline.filtering.refilter import begin_filter, filter_job, filter_tasks
from maskmill.pipeline.generate import close_build
from maskmill.pipeline.plan import read_plan
from maskmill.pipeline.progress import ProgressReporter
from maskmill.pipeline.run import run_tasks
from maskmill.storage.build import Build


def run_filter(build: Build, name: str, cfg: FilterConfig, run: RunConfig, engine: Engine, quiet: bool) -> int:
    """Masks of every committed unit by this filter, under this name. Returns the exit code."""
    tell, path = teller(quiet), build.path
    begin_filter(build, name, cfg)
    if name == build.own_filter:
        click.echo(f"{path}: {name!r} is the filter that it was built with; nothing to do")
        return DONE
    tasks, manifests = filter_tasks(build, name), build.manifests()
    if not tasks:
        close_build(path)  # if the last run was killed just before its end
        click.echo(f"filter {name!r} of {path} is finished: {len(manifests)} units; nothing to do")
        return DONE
    planned = len(read_plan(path / "plan.parquet"))
    if len(manifests) < planned:
        tell(
            f"{planned - len(manifests)} of {planned} units of {path} are not done yet: maskmill generate applies the "
            f"filter to them too when it does them"
        )
    tasks = beside_others(path, tasks, tell)
    tell(f"{len(tasks)} of {len(manifests)} units to filter")
    images, again = sum(m.images for m in manifests), {task.unit.unit for task in tasks}
    with ProgressReporter(path, images, quiet, tasks[0].ledger, again):
        outcome = run_tasks(filter_job(build, name, run), tasks, engine, tell)
    code = finish(path, outcome)
    if not quiet:
        own = sum(m.masks for m in manifests)
        masks = sum(m.masks for m in build.manifests(f"masks/{name}"))
        click.echo(f"{name:<11} {masks} masks ({masks / max(1, images):.1f} an image)")
        click.echo(f"{build.own_filter:<11} {own} masks ({own / max(1, images):.1f} an image)")
        if not masks and own and build.imported:
            click.echo("imported masks without scores pass only thresholds that are off (0): docs/exchange.md")
    return code
