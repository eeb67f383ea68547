"""The local engine: one unit after another on this machine, without Ray. For laptops, tests and debugging."""

from collections.abc import Iterator

from maskmill.pipeline.supervisor import Supervisor
from maskmill.pipeline.unit import Job, Receipt, Task, make_worker


class LocalEngine:
    """One worker process; with `inside`, the work is done in this process, where a debugger can follow it."""

    def __init__(self, inside: bool = False) -> None:
        self.inside = inside

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, job: Job, tasks: list[Task]) -> Iterator[Receipt]:
        """Receipts in the order of `tasks`."""
        if self.inside:
            yield from run_inside(job, tasks)
            return
        supervisor = Supervisor(job)
        try:
            for task in tasks:
                yield supervisor.run(task)
        finally:
            supervisor.close()


def run_inside(job: Job, tasks: list[Task]) -> Iterator[Receipt]:
    """No other process: an image that crashes ends everything."""
    worker = make_worker(job)
    for task in tasks:
        yield worker.run(task, lambda *where: None)
