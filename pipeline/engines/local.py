"""The local engine: every unit in this process, one after another. For tests, debugging and laptops."""

from collections.abc import Iterator

from maskmill.pipeline.plan import Unit
from maskmill.pipeline.unit import Job, Receipt, Worker


class LocalEngine:
    """No Ray, no other process."""

    def run(self, job: Job, units: list[Unit]) -> Iterator[Receipt]:
        """Receipts in the order of `units`."""
        worker = Worker(job)
        for unit in units:
            yield worker.run(unit)
