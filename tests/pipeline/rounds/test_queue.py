"""The queue of annotation tasks: leases, processes that race and die."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maskmill.pipeline.rounds.queue import STATES, Claim, TaskQueue


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def claimed(queue: TaskQueue, annotator: str) -> Claim:
    claim = queue.claim(annotator)
    assert claim is not None
    return claim


def test_from_open_to_done(tmp_path: Path) -> None:
    queue = TaskQueue(tmp_path / "q", lease_s=60)
    assert queue.add([("b", "1"), ("a", "2")]) == 2
    assert queue.add([("a", "other"), ("c", "3")]) == 1, "what is there stays as it is"
    first, second, third = (claimed(queue, "ann") for _ in range(3))
    assert [(c.name, c.payload) for c in (first, second, third)] == [("b", "1"), ("a", "2"), ("c", "3")]
    assert queue.claim("bob") is None
    assert queue.finish(first, "masks") and queue.reject(second, "blurred") and queue.release(third)
    assert queue.counts() == {"open": 1, "claimed": 0, "done": 1, "rejected": 1}
    assert queue.answers() == {"b": "masks"} and queue.answers("rejected") == {"a": "blurred"}
    assert claimed(queue, "bob") == Claim("c", "3", "bob", number=2)
    assert not queue.finish(first, "again"), "done is done"


def test_an_expired_lease_goes_to_the_next(tmp_path: Path) -> None:
    clock = Clock()
    queue = TaskQueue(tmp_path / "q", lease_s=60, clock=clock)
    queue.add([("t", "")])
    slow = claimed(queue, "slow")
    clock.now += 59
    assert queue.claim("quick") is None
    assert queue.renew(slow)
    clock.now += 59
    assert queue.claim("quick") is None, "renewed"
    clock.now += 2
    assert queue.counts()["open"] == 1
    quick = claimed(queue, "quick")
    assert not queue.renew(slow) and not queue.finish(slow, "late") and not queue.reject(slow, "late")
    assert not queue.release(slow)
    assert queue.finish(quick, "in time")
    assert queue.answers() == {"t": "in time"}
    assert queue.handed_in() == [(quick, "in time")]
    assert quick.file != slow.file, "what is written late is another file"


def test_a_late_answer_counts_if_nobody_else_has_claimed(tmp_path: Path) -> None:
    clock = Clock()
    queue = TaskQueue(tmp_path / "q", lease_s=1, clock=clock)
    queue.add([("t", "")])
    slow = claimed(queue, "slow")
    clock.now += 100
    assert queue.finish(slow, "late")
    assert queue.claim("quick") is None and queue.answers() == {"t": "late"}


ANNOTATOR = """
import sys, time
from maskmill.pipeline.rounds.queue import TaskQueue
queue, me, log = TaskQueue(sys.argv[1], lease_s=float(sys.argv[3])), sys.argv[2], open(sys.argv[4], "a", buffering=1)
while queue.left():
    claim = queue.claim(me)
    if claim is None:
        time.sleep(0.02)
        continue
    time.sleep(float(claim.payload))
    if queue.finish(claim, me):
        log.write(claim.name + chr(10))
"""


def annotator(folder: Path, name: str, lease_s: float) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", ANNOTATOR, folder / "q", name, str(lease_s), folder / name])


def test_four_processes_do_each_task_once(tmp_path: Path) -> None:
    queue = TaskQueue(tmp_path / "q", lease_s=60)
    names = [f"t{i}" for i in range(300)]
    queue.add([(name, "0") for name in names])
    workers = [annotator(tmp_path, f"w{i}", 60) for i in range(4)]
    assert [w.wait(60) for w in workers] == [0] * 4
    done = [name for i in range(4) for name in (tmp_path / f"w{i}").read_text().split()]
    assert sorted(done) == sorted(names)
    assert queue.counts() == dict.fromkeys(STATES, 0) | {"done": 300}


def test_many_open_a_new_queue_at_once(tmp_path: Path) -> None:
    """SQLite does not wait where two make the same file: some of these met "database is locked"."""
    for n in range(60):
        ready = threading.Barrier(3)

        def opened(path: Path = tmp_path / str(n), ready: threading.Barrier = ready) -> int:
            ready.wait()
            return sum(TaskQueue(path, lease_s=1).counts().values())

        with ThreadPoolExecutor(3) as pool:
            assert [f.result() for f in [pool.submit(opened) for _ in range(3)]] == [0, 0, 0]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_an_annotator_dies_or_freezes_at_work(tmp_path: Path, how: signal.Signals) -> None:
    """Its task is done by the other; a frozen one that wakes up later hands in nothing that counts."""
    queue = TaskQueue(tmp_path / "q", lease_s=0.5)
    queue.add([("long", "1.2")])
    first = annotator(tmp_path, "first", 0.5)
    while not queue.counts()["claimed"]:
        time.sleep(0.005)
    first.send_signal(how)
    queue.add([(f"t{i}", "0") for i in range(20)])
    second = annotator(tmp_path, "second", 60)
    assert second.wait(60) == 0
    if how == signal.SIGSTOP:
        os.kill(first.pid, signal.SIGCONT)
    first.wait(60)
    assert (tmp_path / "first").read_text() == ""
    assert queue.answers() == dict.fromkeys(["long", *(f"t{i}" for i in range(20))], "second")
