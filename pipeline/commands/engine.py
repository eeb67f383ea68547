"""`maskmill engine`: the three stages as one run."""

from pathlib import Path

import click

from maskmill.pipeline.commands.common import RESUMABLE, debugging, stop_resumable


@click.group("engine")
def engine_command() -> None:
    """The data engine: annotators and model work together, the model is retrained, in the end it labels alone."""


@engine_command.command()
@click.argument("config")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where the run lives.")
@click.option("--engine", type=click.Choice(["ray", "local"]), default="ray", show_default=True)
@click.option("--quiet", is_flag=True, help="No progress.")
def run(config: str, out: Path, engine: str, quiet: bool) -> None:
    """Run the rounds of CONFIG (a YAML file, or a name in configs/engine), or continue them.

    The same command continues where it stopped, after any kill; a finished run is left as it is.

    \b
    Examples:
      maskmill engine run demo --out engine-demo/
      maskmill engine run configs/engine/nuclei.yaml --out nuclei-run/
    """
    from maskmill.pipeline.drive import make_engine, teller
    from maskmill.pipeline.rounds.config import read_engine_config
    from maskmill.pipeline.rounds.run import DataEngine
    from maskmill.pipeline.rounds.steps import Stopped
    from maskmill.pipeline.rounds.table import table

    stop_resumable()
    cfg = read_engine_config(config)
    try:
        DataEngine(cfg, out, make_engine(engine, cfg.run, debugging()), teller(quiet)).run()
    except Stopped:
        click.echo("maskmill: stopped; the same command continues", err=True)
        click.get_current_context().exit(RESUMABLE)
    for line in table(out):
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
