"""Engines: each takes tasks and yields receipts. Nothing else is asked of one."""

from collections.abc import Iterator
from typing import Protocol, Self

from maskmill.pipeline.unit import Job, Receipt, Task


class Engine(Protocol):
    """Runs tasks somewhere. Entered once, then asked to run as often as needed."""

    def __enter__(self) -> Self:
        """Get hold of the machines."""
        ...

    def __exit__(self, *_: object) -> None:
        """Let them go."""
        ...

    def run(self, job: Job, tasks: list[Task]) -> Iterator[Receipt]:
        """Receipts as tasks end, in any order. A task without a receipt is still to do."""
        ...
