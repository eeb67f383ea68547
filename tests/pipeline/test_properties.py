"""What must hold for any image set, any history and any poison: the plan, the resume, and the search for killers."""

import contextlib
import json
import math
import os
import random
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from maskmill.errors import UserError
from maskmill.pipeline import supervisor
from maskmill.pipeline.attempts import condemned, read_attempts
from maskmill.pipeline.engines.local import LocalEngine
from maskmill.pipeline.generate import close_build, open_build
from maskmill.pipeline.plan import Unit, compare, make_units, read_plan
from maskmill.pipeline.run import run_tasks
from maskmill.pipeline.status import quarantine
from maskmill.pipeline.supervisor import Died, Supervisor
from maskmill.pipeline.unit import Job, Task
from maskmill.pipeline.worker import Worker
from maskmill.storage.files import at
from maskmill.storage.ledger import Ledger
from maskmill.storage.sources import ImageSet, scan
from tests.chaos.builds import assert_same, images, job_for, recipe, run_local, tables
from tests.chaos.fake import EXIT, SEGFAULT, FakeSegmenter, save
from tests.pipeline.conftest import make_tar

STILL = settings(
    deadline=None, derandomize=True, database=None, max_examples=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
NS = 1_700_000_000_000_000_000

names = st.text("abAB019_- é", min_size=1, max_size=5).map(lambda s: s.strip() or "x")
keys = st.tuples(st.lists(names, max_size=2), names).map(lambda t: "/".join([*t[0], f"{t[1]}.png"]))


def seeds() -> st.SearchStrategy[random.Random]:
    return st.integers(0, 2**32).map(random.Random)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def listed_in_any_order(rng: random.Random) -> Iterator[None]:
    """The kernel promises no order of a folder's entries: os.scandir gives them as they come."""
    scandir = os.scandir

    @contextmanager
    def shuffled(path: Any) -> Iterator[list["os.DirEntry[str]"]]:
        with scandir(path) as entries:
            found = list(entries)
        rng.shuffle(found)
        yield found

    os.scandir = shuffled  # type: ignore[assignment]
    try:
        yield
    finally:
        os.scandir = scandir  # type: ignore[assignment]


def touch(path: Path, text: str = "x") -> None:
    """A file with a fixed time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, ns=(NS, NS))


# --- The plan -------------------------------------------------------------------------------------------------------


@STILL
@given(st.lists(keys, min_size=1, max_size=14, unique_by=str.lower), st.integers(1, 5), seeds())
def test_the_plan_of_a_folder_is_the_same_however_it_is_listed(keys: list[str], size: int, rng: random.Random) -> None:
    with folder() as root:
        for key in keys:
            touch(root / key)
        (root / "link").symlink_to(root, target_is_directory=True)
        plan = make_units(scan(str(root)), size)
        with listed_in_any_order(rng):
            assert make_units(scan(str(root)), size) == plan
        planned = [key for unit in plan for key in unit.keys or ()]
        assert planned == sorted(keys) and all(len(unit.keys or ()) <= size for unit in plan)
        # another folder with the same files, made in another order
        with folder() as copy:
            for key in rng.sample(keys, len(keys)):
                touch(copy / key)
            other = make_units(scan(str(copy)), size)
        assert [(u.unit, u.keys, u.version) for u in other] == [(u.unit, u.keys, u.version) for u in plan]


@STILL
@given(st.dictionaries(names.map(str.lower), st.integers(0, 7), min_size=1, max_size=5), st.integers(1, 4), seeds())
def test_the_plan_of_tars_is_the_same_however_they_are_listed(
    counts: dict[str, int], size: int, rng: random.Random
) -> None:
    with folder() as root:
        for name, count in counts.items():
            make_tar(root / f"{name}.tar", {f"{i}.png": b"x" for i in range(count)})
        plan = make_units(scan(str(root)), size)
        with listed_in_any_order(rng):
            assert make_units(scan(str(root)), size) == plan
        if len(counts) > 1:  # named one by one, in any order
            braces = ",".join(rng.sample(sorted(counts), len(counts)))
            assert make_units(scan(f"{root}/{{{braces}}}.tar"), size) == plan
        assert [u.unit for u in plan] == [f"{i:06d}" for i in range(len(plan))]
        for name, count in counts.items():  # every image in one unit, in order
            runs = [(u.start, u.count) for u in plan if u.shard == f"{name}.tar"]
            assert [i for start, n in runs for i in range(start, start + (n or 0))] == list(range(count))


@STILL
@given(st.sets(names.map(str.lower), min_size=2, max_size=6), seeds())
def test_the_plan_of_remote_shards_is_the_same_however_they_are_listed(shards: set[str], rng: random.Random) -> None:
    memory = fsspec.filesystem("memory")
    plans = []
    for order in (sorted(shards), rng.sample(sorted(shards), len(shards))):
        memory.store.clear()
        for name in order:
            memory.pipe_file(f"/set/{name}.tar", b"x" * 1024)
        plans.append([(u.unit, u.shard, u.url) for u in make_units(scan("memory://set"), 3)])
    memory.store.clear()
    assert plans[0] == plans[1] and [shard for _, shard, _ in plans[0]] == sorted(f"{s}.tar" for s in shards)


def check_growth(old: list[Unit], new: list[Unit], now: ImageSet) -> None:
    """Old units as they were, under their names; new ones only behind them; everything planned once."""
    assert new[: len(old)] == old
    assert [u.unit for u in new] == [f"{i:06d}" for i in range(len(new))], "a name is missing or was given twice"
    changes = compare(new, now)
    assert not changes.changed and not changes.gone and not changes.new.shards


@STILL
@given(st.lists(st.sets(keys, max_size=6), min_size=2, max_size=4), st.integers(1, 4))
def test_new_files_leave_old_units_as_they_were(batches: list[set[str]], size: int) -> None:
    """Through open_build itself: each batch is appended to what the batches before have begun."""
    with folder() as base:
        root, out, seen = base / "in", base / "b", set[str]()
        plan: list[Unit] = []
        for batch in batches:
            fresh = {key for key in batch if key.lower() not in {s.lower() for s in seen}}
            for key in sorted(fresh):
                if not any(
                    (root / key).is_relative_to(root / s) or (root / s).is_relative_to(root / key) for s in seen
                ):
                    touch(root / key)
                    seen.add(key)
            if not seen:
                continue
            made, before = recipe(root, f"run.unit_size={size}"), plan
            if before and fresh & seen:
                with pytest.raises(UserError, match="have grown by"):
                    open_build(made, out, append=False)
                assert read_plan(out / "plan.parquet") == before, "a refusal changes nothing"
            plan = open_build(made, out, append=True).plan
            assert read_plan(out / "plan.parquet") == plan
            check_growth(before, plan, scan(str(root)))
            planned = [key for unit in plan for key in unit.keys or ()]
            assert len(planned) == len(set(planned)) and set(planned) == seen


@STILL
@given(
    st.lists(st.dictionaries(names.map(str.lower), st.integers(0, 5), max_size=3), min_size=2, max_size=4),
    st.integers(1, 3),
)
def test_new_shards_leave_old_units_as_they_were(batches: list[dict[str, int]], size: int) -> None:
    with folder() as base:
        root, out, seen = base / "in", base / "b", dict[str, int]()
        plan: list[Unit] = []
        for batch in batches:
            for name, count in batch.items():
                if name not in seen:
                    make_tar(root / f"{name}.tar", {f"{i}.png": b"x" for i in range(count)})
                    seen[name] = count
            if not seen:
                continue
            before, plan = plan, open_build(recipe(root, f"run.unit_size={size}"), out, append=True).plan
            check_growth(before, plan, scan(str(root)))
            images_of = Counter(u.shard for u in plan for _ in range(u.count or 0))
            assert images_of == Counter({f"{name}.tar": n for name, n in seen.items()})


# --- The resume -----------------------------------------------------------------------------------------------------

UNITS = 6


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, pa.Table]]:
    """Source, a finished build of it, and its tables."""
    base = tmp_path_factory.mktemp("fresh")
    source = images(base / "in", 3 * UNITS - 1)
    run_local(source, base / "b", inside=True)
    return source, base / "b", tables(base / "b")


@settings(STILL, max_examples=10)
@given(
    lost=st.sets(st.integers(0, UNITS - 1)),
    orphaned=st.sets(st.sampled_from(("images", "candidates", "masks/default"))),
    torn=st.booleans(),
)
@example(lost=set(), orphaned=set(), torn=False)
@example(lost=set(range(UNITS)), orphaned={"images", "candidates", "masks/default"}, torn=True)
def test_any_committed_subset_resumes_to_a_fresh_run(
    fresh: tuple[Path, Path, dict[str, pa.Table]], lost: set[int], orphaned: set[str], torn: bool
) -> None:
    """Killed after any commits; the files of the other units are gone, or there as orphans, or in pieces."""
    source, made, want = fresh
    with folder() as base:
        out = Path(shutil.copytree(made, base / "b"))
        kept = {m.unit: m for m in Ledger(out).manifests()}
        (out / "_SUCCESS").unlink()
        for unit in (f"{i:06d}" for i in lost):
            for table, file in kept.pop(unit).files.items():
                path = out / file.path
                if table not in orphaned:
                    path.unlink()
                elif torn:
                    path.write_bytes(path.read_bytes()[: file.bytes // 2])
            (out / "ledger" / "images" / f"{unit}.json").unlink()
        assert {u.unit for u in open_build(recipe(source), out, append=False).pending} == {f"{i:06d}" for i in lost}
        outcome = run_local(source, out, inside=True)
        assert outcome.left == [] and len(outcome.receipts) == len(lost)
        assert_same(out, want)
        assert {u: m for u, m in ((m.unit, m) for m in Ledger(out).manifests()) if u in kept} == kept
        named = {f.path for m in Ledger(out).manifests() for f in m.files.values()}
        there = {str(p.relative_to(out)) for t in ("images", "candidates", "masks") for p in (out / t).rglob("*.*")}
        assert there == named and (out / "_SUCCESS").exists()


# --- The search for images that kill --------------------------------------------------------------------------------


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
