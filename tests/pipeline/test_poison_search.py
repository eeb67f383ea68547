"""What must hold for any poison: the search for images that kill their process ends at them and nowhere else."""

import contextlib
import json
import math
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.pipeline import supervisor
from maskmill.pipeline.attempts import condemned, read_attempts
from maskmill.pipeline.engines.local import LocalEngine
from maskmill.pipeline.generate import close_build
from maskmill.pipeline.run import run_tasks
from maskmill.pipeline.status import quarantine
from maskmill.pipeline.supervisor import Died, Supervisor
from maskmill.pipeline.unit import Job, Task
from maskmill.pipeline.worker import Worker
from maskmill.storage.files import at
from tests.chaos.builds import images, job_for, run_local, tables
from tests.chaos.fake import EXIT, SEGFAULT, FakeSegmenter, save
from tests.pipeline.properties import STILL, folder


class Death(BaseException):
    """What happens to the process. No Exception, so that the worker's own code cannot catch it."""


class Script:
    """When scripted worker processes die."""

    def __init__(self, poison: set[str], strikes: dict[str | None, int]) -> None:
        self.poison = poison
        self.strikes = Counter(strikes)  # deaths to come at innocent images, or (None) before any image
        self.deaths: Counter[str | None] = Counter()
        self.commit_kills = False
        self.limit = math.inf  # after so many deaths the supervisor is gone too

    def at(self, key: str | None, dead: bool = False) -> None:
        """The process is at this image: does it survive?"""
        if key is not None and key in self.poison and not dead:
            self.die(key)
        if self.strikes[key] > 0:
            self.strikes[key] -= 1
            self.die(key)

    def die(self, key: str | None) -> None:
        self.deaths[key] += 1
        if self.deaths.total() > 120:
            raise SystemExit("the search does not end")
        raise Death


class ScriptedWorker:
    """Stands in for supervisor.WorkerProcess: the real worker's work, here, and deaths by the script."""

    script: Script

    def __init__(self, job: Job) -> None:
        if self.script.deaths.total() >= self.script.limit:
            raise Gone
        self.worker = Worker(job, FakeSegmenter(job))
        self.messages: deque[tuple[str, Any]] = deque([("ready", None)])
        self.dead = self.killed = False

    def send(self, task: Task) -> None:
        assert not self.killed
        try:
            self.script.at(None)

            def report(key: str | None, done: int, more: float, alone: bool) -> None:
                self.messages.append(("at", (key, done, more, alone)))
                if key is not None:
                    self.script.at(key, key in task.dead)

            if self.script.commit_kills:
                for i, key in enumerate(task.unit.keys or ()):
                    self.messages += [("at", (key, i, 1.0, True)), ("at", (None, i + 1, 1.0, True))]
                self.script.die("commit")
            receipt = self.worker.run(task, report)
            self.messages.append(("done", receipt))
        except Death:
            self.dead = True

    def next(self, timeout: float) -> tuple[str, Any] | None:
        if self.messages:
            return self.messages.popleft()
        assert self.dead, "asked for more than there is"
        raise Died("killed by SIGSEGV")

    def kill(self) -> None:
        self.killed = True


@contextmanager
def scripted(script: Script) -> Iterator[Script]:
    real: Callable[[Job], Any] = supervisor.WorkerProcess
    supervisor.WorkerProcess = type("Scripted", (ScriptedWorker,), {"script": script})  # type: ignore[misc]
    try:
        yield script
    finally:
        supervisor.WorkerProcess = real  # type: ignore[misc]


COUNT, SIZE = 10, 4  # images; images in a unit
KEYS = [f"{i:04d}.png" for i in range(COUNT)]


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, pa.Table]]:
    """Ten calm images, and the tables of their build."""
    base = tmp_path_factory.mktemp("ten")
    source = images(base / "in", COUNT)
    run_local(source, base / "b", f"run.unit_size={SIZE}", inside=True)
    return source, tables(base / "b")


def check_narrowed(out: Path, want: dict[str, pa.Table], poison: set[str], words: str) -> None:
    """Exactly the poison is quarantined; every other image has the rows of an undisturbed build."""
    found = {row["key"]: row["error"] for row in quarantine(out)}
    assert set(found) == poison
    assert all(words in error for error in found.values()), found
    good = [row for row in want["images"].to_pylist() if row["key"] not in poison]
    got = tables(out)
    assert [row for row in got["images"].to_pylist() if row["key"] not in poison] == good
    ids = pa.array([row["image_id"] for row in good], pa.int64())
    for name in ("candidates", "masks"):
        assert got[name].equals(want[name].filter(pc.is_in(want[name]["image_id"], ids)))
    assert read_attempts(out) == [], "the traces of committed units are taken away"


