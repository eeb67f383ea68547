"""Kill the commit anywhere, hundreds of times: every unit is committed once, whole, and nothing else ever shows."""

import hashlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.pipeline.generate import close_build, collect_orphans, orphans
from maskmill.pipeline.plan import read_plan
from maskmill.pipeline.retry import retry_tasks
from maskmill.pipeline.unit import Job, Task
from maskmill.pipeline.verify import verify
from maskmill.storage.build import Build
from maskmill.storage.ledger import Ledger
from tests.chaos.builds import assert_same, images, job_for, run_local, tables, wait_for
from tests.chaos.commit_worker import ALREADY, FAILED, LOST, WON, Errand, ForkServer
from tests.chaos.fake import EMPTY, RAISE

UNITS = 8
TABLES = ("images", "candidates", "masks")


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UNITS units of three images; one image raises, one is empty."""
    return images(tmp_path_factory.mktemp("fuzz") / "in", 3 * UNITS, {4: RAISE, 8: EMPTY})


@pytest.fixture(scope="module")
def want(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    """The tables of an undisturbed build."""
    out = tmp_path_factory.mktemp("undisturbed") / "b"
    run_local(source, out, inside=True)
    return tables(out)


def data_files(out: Path) -> set[str]:
    """Every file in the folders of tables, hidden ones too."""
    return {str(p.relative_to(out)) for name in TABLES for p in (out / name).rglob("*") if p.is_file()}


def lines(trail: Path) -> int:
    return trail.read_bytes().count(b"\n") if trail.exists() else 0


def named_files(out: Path) -> set[str]:
    return {f.path for m in Build(out).manifests() for f in m.files.values()}


def check_committed(out: Path) -> int:
    """At any moment: what a manifest names is there, whole. How many units."""
    manifests = Ledger(out).manifests()
    for manifest in manifests:
        assert set(manifest.files) == {"images", "candidates", "masks/default"}
        for file in manifest.files.values():
            data = (out / file.path).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256), file.path
    return len(manifests)


def check_closed(out: Path, want: dict[str, pa.Table]) -> None:
    """Every unit once, nothing but what the manifests name, and the rows of an undisturbed build."""
    plan = [u.unit for u in read_plan(out / "plan.parquet")]
    assert len(plan) == UNITS == check_committed(out)
    assert sorted(p.name for p in (out / "ledger" / "images").glob("*.json")) == [f"{unit}.json" for unit in plan]
    assert_same(out, want)
    assert data_files(out) == named_files(out)
    assert pq.read_table(out / "masks/default").num_rows == Build(out).masks().num_rows > 0
    assert (out / "_SUCCESS").exists()


@dataclass
class Fuzz:
    """One run of kills over as many builds as it needs."""

    server: ForkServer
    source: Path
    folder: Path
    random: random.Random
    kills: int = 0  # that hit a live process
    late: int = 0  # that came after its end
    builds: int = 0
    orphans: int = 0
    exits: Counter[int] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)  # the last line in the trail of the killed

    def build(self, want: dict[str, pa.Table]) -> None:
        """One build under kills, to its end."""
        out = self.folder / f"b{self.builds}"
        self.builds += 1
        length = self.one_in_peace(out)
        while True:
            job, tasks = job_for(self.source, out)  # what the same command does at each new start
            if not tasks:
                break
            self.tear(out, tasks)
            chosen = self.random.sample(tasks, min(3, len(tasks)))
            self.race(job, [*chosen, *chosen[:1]], length)  # the last one: a zombie at the first one's unit
            check_committed(out)
        self.orphans += len(data_files(out) - named_files(out))
        assert close_build(out) == "closed"
        check_closed(out, want)
        shutil.rmtree(out)

    def one_in_peace(self, out: Path) -> int:
        """The first unit, by a child that nobody kills. How many lines its trail has."""
        job, tasks = job_for(self.source, out)
        trail = self.folder / "trails" / "calm"
        assert self.server.ended(self.server.fork(self.errand(job, tasks[0], trail))) == WON
        return lines(trail)

    def errand(self, job: Job, task: Task, trail: Path) -> Errand:
        trail.parent.mkdir(parents=True, exist_ok=True)
        trail.unlink(missing_ok=True)
        seed = self.random.getrandbits(30)
        return Errand("unit", str(self.source), job.build, job, task, str(trail), seed, pause=0.004)

    def race(self, job: Job, tasks: list[Task], length: int) -> None:
        """A child for each task. Most are killed a random moment after they have come a random way."""
        trails = [self.folder / "trails" / f"{i}" for i in range(len(tasks))]
        pids = [self.server.fork(self.errand(job, task, trail)) for task, trail in zip(tasks, trails, strict=True)]
        doomed = {
            pid: (trail, self.random.randrange(length + 1), self.random.uniform(0, 0.005))
            for pid, trail in zip(pids, trails, strict=True)
            if self.random.random() < 0.9
        }
        waiting, until = dict(doomed), time.monotonic() + 10
        while waiting and time.monotonic() < until:
            for pid, (trail, way, pause) in list(waiting.items()):
                gone = self.server.ended(pid, wait=False)
                if gone is None and lines(trail) >= way:
                    time.sleep(pause)
                    os.kill(pid, signal.SIGKILL)  # perhaps it has just ended: `ended` will tell
                if gone is not None or lines(trail) >= way:
                    del waiting[pid]
        for pid, trail in zip(pids, trails, strict=True):
            code = self.server.ended(pid)
            assert code in (-signal.SIGKILL, WON, LOST, ALREADY), f"a child ended with {code}"
            if code == -signal.SIGKILL:
                self.kills += 1
                steps = trail.read_text().splitlines() if trail.exists() else []
                self.stages[steps[-1] if steps else "before any"] += 1
            else:
                self.late += pid in doomed
                self.exits[code] += 1

    def tear(self, out: Path, tasks: list[Task]) -> None:
        """What a power cut leaves of a unit that is not committed: pieces of data files, of temporary ones, of a
        manifest that has no name yet, of a trace."""
        unit, word = self.random.choice(tasks).unit.unit, f"{self.random.getrandbits(32):08x}"
        whole = next((out / "images").glob("*.parquet")).read_bytes()
        piece = whole[: self.random.randrange(len(whole))]
        manifest = next((out / "ledger" / "images").glob("*.json")).read_bytes()
        for name in (
            f"images/{unit}-{word}.parquet",
            f"masks/default/.{unit}-{word}.parquet.{word}.tmp",
            f"attempts/{unit}-{word}.json",
        ):
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(piece)
        torn = manifest[: self.random.randrange(len(manifest))]
        (out / f"ledger/images/.{unit}.json.{word}.tmp").write_bytes(torn)


def fuzz(server: ForkServer, source: Path, folder: Path, want: dict[str, pa.Table], kills: int, seed: int) -> Fuzz:
    """Builds under kills until there were enough."""
    run = Fuzz(server, source, folder, random.Random(seed))
    while run.kills < kills:
        run.build(want)
    print(
        f"\n{run.kills} kills of live processes ({run.late} more came too late) in {run.builds} builds of {UNITS} "
        f"units; {run.orphans} orphans collected; exits {dict(run.exits)}; killed at {dict(run.stages)}"
    )
    return run


def test_sixty_kills(server: ForkServer, source: Path, want: dict[str, pa.Table], tmp_path: Path) -> None:
    run = fuzz(server, source, tmp_path, want, kills=60, seed=1)
    assert run.kills >= 60 and run.orphans > run.builds * UNITS
    assert len(run.stages) >= 6 and run.exits[WON]


@pytest.mark.chaos
def test_five_hundred_kills(server: ForkServer, source: Path, want: dict[str, pa.Table], tmp_path: Path) -> None:
    run = fuzz(server, source, tmp_path, want, kills=500, seed=2)
    assert run.kills >= 500 and run.orphans > run.builds * UNITS
    # every kind of moment was hit: the data files, the manifest's link, and what comes after it
    assert {f"{when} {call}" for when in ("before", "after") for call in ("fsync", "rename", "link", "unlink")} <= set(
        run.stages
    )
    assert run.exits[WON] and run.exits[LOST]


def test_losers_withdraw_while_the_winner_is_read(
    server: ForkServer, source: Path, want: dict[str, pa.Table], tmp_path: Path
) -> None:
    """Four attempts at each unit at once, none killed: one commits, the others take their files away again."""
    out = tmp_path / "b"
    job, tasks = job_for(source, out)
    exits: Counter[int | None] = Counter()
    reads = 0
    for task in tasks:
        pids = [
            server.fork(Errand("unit", str(source), str(out), job, task, seed=i, pause=0.002 * i)) for i in range(4)
        ]
        living = set(pids)
        while living:
            reads += check_committed(out)
            for pid in list(living):
                if (code := server.ended(pid, wait=False)) is not None:
                    living.discard(pid)
                    exits[code] += 1
    assert exits[WON] == UNITS and exits[LOST] > UNITS and exits.total() == 4 * UNITS, exits
    assert exits[FAILED] == 0 and reads > 10 * UNITS
    assert data_files(out) == named_files(out), "a loser left something, with nobody killed"
    assert close_build(out) == "closed"
    check_closed(out, want)


def test_a_crash_at_every_single_step(
    server: ForkServer, source: Path, want: dict[str, pa.Table], tmp_path: Path
) -> None:
    """Begin, first unit, close: each dies before and after each of its calls, one after another, on one build."""
    out = tmp_path / "b"
    steps: dict[str, int] = {}

    def until_it_lives(what: str, **more: object) -> int:
        """How many deaths it took until it came through."""
        for k in range(200):
            errand = Errand(what, str(source), str(out), crash_at=k, **more)  # type: ignore[arg-type]
            code = server.ended(server.fork(errand))
            if code in (WON, ALREADY):
                return k
            assert code == -signal.SIGKILL, code
        raise AssertionError("it never came through")

    steps["begin"] = until_it_lives("begin")
    job, tasks = job_for(source, out)
    assert len(tasks) == UNITS
    committed_at = []
    for k in range(200):
        # a fresh build each time: the first crash after the link would end the series
        shutil.rmtree(out / "ledger", ignore_errors=True)
        code = server.ended(server.fork(Errand("unit", str(source), str(out), job, tasks[0], crash_at=k)))
        committed_at.append(check_committed(out))
        if code == WON:
            break
        assert code == -signal.SIGKILL
    # nothing, nothing ..., then whole: from the link of the manifest on
    steps["unit"], first = len(committed_at) - 1, committed_at.index(1)
    assert committed_at == [0] * first + [1] * (len(committed_at) - first)
    assert first >= 20 and steps["unit"] - first >= 3, "the link lies between the data files and the clean-up"
    for task in tasks[1:]:
        assert server.ended(server.fork(Errand("unit", str(source), str(out), job, task))) == WON
    (out / f"masks/default/.{tasks[0].unit.unit}-0badc0de.parquet.0badc0de.tmp").write_bytes(b"torn")
    assert len(orphans(out)) > first / 3
    steps["close"] = until_it_lives("close")
    check_closed(out, want)
    print(f"\ndeaths at single steps: {steps}")
    assert steps["begin"] >= 20 and steps["close"] >= 10


def test_only_hidden_leftovers_outside_the_tables(server: ForkServer, source: Path, tmp_path: Path) -> None:
    """A crash between a manifest's link and its clean-up leaves a second name of it: nobody may take it for a unit."""
    out = tmp_path / "b"
    job, tasks = job_for(source, out)
    for k in range(20, 40):
        server.ended(server.fork(Errand("unit", str(source), str(out), job, tasks[0], crash_at=k)))
    left = [p for p in (out / "ledger").rglob("*") if p.is_file() and p.name != f"{tasks[0].unit.unit}.json"]
    assert left and all(p.name.startswith(".") and p.name.endswith(".tmp") for p in left)
    assert list(Ledger(out).redos()) == [tasks[0].unit.unit]
    collect_orphans(out)
    assert [p for p in verify(out, quick=False) if "not committed yet" not in p] == []


