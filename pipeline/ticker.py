"""Progress of work that this process does itself: a live bar on a terminal, a plain line every few seconds in a log."""

import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from maskmill.pipeline.progress import EVERY, clock


class Ticker:
    """Counts up to `total` things called `what`. `add` may be called from any thread."""

    def __init__(self, what: str, total: int, quiet: bool) -> None:
        self.what, self.total, self.quiet = what, total, quiet
        self.done, self.begun, self.shown = 0, time.monotonic(), time.monotonic()
        self.lock = threading.Lock()
        self.bar: Progress | None = None

    def __enter__(self) -> "Ticker":
        if sys.stderr.isatty() and not self.quiet:
            columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
            self.bar.add_task(self.text(), total=self.total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def add(self, count: int = 1) -> None:
        """So many more are done."""
        with self.lock:
            self.done += count
            if self.bar is not None:
                self.bar.update(self.bar.task_ids[0], completed=self.done, description=self.text())
            elif not self.quiet and time.monotonic() - self.shown >= EVERY:
                self.shown = time.monotonic()
                print(f"[{clock(self.shown - self.begun)}] {self.text()}", file=sys.stderr, flush=True)

    def text(self) -> str:
        """`120/4000 images  31.2 images/s  ETA 0:02:04`."""
        rate = self.done / max(time.monotonic() - self.begun, 1e-9)
        left = clock((self.total - self.done) / rate) if rate > 0 else "?"
        return f"{self.done}/{self.total} {self.what}  {rate:.1f} {self.what}/s  ETA {left}"