@settings(STILL, max_examples=12)
@given(data=st.data(), poison=st.sets(st.sampled_from(KEYS)), retries=st.integers(0, 3))
def test_the_search_ends_at_the_poison_and_nowhere_else(
    ten: tuple[Path, dict[str, pa.Table]], data: st.DataObject, poison: set[str], retries: int
) -> None:
    """Innocent images lose their process too, but fewer than max_retries + 1 times each."""
    source, want = ten
    innocent = [*(k for k in KEYS if k not in poison), None]
    strikes: dict[str | None, int] = {}
    if retries:
        at = data.draw(st.lists(st.sampled_from(innocent), max_size=2 * retries + 3))
        strikes = {key: min(n, retries) for key, n in Counter(at).items()}
    with folder() as base, scripted(Script(poison, strikes)) as script:
        outcome = run_local(source, base / "b", f"run.unit_size={SIZE}", f"run.max_retries={retries}")
        assert outcome.left == [] and outcome.errors == {}
        for key in poison:
            assert script.deaths[key] == retries + 1, "no more deaths than it takes"
        assert sum(r.deaths for r in outcome.receipts) == script.deaths.total()
        check_narrowed(base / "b", want, poison, f"died {retries + 1} times at this image, last: killed by SIGSEGV")


class Gone(BaseException):
    """What happens to a supervisor with its node."""


def let_time_pass(out: Path) -> None:
    """The heartbeats of what is gone are old."""
    for path in (out / "attempts").glob("*.json"):
        trace = json.loads(path.read_text())
        if "updated" in trace:
            path.write_text(json.dumps({**trace, "updated": trace["updated"] - 3600}))


@settings(STILL, max_examples=8)
@given(poison=st.sets(st.sampled_from(KEYS), min_size=1), stops=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_deaths_are_counted_on_from_node_to_node(
    ten: tuple[Path, dict[str, pa.Table]], poison: set[str], stops: list[int]
) -> None:
    """Supervisors that are gone themselves after some deaths: the next one begins where they left."""
    source, want = ten
    with folder() as base, scripted(Script(poison, {})) as script:
        job, tasks = job_for(source, base / "b", f"run.unit_size={SIZE}", "run.max_retries=2")
        for stop in stops:
            script.limit = script.deaths.total() + stop
            node = Supervisor(job)
            with contextlib.suppress(Gone):
                for task in tasks:
                    node.run(task)
            let_time_pass(base / "b")
        script.limit = math.inf
        assert run_tasks(job, tasks, LocalEngine(), lambda words: None).left == []
        assert close_build(base / "b") == "closed"
        assert script.deaths == dict.fromkeys(poison, 3)
        check_narrowed(base / "b", want, poison, "died 3 times at this image")


def test_a_machine_that_kills_everything_is_not_blamed_on_images(ten: tuple[Path, dict[str, pa.Table]]) -> None:
    """Deaths at ever other images: the unit is given up for now, nothing is quarantined, and the deaths are few."""
    source, want = ten
    with folder() as base, scripted(Script(set(), dict.fromkeys(KEYS, 1))) as script:
        setting = (f"run.unit_size={COUNT}", "run.max_retries=1")
        job, tasks = job_for(source, base / "b", *setting)
        receipt = Supervisor(job).run(tasks[0])
        assert receipt.error is not None and "died 7 times, at no one image more often" in receipt.error
        assert script.deaths.total() == 7 == receipt.deaths
        script.strikes.clear()  # a better machine
        assert run_local(source, base / "b", *setting).left == []
        check_narrowed(base / "b", want, set(), "")


def test_a_unit_that_dies_after_all_its_images_is_given_up(ten: tuple[Path, dict[str, pa.Table]]) -> None:
    """Out of memory while the tables are written, say. That is no image's fault, and it must end."""
    source, _ = ten
    script = Script(set(), {})
    script.commit_kills = True
    with folder() as base, scripted(script):
        job, tasks = job_for(source, base / "b", f"run.unit_size={SIZE}", "run.max_retries=1")
        receipt = Supervisor(job).run(tasks[0])
        assert receipt.error is not None and "died" in receipt.error
        assert condemned(at(job.build), tasks[0].name) == {}, "an innocent image was set aside"


@pytest.mark.parametrize(
    ("odd", "retries"), [({1: SEGFAULT, 2: EXIT}, 0), ({0: SEGFAULT}, 1)], ids=["two killers", "a second chance"]
)
def test_the_search_with_real_processes(
    ten: tuple[Path, dict[str, pa.Table]], odd: dict[int, int], retries: int, tmp_path: Path
) -> None:
    """The scripted worker tells no tales: the same with processes that really die."""
    source, want = ten
    mine = Path(shutil.copytree(source, tmp_path / "in"))
    for i, how in odd.items():
        save(mine / KEYS[i], i, how)
    outcome = run_local(mine, tmp_path / "b", f"run.unit_size={COUNT}", f"run.max_retries={retries}")
    assert outcome.left == [] and sum(r.deaths for r in outcome.receipts) == len(odd) * (retries + 1)
    check_narrowed(tmp_path / "b", want, {KEYS[i] for i in odd}, f"died {retries + 1} times at this image, last: ")
