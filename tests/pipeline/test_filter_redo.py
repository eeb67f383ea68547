"""A build that grows and units that are done again: its filters follow, or are known to lag behind."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from maskmill.config import FilterConfig
from maskmill.pipeline import drive
from maskmill.pipeline.engines import Engine
from maskmill.pipeline.engines.local import LocalEngine
from maskmill.pipeline.filtering.refilter import filter_job, filter_tasks, outdated
from maskmill.pipeline.generate import close_build, new_job, open_build
from maskmill.pipeline.plan import read_plan, write_plan
from maskmill.pipeline.retry import recipe_of, retry_tasks
from maskmill.pipeline.run import run_tasks
from maskmill.pipeline.unit import Job, Receipt, Task
from maskmill.pipeline.verify import verify
from maskmill.storage.build import Build
from maskmill.storage.ledger import Ledger
from tests.chaos.builds import images
from tests.pipeline.conftest import build as nano_build
from tests.pipeline.conftest import config, recipe_for
from tests.pipeline.filter_builds import blob_build, blob_job, hashes, masks_files, refilter, rows
from tests.pipeline.test_cli import complaint, run

TWO = config("run.unit_size=2", "generate.points_per_side=4")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small pictures: three units."""
    return images(tmp_path_factory.mktemp("filter") / "in", 8)


