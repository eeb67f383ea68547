"""Prometheus metrics of a Ray run, on the port where Ray exports its own (deploy/grafana shows them).

Ray opens that port only with its dashboard's packages: pip install 'maskmill[metrics]'.
"""

from ray.util.metrics import Counter, Gauge

from maskmill.pipeline.unit import Receipt


class Metrics:
    """What one actor has done."""

    def __init__(self) -> None:
        self.images = Counter("maskmill_images_total", "Images in committed units.", ("status",))
        self.masks = Counter("maskmill_masks_total", "Masks in committed units.")
        self.seconds = Counter("maskmill_step_seconds_total", "Time of worker processes by step.", ("step",))
        self.deaths = Counter("maskmill_worker_deaths_total", "Worker processes that crashed, hung or were killed.")
        self.failures = Counter("maskmill_unit_failures_total", "Units that could not be done as a whole.")

    def count(self, receipt: Receipt) -> None:
        """Add one receipt."""
        ok = receipt.images - receipt.empty - receipt.quarantined
        for status, number in (("ok", ok), ("empty", receipt.empty), ("quarantined", receipt.quarantined)):
            add(self.images, number, {"status": status})
        add(self.masks, receipt.masks)
        for step, seconds in receipt.steps.items():
            add(self.seconds, seconds, {"step": step})
        add(self.deaths, receipt.deaths)
        add(self.failures, int(receipt.error is not None))


def add(counter: Counter, number: float, tags: dict[str, str] | None = None) -> None:
    """Ray's counters refuse 0."""
    if number > 0:
        counter.inc(number, tags or {})


class UnitGauge:
    """Units of a run by state, from the driver."""

    def __init__(self) -> None:
        self.units = Gauge("maskmill_units", "Units of this run by state.", ("state",))

    def set(self, done: int, pending: int, failed: int) -> None:
        """The counts now."""
        for state, number in (("done", done), ("pending", pending), ("failed", failed)):
            self.units.set(number, {"state": state})
