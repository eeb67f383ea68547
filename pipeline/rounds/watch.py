"""A run while it works: alone in its folder, how far each step is, what it took, and how it is asked to stop."""

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import click

from maskmill.errors import UserError
from maskmill.pipeline.progress import clock
from maskmill.pipeline.run import STOPS
from maskmill.storage.files import at, to_json, write_bytes

EVERY = 10.0  # seconds between lines of a log
LOCK_S = 10.0  # what a killed run has started may hold its lock for a moment longer
At = Callable[[int, int], None]  # hears how much of how much is done; raises Stopped


class Stopped(Exception):
    """The run was asked to stop; the same command continues."""


class Failed(Exception):
    """The run cannot go on, in one line; the same command tries again."""


class Watch:
    """Of one run. `quiet`: no lines."""

    def __init__(self, out: Path, quiet: bool = False) -> None:
        self.out, self.quiet = out, quiet
        self.asked = False
        self.impatient = False  # while others work who cannot be asked: a signal ends it at once
        self.live = sys.stderr.isatty()
        self.unfinished = False  # the line on the terminal

    def tell(self, words: str) -> None:
        """A line."""
        if self.unfinished:
            click.echo(err=True)
            self.unfinished = False
        if not self.quiet:
            click.echo(words, err=True)

    def check(self) -> None:
        """Between two pieces of work."""
        if self.asked:
            raise Stopped

    @contextmanager
    def alone(self) -> Iterator[None]:
        """UserError if another run is at work in this folder. The lock goes with the process, however that ends."""
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "engine.lock").open("w") as file:
            until = time.monotonic() + LOCK_S
            while not locked(file):
                if time.monotonic() > until:
                    raise UserError(f"another maskmill engine run is at work in {str(self.out)!r}: wait for it")
                time.sleep(0.1)
            yield

    @contextmanager
    def signals(self) -> Iterator[None]:
        """The first SIGTERM, SIGINT or SIGUSR1 ends the piece of work at hand; the second ends everything at once."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.asked or self.impatient:
                raise KeyboardInterrupt
            self.asked = True
            self.tell(f"{signal.Signals(number).name}: stopping after what is at hand (once more: stop at once)")

        old = {number: signal.signal(number, handle) for number in STOPS}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[At]:
        """A step of round `name`. Adds its times to the round's timing.json, apart from the record: no two runs agree
        on them. cpu_seconds: of this process and of those that it waited for, which Ray's are not."""
        self.check()
        self.tell(f"{name} {what}")
        begun, cpu = time.monotonic(), cpu_seconds()
        try:
            yield self.meter(f"{name} {what}")
        finally:
            spent = {"seconds": time.monotonic() - begun, "cpu_seconds": cpu_seconds() - cpu}
            path = self.out / "rounds" / name / "timing.json"
            known: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
            before = known.get(what, {})
            known[what] = {key: round(before.get(key, 0.0) + value, 2) for key, value in spent.items()}
            write_bytes(at(path), to_json(known))

    def meter(self, label: str) -> At:
        """`assisted-1 train  12/100  ETA 0:00:40`: rewritten on a terminal, lines in a log."""
        last = time.monotonic()
        first: tuple[int, float] | None = None

        def say(done: int, of: int) -> None:
            nonlocal first, last
            self.check()
            now = time.monotonic()
            first = first or (done, now)
            if self.quiet or now - last < (0.2 if self.live else EVERY):
                return
            last = now
            before, begun = first
            left = clock((now - begun) / (done - before) * (of - done)) if done > before else "?"
            words = f"{label}  {done}/{of}  ETA {left}"
            click.echo(f"\r{words}   " if self.live else words, err=True, nl=not self.live)
            self.unfinished = self.live

        return say


def locked(file: IO[str]) -> bool:
    """Whether the lock on an open file is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    return sum(os.times()[:4])