@pytest.fixture(scope="module")
def few(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the drawings, and the file that is no picture."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("0.png", "1.png", "2.png", "bad.jpg"):
        shutil.copy2(photos / name, folder / name)
    return folder


def test_a_build_that_is_not_finished(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is committed is filtered; `generate` takes the filter along, and closes the build with both."""
    out = tmp_path / "b"
    cfg = config("generate.points_per_side=3")
    opened = open_build(recipe_for(source, cfg), out, append=False)
    job = new_job(recipe_for(source, cfg), opened.build, "cpu")
    run_tasks(job, [Task(unit) for unit in opened.pending[:1]], LocalEngine(inside=True), print)
    build = Build(out)
    strict = FilterConfig(0.5, 0.7, box_nms_thresh=0.5)
    assert refilter(build, "strict", strict) == drive.DONE
    assert "other units of" in capsys.readouterr().err and not (out / "_SUCCESS").exists()
    assert len(hashes(build, "strict")) == 1 and close_build(out) == "incomplete"
    code = drive.generate(recipe_for(source, cfg), str(out), LocalEngine(inside=True), "cpu", append=False, quiet=True)
    assert code == drive.DONE and (out / "_SUCCESS").exists()
    assert len(hashes(build, "strict")) == 3 and list(verify(out, quick=False)) == []

    grown = Path(shutil.copytree(source, tmp_path / "in"))
    shutil.copytree(out, tmp_path / "c")
    images(grown, 10)
    for path in source.iterdir():  # the old ones as they were
        shutil.copy2(path, grown / path.name)
    recipe = recipe_for(grown, cfg)
    assert drive.generate(recipe, str(tmp_path / "c"), LocalEngine(inside=True), "cpu", append=True, quiet=False) == 0
    said = capsys.readouterr()
    assert "filter strict: applied to 1 units, 0 -> " in said.err and "filter      strict: " in said.out
    assert len(hashes(Build(tmp_path / "c"), "strict")) == 4 and list(verify(tmp_path / "c", quick=False)) == []


class StoppedAfter(LocalEngine):
    """SIGTERM comes as a task of one ledger is done: while the last of them drains."""

    def __init__(self, ledger: str) -> None:
        super().__init__(inside=True)
        self.ledger = ledger

    def run(self, job: Job, tasks: list[Task]) -> Iterator[Receipt]:
        for receipt in super().run(job, tasks):
            if tasks[0].ledger == self.ledger:
                os.kill(os.getpid(), signal.SIGTERM)
            yield receipt


def test_a_stop_before_the_filters_have_followed_is_resumable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though every unit is committed: exit 75 until the last filter is done."""
    out, recipe = tmp_path / "b", recipe_for(images(tmp_path / "in", 4), config("generate.points_per_side=2"))
    opened = open_build(recipe, out, append=False)
    run_tasks(new_job(recipe, opened.build, "cpu"), [Task(opened.pending[0])], LocalEngine(inside=True), print)
    build = Build(out)
    for name in ("a", "b"):
        assert refilter(build, name, FilterConfig(0.5, 0.7)) == drive.DONE

    def generate(engine: Engine) -> tuple[int, str]:
        code = drive.generate(recipe, str(out), engine, "cpu", append=False, quiet=True)
        return code, capsys.readouterr().err

    code, said = generate(StoppedAfter("images"))
    assert code == drive.RESUMABLE and "stopped; 1 units are left; the same command continues" in said
    assert [len(outdated(build, name)) for name in ("a", "b")] == [1, 1]
    code, said = generate(StoppedAfter("masks.a"))
    assert code == drive.RESUMABLE and "stopped; 1 units are left" in said
    assert [len(outdated(build, name)) for name in ("a", "b")] == [0, 1] and not (out / "_SUCCESS").exists()
    assert generate(StoppedAfter("masks.b"))[0] == drive.DONE and (out / "_SUCCESS").exists(), "nothing is left"


def test_a_build_that_others_have_to_do_with_is_named_as_what_it_is(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another driver adds units, or does some again, while this one finds nothing to do."""
    build = blob_build(source, tmp_path / "b")
    (build.path / "_SUCCESS").unlink()
    for closed, words in (("others", "still at work on"), ("incomplete", "still to do"), ("filters", "masks by")):
        with monkeypatch.context() as patch:
            patch.setattr(drive, "close_build", lambda build, closed=closed: closed)
            code = drive.go_over(build.path, 3, config().run, LocalEngine(inside=True), print)
        said = capsys.readouterr()
        assert code == drive.DONE and words in said.err and said.out == ""
    assert drive.go_over(build.path, 3, config().run, LocalEngine(inside=True), print) == drive.DONE
    assert capsys.readouterr().out == f"{build.path} is finished: 3 units; nothing to do\n"


@pytest.fixture
def redone(few: Path, tmp_path: Path) -> Build:
    """A build of real masks with a filter, in which one good image was set aside."""
    out, recipe = tmp_path / "b", recipe_for(few, TWO)
    opened = open_build(recipe, out, append=False)
    tasks = [Task(unit).without("0.png", "ProcessDied: of nothing") for unit in opened.pending]
    run_tasks(new_job(recipe, opened.build, "cpu"), tasks, LocalEngine(inside=True), print)
    assert close_build(out) == "closed"
    build = Build(out)
    assert refilter(build, "strict", FilterConfig(0.5, 0.7)) == drive.DONE
    assert build.images()["status"].to_pylist().count("quarantined") == 2
    return build


def test_retry_filters_the_redone_unit_again(redone: Build, few: Path, tmp_path: Path) -> None:
    before, out = rows(redone, "strict"), Path(str(redone.path))
    words = complaint(run("retry", out, "--engine", "local", "--set", "run=5"))
    assert "config section 'run' is 5: expected a mapping of keys" in words
    gone = tmp_path / "gone"  # a build knows its images by their names in a folder that may be moved
    info = json.loads((out / "build.json").read_text())
    (out / "build.json").write_text(json.dumps(info | {"inputs": info["inputs"] | {"url": str(gone)}}))
    plan = read_plan(redone.path / "plan.parquet")
    write_plan(redone.path / "plan.parquet", [replace(unit, url=str(gone)) for unit in plan], replace_old=True)
    assert "no such file or folder" in complaint(run("retry", out, "--engine", "local"))
    done = run("retry", out, "--engine", "local", "--images", few)
    assert done.exit_code == 0, done.output
    assert read_plan(redone.path / "plan.parquet") == plan  # where the images are now, for verify
    assert "1 of 2 are done now" in done.stdout
    assert "filter strict: applied to 2 units, " in done.stdout  # bad.jpg stays, so its unit is redone too
    fresh = nano_build(few, tmp_path / "fresh", replace(TWO, filter=FilterConfig(0.5, 0.7)))
    assert rows(redone, "strict").equals(rows(fresh)) and rows(fresh).num_rows > before.num_rows
    assert [p.name for p in sorted((out / "ledger/masks.strict").glob("*@2.json"))] == [
        p.name for p in sorted((out / "ledger/images").glob("*@2.json"))
    ]
    assert masks_files(out, "strict") == {m.files["masks/strict"].path for m in redone.manifests("masks/strict")}
    assert (out / "_SUCCESS").exists() and list(verify(out, quick=False)) == []


def test_masks_of_an_older_manifest_are_known_and_mended(redone: Build, capsys: pytest.CaptureFixture[str]) -> None:
    """A retry that was killed before it came to the filters: verify, status, retry and filter all see it."""
    out = Path(str(redone.path))
    job = new_job(recipe_of(redone, {}, None), redone.path, "cpu")
    run_tasks(job, retry_tasks(out), LocalEngine(inside=True), print)
    units = [task.unit.unit for task in filter_tasks(redone, "strict")]
    assert sorted(units) == sorted(outdated(redone, "strict")) and len(units) == 2
    assert close_build(out) == "filters" and not (out / "_SUCCESS").exists()
    stale = [line for line in verify(out, quick=True) if "of an older manifest" in line]
    assert len(stale) == 2 and f"maskmill filter {out} --name strict" in stale[0]
    shown = run("status", out).stdout
    assert f"2 to do: maskmill filter {out} --name strict" in shown
    copy = Path(shutil.copytree(out, out.parent / "copy"))
    done = run("filter", copy, "--name", "strict", "--engine", "local")  # no settings: those it has
    assert done.exit_code == 0, done.output
    assert outdated(Build(copy), "strict") == [] and list(verify(copy, quick=False)) == []
    remove_quarantine = drive.retry(recipe_of(redone, {}, None), redone.path, LocalEngine(inside=True), "cpu", True)
    assert remove_quarantine == drive.DONE and outdated(redone, "strict") == []
    assert hashes(Build(copy), "strict") == hashes(redone, "strict")
    assert list(verify(out, quick=False)) == []


def test_an_older_filter_at_work_cannot_take_the_place_of_the_newer(redone: Build) -> None:
    """It began before the retry and commits after it: its manifest has a lower number and counts no more."""
    late = Task(filter_tasks_of(redone)[0].unit, 1, ledger="masks.late")
    job = new_job(recipe_of(redone, {}, None), redone.path, "cpu")
    run_tasks(job, retry_tasks(redone.path), LocalEngine(inside=True), print)
    cfg = FilterConfig(0.5, 0.7)
    assert refilter(redone, "late", cfg) == drive.DONE
    good = hashes(redone, "late")
    worker = LocalEngine(inside=True)
    assert [r.error for r in worker.run(filter_job(redone, "late", config().run), [late])] == [None]
    assert hashes(redone, "late") == good and outdated(redone, "late") == []
    assert Ledger(redone.path, "masks.late").redos()[late.unit.unit] == 2


def test_units_that_another_driver_commits_meanwhile(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next look sees them; this one does not fail."""
    out = tmp_path / "b"
    job, tasks = blob_job(source, out)
    ill = [task.without("0000.png", "ProcessDied: of nothing").without("0004.png", "the same") for task in tasks]
    run_tasks(job, ill, LocalEngine(inside=True), print)
    manifest, build, listed = out / "ledger/images/000000.json", Build(out), Ledger.redos

    def redos(ledger: Ledger) -> dict[str, int]:
        found = listed(ledger)
        if ledger.name == "images" and not manifest.exists():
            (out / "aside").rename(manifest)
        return found

    monkeypatch.setattr(Ledger, "redos", redos)
    for look in (lambda: retry_tasks(out), lambda: filter_tasks(build, "strict")):
        manifest.rename(out / "aside")
        units = [task.unit.unit for task in look()]
        assert "000001" in units and "000000" not in units
        assert {task.unit.unit for task in look()} == {"000000", *units}


def filter_tasks_of(build: Build) -> list[Task]:
    """Tasks of a filter of that the build knows nothing, for units that retry does again."""
    ill = {m.unit for m in build.manifests() if m.quarantined}
    return [task for task in filter_tasks(build, "late") if task.unit.unit in ill]
