"""`maskmill engine`: the three stages as one run."""

from pathlib import Path

import click

from maskmill.errors import UserError
from maskmill.pipeline.commands.common import FAILED, RESUMABLE, debugging, stop_resumable


@click.group("engine")
def engine_command() -> None:
    """The data engine: annotators and model work together, the model is retrained, in the end it labels alone.

    \b
    Examples:
      maskmill engine run demo --out engine-demo/      draws its own pictures; the same command continues it
      maskmill engine status engine-demo/              the table of rounds
      maskmill engine report engine-demo/              the page: table, curves, pictures
    """


@engine_command.command()
@click.argument("config")
@click.option("--out", required=True, metavar="DIR", help="Where the run lives: a folder of this machine.")
@click.option("--set", "assignments", multiple=True, metavar="key=value", help="Change one key of CONFIG.")
@click.option("--engine", type=click.Choice(["ray", "local"]), default="ray", show_default=True)
@click.option("--dry-run", is_flag=True, help="Say what would be done: rounds, images, tasks.")
@click.option("--quiet", is_flag=True, help="No progress.")
def run(config: str, out: str, assignments: tuple[str, ...], engine: str, dry_run: bool, quiet: bool) -> None:
    """Run the rounds of CONFIG (a YAML file, or a name in configs/engine), or continue them.

    The same command continues where it stopped, after any kill, to the same records; a finished run is left as it is.
    SIGTERM, SIGUSR1 and Ctrl-C end it after what is at hand, with exit code 75.

    \b
    Examples:
      maskmill engine run demo --out engine-demo/
      maskmill engine run nuclei --out nuclei/ --set data.source='shards/*.tar' --dry-run
      maskmill engine run nuclei --out nuclei/ --set data.source='shards/*.tar'
      maskmill engine run nuclei --out frozen/ --set data.source='shards/*.tar' --set retrain=false
      maskmill engine run demo --out ungated/ --set gate.enabled=false --set train=finetune
    """
    from maskmill.pipeline.rounds.config import read_engine_config

    stop_resumable()
    if "://" in out:
        raise UserError(f"--out {out!r}: a run of the data engine lives in a folder of this machine, not in a store")
    cfg = read_engine_config(config, assignments)
    from maskmill.pipeline.drive import make_engine
    from maskmill.pipeline.rounds.run import DataEngine, plan_lines
    from maskmill.pipeline.rounds.table import table
    from maskmill.pipeline.rounds.watch import Failed, Stopped, Watch

    if dry_run:
        for line in plan_lines(cfg):
            click.echo(line)
        return
    try:
        data_engine = DataEngine(cfg, Path(out), make_engine(engine, cfg.run, debugging()), Watch(Path(out), quiet))
        if not data_engine.finished:
            with make_engine(engine, cfg.run, debugging()):  # one cluster for all rounds
                data_engine.run()
    except Failed as e:
        click.echo(f"maskmill: {e}", err=True)
        click.get_current_context().exit(FAILED)
    except Stopped:
        click.echo("maskmill: stopped; the same command continues", err=True)
        click.get_current_context().exit(RESUMABLE)
    for line in table(Path(out)):
        click.echo(line)


@engine_command.command()
@click.argument("run_folder", metavar="DIR", type=click.Path(path_type=Path))
def status(run_folder: Path) -> None:
    """The rounds of a run and what they measured, from its files alone.

    \b
    Example:
      maskmill engine status engine-demo/
    """
    from maskmill.pipeline.rounds.table import table

    for line in table(run_folder):
        click.echo(line)


@engine_command.command()
@click.argument("run_folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", metavar="FILE", help="Where to. Default: DIR/report.html; of several, runs.html in the first.")
@click.option("--quiet", is_flag=True, help="Say nothing on the way.")
def report(run_folders: tuple[Path, ...], out: str | None, quiet: bool) -> None:
    """One HTML page on a run: the table of rounds, curves, the automatic stage's quality, pictures.

    Of several runs (the same data with and without retraining, say) it shows all on the same axes, and in what their
    configs differ. It needs no network and nothing beside itself. An unfinished run shows the rounds that are over.

    \b
    Examples:
      maskmill engine report engine-demo/
      maskmill engine report nuclei/ nuclei-frozen/ nuclei-ungated/ --out ablations.html
    """
    from maskmill.pipeline.rounds.report import read_runs
    from maskmill.report.engine import make_page
    from maskmill.storage.files import at, write_bytes

    runs = read_runs(run_folders)
    page = make_page(runs, lambda words: None if quiet else click.echo(f"report: {words}", err=True))
    path = at(out) if out else at(run_folders[0]) / ("report.html" if len(runs) == 1 else "runs.html")
    write_bytes(path, page.encode())
    click.echo(str(path))
