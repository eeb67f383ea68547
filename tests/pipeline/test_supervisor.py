"""Real worker processes that really die: what an image can do to its process, and what can be done to a run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from maskmill.pipeline.attempts import FAILED, read_attempts, stop_file
from maskmill.pipeline.drive import DONE, RESUMABLE
from maskmill.pipeline.engines.local import LocalEngine
from maskmill.pipeline.generate import close_build
from maskmill.pipeline.retry import changes, masks_of, quarantined_now, retry_tasks
from maskmill.pipeline.run import Outcome, run_tasks
from maskmill.pipeline.status import quarantine
from maskmill.pipeline.supervisor import Supervisor
from maskmill.pipeline.unit import Task
from maskmill.pipeline.verify import verify
from maskmill.storage.build import Build
from maskmill.storage.files import at, write_bytes
from maskmill.storage.ledger import Ledger
from tests.chaos.builds import assert_same, driver, images, job_for, kill, run_local, tables, wait_for
from tests.chaos.fake import EXIT, HANG, NOT_AFTER_OTHERS, RAISE, SEGFAULT, SEGFAULT_ONCE, save
from tests.pipeline.conftest import make_tar

ODD = {1: SEGFAULT, 3: EXIT, 4: RAISE, 7: HANG}  # one in the middle of a unit, one at its begin, two in one
COUNT = 9
ONCE = "0005.png"


@dataclass(frozen=True)
class Made:
    """A build and how it went."""

    source: Path
    out: Path
    outcome: Outcome


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, pa.Table]]:
    """COUNT calm images, and the tables of their build."""
    base = tmp_path_factory.mktemp("calm")
    source = images(base / "in", COUNT)
    run_local(source, base / "b", inside=True)
    return source, tables(base / "b")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The same images, but some of them do what ODD says."""
    base = tmp_path_factory.mktemp("odd")
    source = images(base / "in", COUNT, ODD)
    outcome = run_local(source, base / "b", "run.max_retries=0", "run.image_timeout_s=4")
    return Made(source, base / "b", outcome)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where SEGFAULT_ONCE remembers."""
    (tmp_path / "memory").mkdir()
    monkeypatch.setenv("MASKMILL_FAKE_MEMORY", str(tmp_path / "memory"))
    return tmp_path / "memory"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image takes a while: time to disturb the run."""
    monkeypatch.setenv("MASKMILL_FAKE_SECONDS", "0.6")


@pytest.fixture
def drivers() -> Iterator[list["subprocess.Popen[str]"]]:
    """Drivers of a test; what is left of them at its end is killed."""
    begun: list[subprocess.Popen[str]] = []
    yield begun
    for process in begun:
        if process.poll() is None:
            kill(process)


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children() if "maskmill.pipeline.child" in " ".join(p.cmdline())]


def at_work(out: Path) -> bool:
    """Whether an image is being worked on."""
    return any(t.alive and t.key for t in read_attempts(out))


# --- What images do ------------------------------------------------------------------------------------------------


def test_only_the_images_that_misbehave_are_quarantined(odd: Made) -> None:
    assert odd.outcome.left == [] and odd.outcome.errors == {}
    assert list(verify(odd.out, quick=False)) == []
    errors = {row["key"]: row["error"] for row in quarantine(odd.out)}
    died = "ProcessDied: the worker process died 1 times at this image, last: "
    hung = errors.pop("0007.png")
    assert hung.startswith(f"{died}no progress for ") and hung.endswith(" s (run.image_timeout_s=4)")
    assert errors == {
        "0001.png": f"{died}killed by SIGSEGV",
        "0003.png": f"{died}exit 3",
        "0004.png": "RuntimeError: this image raises",
    }


def test_their_neighbours_are_as_if_nothing_had_been(odd: Made, calm: tuple[Path, dict[str, pa.Table]]) -> None:
    want, got = calm[1], tables(odd.out)
    bad = {f"{i:04d}.png" for i in ODD}
    good = [row for row in got["images"].to_pylist() if row["key"] not in bad]
    assert good == [row for row in want["images"].to_pylist() if row["key"] not in bad]
    assert got["images"].num_rows == COUNT and {row["status"] for row in good} == {"ok"}
    ids = pa.array([row["image_id"] for row in good], pa.int64())
    for name in ("candidates", "masks"):
        assert got[name].equals(want[name].filter(pc.is_in(want[name]["image_id"], ids)))


def test_each_death_is_counted_and_its_trace_goes_with_the_commit(odd: Made) -> None:
    assert sum(r.deaths for r in odd.outcome.receipts) == 3 and sum(r.quarantined for r in odd.outcome.receipts) == 4
    assert list((odd.out / "attempts").iterdir()) == []


