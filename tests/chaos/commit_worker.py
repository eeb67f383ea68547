"""A fork server for crash tests: one warm process that has imported everything, and children that do one thing and die.

Importing torch costs seconds, a fork milliseconds. `python -m tests.chaos.commit_worker FD` is started by `ForkServer`.
A child runs the product's own code. Only the calls of the standard library that change a disk are wrapped: before and
after each the child notes where it is, waits a little, and dies if it is told to.
"""

import logging
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from upath import UPath

from maskmill.pipeline.unit import Job, Task

WON, LOST, FAILED, ALREADY = 0, 10, 11, 12  # exit codes of a child that lived


@dataclass(frozen=True)
class Errand:
    """What a child is to do."""

    what: str  # begin, unit, close
    source: str
    out: str
    job: Job | None = None
    task: Task | None = None
    trail: str | None = None  # a file of its own: where it is, one line before and one after each call
    seed: int = 0
    pause: float = 0.0  # seconds that it waits at most at each of these lines
    crash_at: int | None = None  # SIGKILL itself at this line


class ForkServer:
    """The test's end."""

    def __enter__(self) -> "ForkServer":
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tests.chaos.commit_worker", str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        self.link = Connection(ours.detach())
        assert self.link.recv() == "ready"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.link.close()
        self.process.wait(30)

    def fork(self, errand: Errand) -> int:
        """The pid of a child. It stays a zombie until `ended` has told of it, so no other process takes its pid."""
        self.link.send(("fork", errand))
        pid: int = self.link.recv()
        return pid

    def ended(self, pid: int, wait: bool = True) -> int | None:
        """Its exit code, or the signal that killed it as a negative number; None if it still lives. Ask as often as
        you like."""
        self.link.send(("wait", (pid, wait)))
        code: int | None = self.link.recv()
        return code


class Steps:
    """Wraps the calls that change a disk."""

    def __init__(self, errand: Errand) -> None:
        self.errand, self.count = errand, 0
        self.random = random.Random(errand.seed)
        self.trail = None if errand.trail is None else os.open(errand.trail, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.sync = os.fsync
        for holder, name in ((os, "fsync"), (os, "link"), (pathlib.Path, "rename"), (pathlib.Path, "unlink")):
            setattr(holder, name, self.around(name, getattr(holder, name)))

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            self.at(f"before {name}")
            result = call(*args, **kwargs)
            self.at(f"after {name}")
            return result

        return stepped

    def at(self, where: str) -> None:
        if self.trail is not None:
            os.write(self.trail, f"{where}\n".encode())
        if self.count == self.errand.crash_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        time.sleep(self.random.uniform(0, self.errand.pause))


def do(errand: Errand) -> int:
    """The errand itself, by the product's own code."""
    from maskmill.pipeline.generate import close_build, open_build
    from maskmill.pipeline.worker import Worker
    from tests.chaos.builds import recipe
    from tests.chaos.fake import FakeSegmenter

    if errand.what == "begin":
        open_build(recipe(errand.source), errand.out, append=False)
        return WON
    if errand.what == "close":
        return WON if close_build(errand.out) == "closed" else FAILED
    assert errand.job is not None and errand.task is not None
    worker = Worker(errand.job, FakeSegmenter(errand.job))
    begun: list[str] = []
    receipt = worker.run(errand.task, lambda key, *more: begun.append(key))
    if receipt.error is not None:
        return FAILED
    return WON if receipt.images else LOST if begun else ALREADY


def child(errand: Errand) -> None:
    """Never returns."""
    code = FAILED
    try:
        logging.disable(logging.CRITICAL)
        Steps(errand)
        code = do(errand)
    except BaseException as e:
        print(f"{errand.what}: {e!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def warm() -> None:
    """What pyarrow and Pillow import at their first use, above all pandas; and the product's code."""
    import pandas  # noqa: F401
    from PIL import Image

    import maskmill.pipeline.worker  # noqa: F401
    import tests.chaos.builds
    import tests.chaos.fake  # noqa: F401

    Image.init()
    UPath("/")


def main() -> None:
    warm()
    link = Connection(int(sys.argv[1]))
    link.send("ready")
    living: set[int] = set()
    codes: dict[int, int] = {}
    try:
        while True:
            what, given = link.recv()
            if what == "fork":
                if (pid := os.fork()) == 0:
                    child(given)
                living.add(pid)
                codes.pop(pid, None)
                link.send(pid)
            else:
                child_pid, wait = given
                if child_pid not in codes:
                    pid, status = os.waitpid(child_pid, 0 if wait else os.WNOHANG)
                    if pid:
                        living.discard(pid)
                        codes[pid] = os.waitstatus_to_exitcode(status)
                link.send(codes.get(child_pid))
    except (EOFError, ConnectionResetError):
        for pid in living:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
