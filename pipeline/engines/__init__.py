"""Engines: each takes pending units and yields receipts. Nothing else is asked of one."""

from collections.abc import Iterator
from typing import Protocol

from maskmill.pipeline.plan import Unit
from maskmill.pipeline.unit import Job, Receipt


class Engine(Protocol):
    """Runs units somewhere."""

    def run(self, job: Job, units: list[Unit]) -> Iterator[Receipt]:
        """Receipts as units end, in any order. A unit without a receipt is still pending."""
        ...
