"""Progress of a running build: a live bar on a terminal, a plain line every few seconds in a log."""

import sys
import threading
import time
from collections.abc import Collection
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from upath import UPath

from maskmill.pipeline.status import Counter
from maskmill.storage.files import is_local

EVERY = 5.0  # seconds between lines of a log
LOOK_LOCAL, LOOK_REMOTE = 2.0, 15.0  # seconds between looks at the files; in an object store each lists the ledger


class ProgressReporter:
    """Watches the build's files from a thread, so every engine shows the same."""

    def __init__(
        self,
        build: UPath,
        total: int | None,
        quiet: bool = False,
        ledger: str = "images",
        again: Collection[str] = (),
    ) -> None:
        self.counter = Counter(build, ledger, again)
        self.look = LOOK_LOCAL if is_local(build) else LOOK_REMOTE
        self.total = total
        self.quiet = quiet
        self.begun = time.monotonic()
        self.before = 0 if quiet else self.counter.look()[0]
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.bar if sys.stderr.isatty() else self.lines, daemon=True)

    def __enter__(self) -> "ProgressReporter":
        if not self.quiet:
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop.set()
        if self.thread.is_alive():
            self.thread.join(timeout=5)

    def text(self) -> tuple[int, str]:
        """(images done, `12/100 images  3.1 images/s  510 masks  1 quarantined  ETA 0:28`)."""
        images, masks, quarantined = self.counter.look()
        rate = (images - self.before) / max(time.monotonic() - self.begun, 1e-9)
        left = "?" if self.total is None or rate <= 0 else clock((self.total - images) / rate)
        of = "" if self.total is None else f"/{self.total}"
        return images, (
            f"{images}{of} images  {rate:.2f} images/s  {masks} masks  {quarantined} quarantined  ETA {left}"
        )

    def try_text(self) -> tuple[int, str] | None:
        """None while the storage does not answer: the run itself reports that, if it lasts."""
        try:
            return self.text()
        except OSError:
            return None

    def lines(self) -> None:
        """For logs: a line every few seconds while something happens, fewer while one slow image is at work."""
        shown, last = -1, 0.0
        while not self.stop.wait(max(EVERY, self.look)):
            if (look := self.try_text()) is None:
                continue
            images, text = look
            now = time.monotonic() - self.begun
            if images != shown or now - last >= 6 * EVERY:
                shown, last = images, now
                print(f"[{clock(now)}] {text}", file=sys.stderr, flush=True)

    def bar(self) -> None:
        """For terminals."""
        columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("starting", total=self.total)
            while not self.stop.wait(self.look):
                if (look := self.try_text()) is None:
                    continue
                images, text = look
                progress.update(task, completed=images, description=text)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    s = round(seconds)
    return f"{s // 3600}:{s // 60 % 60:02d}:{s % 60:02d}"
