"""The `maskmill` command. Exit codes: 0 done, 1 failed, 2 bad usage or input, 75 stopped early but resumable."""

import traceback
from typing import Any, NoReturn

import click

from maskmill import __version__
from maskmill.errors import UserError
from maskmill.pipeline.commands.common import BAD_INPUT, FAILED, RESUMABLE
from maskmill.pipeline.commands.diff import diff
from maskmill.pipeline.commands.engine import engine_command
from maskmill.pipeline.commands.evaluate import evaluate
from maskmill.pipeline.commands.export import export
from maskmill.pipeline.commands.filter import filter_command
from maskmill.pipeline.commands.gc import gc
from maskmill.pipeline.commands.generate import generate, plan
from maskmill.pipeline.commands.imports import imports
from maskmill.pipeline.commands.models import models
from maskmill.pipeline.commands.report import report
from maskmill.pipeline.commands.retry import retry
from maskmill.pipeline.commands.status import status
from maskmill.pipeline.commands.train import train
from maskmill.pipeline.commands.verify import verify
from maskmill.pipeline.commands.view import view


class Commands(click.Group):
    """Turns a UserError into one line, and anything unforeseen into one line that says how to see more."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except UserError as e:
            stop(ctx, e, BAD_INPUT, str(e))
        except KeyboardInterrupt as e:
            stop(ctx, e, RESUMABLE, "stopped; the same command continues where it stopped")
        except Exception as e:
            words = f"{type(e).__name__}: {' '.join(str(e).split())[:400]}"
            stop(ctx, e, FAILED, f"{words} (maskmill --debug {ctx.invoked_subcommand} shows where)")


def stop(ctx: click.Context, error: BaseException, code: int, words: str) -> NoReturn:
    """One line, or the whole traceback with --debug."""
    if ctx.params.get("debug"):
        traceback.print_exception(error)
    click.echo(f"maskmill: {words}", err=True)
    ctx.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="maskmill")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """An open data engine for segmentation masks: SAM over image sets, on Ray, into Parquet.

    \b
    Examples:
      maskmill generate photos/ --out masks/           masks for a folder of photos
      maskmill status masks/                           how far it is
      maskmill verify masks/                           check every promise of a finished build
      maskmill retry masks/                            do what was quarantined again
    """


COMMANDS = (
    generate, plan, status, verify, retry, filter_command, diff, gc, report, view, export, imports, train, evaluate,
    engine_command, models,
)  # fmt: skip
for command in COMMANDS:
    main.add_command(command)

if __name__ == "__main__":
    main()
