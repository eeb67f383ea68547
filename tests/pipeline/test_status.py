"""What `status` says of a build, from files made by hand."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from maskmill.pipeline.attempts import RUNNING, Attempt, Trace
from maskmill.pipeline.status import RECENT, read_status, recent_rate
from maskmill.storage.files import at
from maskmill.storage.ledger import Manifest
from tests.chaos.builds import images, job_for
from tests.pipeline.test_cli import run


def manifest(end: float, seconds: float, images: int) -> Manifest:
    """Of a unit that was committed at second `end` of the epoch."""
    finished = datetime.fromtimestamp(end, UTC).isoformat(timespec="seconds")
    return Manifest("u", "", {}, images, 0, 0, 0, 0, "", seconds, "", finished)


@pytest.mark.parametrize(
    ("ends", "seconds", "images", "rate"),
    [
        ([], 1, 1, 0.0),
        ([100], 0, 5, 5.0),  # within one second
        ([100, 110, 120], 10, 20, 2.0),
        ([100, 100, 110, 110], 10, 20, 4.0),  # two actors
        ([100, 5000, 5010], 10, 20, 2.0),  # the first is long past
        ([3600, 7200, 10800], 3600, 7200, 2.0),  # of a unit that lasts an hour only a quarter of it counts
        ([1200, 2400, 3600, 1800, 3000], 1200, 600, 600 / 900),  # 900 of 1200 s of one, 300 of 1200 s of another
    ],
)
def test_the_rate_counts_of_a_unit_what_lies_in_the_window(
    ends: Sequence[float], seconds: float, images: int, rate: float
) -> None:
    assert RECENT == 900
    assert recent_rate([manifest(1e9 + end, seconds, images) for end in ends]) == pytest.approx(rate)


def trace(begun: float, updated: float, images: int) -> Trace:
    return Trace("u", "a", RUNNING, "run", "host", 1, 1e9 + begun, 1e9 + updated, 1.0, images)


@pytest.mark.parametrize(
    ("ends", "running", "rate"),
    [
        ([], [trace(0, 100, 50)], 0.5),  # nothing is committed yet
        ([3000, 3600], [trace(3000, 3600, 300)], 1.0),  # two actors on units of 1200 s, half a unit apart
        ([100], [trace(9000, 10000, 500)], 0.5),  # 900 of 1000 s of it
    ],
)
def test_the_rate_counts_units_in_work(ends: Sequence[float], running: Sequence[Trace], rate: float) -> None:
    assert recent_rate([manifest(1e9 + end, 1200, 600) for end in ends], running) == pytest.approx(rate)


def test_an_attempt_without_heartbeats_is_shown_as_lost(tmp_path: Path) -> None:
    """Not as running, and not as if nothing had been: its driver, actor or node is gone."""
    out = tmp_path / "b"
    job_for(images(tmp_path / "in", 4), out)
    attempt = Attempt(at(out), "000001", "run")
    attempt.at("0003.png", 0)
    assert [t.state for t in read_status(out).running] == ["running"] and read_status(out).failed == ()
    long_ago = time.time() - 300
    attempt.path.write_text(attempt.path.read_text().replace(str(attempt.trace.updated), str(long_ago)))
    status = read_status(out)
    assert status.running == () and [(t.unit, t.state) for t in status.failed] == [("000001", "lost")]
    said = run("status", out).stdout
    assert f"lost        unit 000001: no heartbeat on {attempt.trace.host} for 30" in said, said