def test_a_closed_build_holds_no_temporary_file(server: ForkServer, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    for k in range(0, 30, 2):
        server.ended(server.fork(Errand("begin", str(source), str(out), crash_at=k)))
    job, tasks = job_for(source, out)
    for k in range(20, 40):
        server.ended(server.fork(Errand("unit", str(source), str(out), job, tasks[0], crash_at=k)))
    left = [p for p in out.rglob(".*") if p.relative_to(out).parts[0] not in TABLES]
    assert {p.parent for p in left} == {out, out / "filters", out / "ledger" / "images"}
    for path in left:  # young ones may belong to somebody
        os.utime(path, (0, 0))
    run_local(source, out, inside=True)
    assert [str(p.relative_to(out)) for p in out.rglob(".*")] == []


def test_gc_beside_a_redo(server: ForkServer, source: Path, tmp_path: Path) -> None:
    """`maskmill gc`, or another driver that closes the build, between a redo's last file and its manifest."""
    out = tmp_path / "b"
    run_local(source, out, inside=True)
    (task,) = retry_tasks(out)
    job, trail = job_for(source, out)[0], tmp_path / "trail"
    pid = server.fork(Errand("unit", str(source), str(out), job, task, str(trail), pause=0.2))
    wait_for(lambda: trail.exists() and trail.read_text().count("after rename") == 3)
    os.kill(pid, signal.SIGSTOP)
    assert not Ledger(out).is_committed(task.unit.unit, task.redo)
    collect_orphans(out)
    os.kill(pid, signal.SIGCONT)
    assert server.ended(pid) in (WON, FAILED)
    assert check_committed(out) == UNITS