def test_an_image_that_kills_only_once_is_done(
    memory: Path, calm: tuple[Path, dict[str, pa.Table]], tmp_path: Path
) -> None:
    """A second chance (run.max_retries=1) is taken: ok, and the rows are those of any calm run."""
    source = images(tmp_path / "in", 3, {1: SEGFAULT_ONCE})
    outcome = run_local(source, tmp_path / "b", "run.max_retries=1")
    assert outcome.left == [] and [r.deaths for r in outcome.receipts] == [1] and (memory / "once").exists()
    assert list(quarantine(tmp_path / "b")) == [] and list(verify(tmp_path / "b", quick=False)) == []
    run_local(source, tmp_path / "again", inside=True)  # it is calm now
    assert_same(tmp_path / "b", tables(tmp_path / "again"))


# --- Retry ---------------------------------------------------------------------------------------------------------


def test_retry_does_only_what_is_quarantined(memory: Path, tmp_path: Path) -> None:
    source, out = images(tmp_path / "in", 6, {4: RAISE, 5: SEGFAULT_ONCE}), tmp_path / "b"
    assert run_local(source, out, "run.max_retries=0").left == []
    first, before = {m.unit: m for m in Ledger(out).manifests()}, quarantined_now(out)
    assert {key for _, key in before} == {"0004.png", ONCE}
    old = tables(out)
    (out / "_SUCCESS").unlink()

    tasks = retry_tasks(out)
    assert [task.name for task in tasks] == ["000001@2"]
    job, nothing = job_for(source, out, "run.max_retries=0")
    assert nothing == []
    outcome = run_tasks(job, tasks, LocalEngine(inside=True), print)
    assert outcome.left == [] and [(r.images, r.quarantined) for r in outcome.receipts] == [(2, 1)]

    assert sorted(p.name for p in (out / "ledger" / "images").glob("*.json")) == [
        "000000.json", "000001.json", "000001@2.json",
    ]  # fmt: skip
    second = {m.unit: m for m in Ledger(out).manifests()}
    assert second["000000"] == first["000000"], "a unit without quarantined images is left alone"
    assert second["000001"].images == 3 and second["000001"].quarantined == 1
    assert second["000001"].attempt != first["000001"].attempt
    found = {c.key: c for c in changes(before, quarantined_now(out))}
    assert found[ONCE].after is None and "SIGSEGV" in found[ONCE].before
    assert found["0004.png"].before == found["0004.png"].after == "RuntimeError: this image raises"
    assert masks_of(out, tasks, list(found.values())) == 2

    assert close_build(out) == "closed"
    assert list(verify(out, quick=False)) == []
    assert {str(p.relative_to(out)) for t in ("images", "candidates", "masks") for p in (out / t).rglob("*.*")} == {
        f.path for m in second.values() for f in m.files.values()
    }, "the files of the old manifest are gone"
    assert pq.read_table(out / "masks/default").num_rows == Build(out).masks().num_rows == 10
    new = tables(out)
    done = pc.equal(new["images"]["key"], ONCE)
    assert new["images"].filter(pc.invert(done)).equals(old["images"].filter(pc.not_equal(old["images"]["key"], ONCE)))
    its_id = new["images"].filter(done)["image_id"][0]
    for name in ("candidates", "masks"):
        assert new[name].filter(pc.not_equal(new[name]["image_id"], its_id)).equals(old[name])
    run_local(source, tmp_path / "calm", inside=True)  # it is calm now
    assert_same(out, tables(tmp_path / "calm"))


def test_nothing_to_retry(calm: tuple[Path, dict[str, pa.Table]]) -> None:
    assert retry_tasks(calm[0].parent / "b") == []


# --- What is done to a run -----------------------------------------------------------------------------------------


def test_a_killed_driver_leaves_no_worker_behind(
    slow: None, drivers: list["subprocess.Popen[str]"], calm: tuple[Path, dict[str, pa.Table]], tmp_path: Path
) -> None:
    source, want = calm
    drivers.append(first := driver(source, tmp_path / "b", env={"MASKMILL_FAKE_SECONDS": "60"}))
    wait_for(lambda: at_work(tmp_path / "b"))
    workers = workers_of(first)
    assert len(workers) == 1 and workers[0].is_running()
    first.kill()
    first.wait()  # not for the end of its pipes: the worker holds them too
    gone, alive = psutil.wait_procs(workers, timeout=3)
    assert alive == [] and gone == workers
    assert Ledger(tmp_path / "b").redos() == {}
    let_time_pass(tmp_path / "b")
    os.environ.pop("MASKMILL_FAKE_SECONDS")  # monkeypatch of `slow` puts it back
    assert run_local(source, tmp_path / "b", inside=True).left == []
    assert_same(tmp_path / "b", want)


def let_time_pass(out: Path) -> None:
    """As if the last heartbeats were an hour old."""
    for path in (out / "attempts").glob("*.json"):
        updated = float(path.read_text().partition('"updated": ')[2].partition(",")[0])
        path.write_text(path.read_text().replace(str(updated), str(updated - 3600)))


