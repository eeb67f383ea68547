"""What several commands share: exit codes, options, signals."""

import re
import signal
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import click

from maskmill.errors import UserError

FAILED, BAD_INPUT, RESUMABLE = 1, 2, 75


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that decide what is made; `generate` and `plan` share them."""
    for option in reversed(
        (
            click.option("--model", metavar="NAME", help="A name that `maskmill models` lists. Default: nano."),
            click.option("--checkpoint", metavar="FILE", help="Weights: Meta's .pth as it is, or .safetensors."),
            click.option("--config", metavar="YAML", help="A config file, or a name: default, sa1b."),
            click.option("--filter", "filter_name", metavar="NAME|YAML", help="Thresholds: default, sa1b, or a file."),
            click.option("--set", "assignments", multiple=True, metavar="key=value", help="Change one config key."),
            click.option("--device", metavar="D", help="cpu, cuda; without Ray cuda:1 ... Default: a GPU if any."),
        )
    ):
        command = option(command)
    return command


def stop_resumable() -> None:
    """Before and after the run itself, which drains, a signal ends the command at once, as Ctrl-C does: with 75."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, interrupt)


def debugging() -> bool:
    """Whether --debug was given: the local engine then works in this process, where a debugger can follow it."""
    return bool(click.get_current_context().find_root().params.get("debug"))


def check_device(device: str | None, here: bool, name: str = "--device") -> None:
    """Refuse what is no device, one that is missing where the work runs `here`, and a numbered one where Ray's
    processes do it; `name`: of the option."""
    if device is None:
        return
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"{name} {device!r} is no device: expected cpu, cuda or cuda:N")
    if not here and ":" in device:
        raise UserError(
            f"{name} {device!r}: each of Ray's processes sees a GPU of its own as cuda: give cuda, or leave Ray out "
            f"(--engine local, --processes 1)"
        )
    if here and device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise UserError(f"{name} {device!r}: torch finds no CUDA GPU here; leave {name} out to use the CPU")
        have, number = torch.cuda.device_count(), int(device.partition(":")[2] or 0)
        if number >= have:
            raise UserError(f"{name} {device!r}: torch finds {have} CUDA GPUs here: the last one is cuda:{have - 1}")