def test_two_drivers_at_once(
    slow: None, drivers: list["subprocess.Popen[str]"], calm: tuple[Path, dict[str, pa.Table]], tmp_path: Path
) -> None:
    """Both may go on and both exit 0; each unit is committed once."""
    source, want = calm
    drivers.append(first := driver(source, tmp_path / "b"))
    wait_for(lambda: at_work(tmp_path / "b"))
    drivers.append(second := driver(source, tmp_path / "b"))
    said = [process.communicate(timeout=60)[1] for process in (first, second)]
    assert [first.returncode, second.returncode] == [DONE, DONE], said
    assert "another run is at work" not in said[0] and "another run is at work" in said[1]
    assert_same(tmp_path / "b", want)
    assert len(Ledger(tmp_path / "b").redos()) == len(list((tmp_path / "b" / "ledger" / "images").iterdir())) == 3
    assert pq.read_table(tmp_path / "b/masks/default").num_rows == want["masks"].num_rows


def test_sigterm_drains_and_the_same_command_continues(
    slow: None, drivers: list["subprocess.Popen[str]"], calm: tuple[Path, dict[str, pa.Table]], tmp_path: Path
) -> None:
    source, want = calm
    drivers.append(first := driver(source, tmp_path / "b"))
    wait_for(lambda: at_work(tmp_path / "b"))
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=60)
    assert first.returncode == RESUMABLE == 75, said
    assert "SIGTERM: stopping" in said and "2 units are left; the same command continues" in said
    kept = {m.unit: m for m in Ledger(tmp_path / "b").manifests()}
    assert len(kept) == 1, "the unit in work is finished, no other is begun"
    assert list((tmp_path / "b" / "attempts").iterdir()) == []
    drivers.append(again := driver(source, tmp_path / "b", env={"MASKMILL_FAKE_SECONDS": "0"}))
    _, said = again.communicate(timeout=60)
    assert again.returncode == DONE, said
    assert_same(tmp_path / "b", want)
    assert {m.unit: m for m in Ledger(tmp_path / "b").manifests() if m.unit in kept} == kept


def test_once_a_run_is_stopped_no_unit_is_begun(calm: tuple[Path, dict[str, pa.Table]], tmp_path: Path) -> None:
    job, tasks = job_for(calm[0], tmp_path / "b")
    write_bytes(stop_file(at(job.build), job.run_id), str(time.time()).encode())
    supervisor = Supervisor(job)
    try:
        assert supervisor.run(tasks[0]).deferred and supervisor.worker is None
    finally:
        supervisor.close()
    assert read_attempts(at(job.build)) == [] and Ledger(at(job.build)).redos() == {}


def test_a_unit_whose_storage_fails(tmp_path: Path) -> None:
    """It comes as a receipt that names what failed. Only that unit is left, and the same command goes on."""
    for name in "abc":
        save(tmp_path / f"{name}.png", ord(name))
        make_tar(tmp_path / "in" / f"{name}.tar", {f"{name}.png": (tmp_path / f"{name}.png").read_bytes()})
    out = tmp_path / "b"
    job, (a, b, c) = job_for(tmp_path / "in", out)
    supervisor = Supervisor(job)

    def run(task: Task, broken: Path) -> str:
        """Its error, while something else stands where `broken` should be."""
        aside = tmp_path / "aside"
        if broken.exists():
            broken.rename(aside)
        (broken if broken.suffix else broken.parent).mkdir(exist_ok=True)
        if not broken.suffix:
            broken.write_text("no folder")
        receipt = supervisor.run(task)
        shutil.rmtree(broken) if broken.is_dir() else broken.unlink()
        if aside.exists():
            aside.rename(broken)
        assert receipt.error is not None and not receipt.unable and receipt.deaths == 0
        return receipt.error

    try:
        assert str(out / "attempts") in run(a, out / "attempts")
        assert supervisor.worker is None, "not even begun"
        assert str(out / "candidates") in run(a, out / "candidates")
        assert str(tmp_path / "in" / "b.tar") in run(b, tmp_path / "in" / "b.tar")
        assert Ledger(out).redos() == {}
        assert [supervisor.run(task).error for task in (a, c)] == [None, None], "the same worker goes on"
    finally:
        supervisor.close()
    assert sorted(Ledger(out).redos()) == [a.unit.unit, c.unit.unit]
    traces = [(t.unit, t.state) for t in read_attempts(out)]
    assert traces == [(b.unit.unit, FAILED)], "the traces of a went with its commit"
    assert run_local(tmp_path / "in", out, inside=True).left == []
    assert list(verify(out, quick=False)) == [] and Build(out).images().num_rows == 3
    assert read_attempts(out) == []


def test_an_actor_holds_no_model() -> None:
    """The model's libraries load in the worker process alone: an actor stays small, and outlives what they do."""
    code = "import sys, maskmill.pipeline.engines.ray, maskmill.pipeline.summary; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_image_that_dies_of_its_neighbours_is_not_blamed(tmp_path: Path) -> None:
    """Before the last try it is done first, in a fresh process."""
    source = images(tmp_path / "in", 3, {1: NOT_AFTER_OTHERS})
    outcome = run_local(source, tmp_path / "b")
    assert sum(r.deaths for r in outcome.receipts) == 2
    assert Build(tmp_path / "b").images()["status"].to_pylist() == ["ok"] * 3
    assert list(verify(tmp_path / "b", quick=False)) == []
