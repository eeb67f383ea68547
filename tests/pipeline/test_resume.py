"""Continue, refuse, append, and survive a kill."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.errors import UserError
from maskmill.pipeline import drive
from maskmill.pipeline.attempts import Attempt
from maskmill.pipeline.engines.local import LocalEngine
from maskmill.pipeline.generate import extend_plan, new_job, open_build, orphans, others_have_ended
from maskmill.pipeline.plan import Unit, compare, make_units, read_plan, write_plan
from maskmill.pipeline.retry import recipe_of, retry_tasks
from maskmill.pipeline.verify import verify
from maskmill.storage.build import Build
from maskmill.storage.files import at
from maskmill.storage.ledger import Ledger
from maskmill.storage.sources import scan
from tests.chaos.builds import recipe, run_local
from tests.pipeline.conftest import QUICK, build, config, drawing, make_tar, png, recipe_for, tables


def test_a_finished_build_has_nothing_pending_and_stays_as_it_is(photos: Path, tmp_path: Path) -> None:
    build(photos, tmp_path / "b")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "b").rglob("*") if p.is_file()}
    assert open_build(recipe_for(photos), tmp_path / "b", append=False).pending == []
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "b").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("missing", [["000000"], ["000001", "000002"], ["000000", "000001", "000002"]])
def test_any_committed_subset_resumes_to_the_same_rows(
    missing: list[str], photos: Path, reference: dict[str, pa.Table], tmp_path: Path
) -> None:
    build(photos, tmp_path / "b")
    for unit in missing:  # as if killed after writing the files, before the commit
        (tmp_path / "b" / "ledger" / "images" / f"{unit}.json").unlink()
    (tmp_path / "b" / "_SUCCESS").unlink()
    opened = open_build(recipe_for(photos), tmp_path / "b", append=False)
    assert sorted(u.unit for u in opened.pending) == missing
    made = build(photos, tmp_path / "b")
    assert tables(made) == reference
    assert orphans(tmp_path / "b") == [] and list(verify(tmp_path / "b", quick=False)) == []


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_sigkill_in_the_middle_then_the_same_command(
    engine: str, photos: Path, reference: dict[str, pa.Table], tmp_path: Path
) -> None:
    out = tmp_path / "b"
    command = [
        sys.executable,
        "-m",
        "maskmill.pipeline.cli",
        "generate",
        str(photos),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    command += ["--engine", engine, "--quiet", *(word for s in QUICK for word in ("--set", s))]
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    first = subprocess.Popen(command, env=env, start_new_session=True)
    deadline = time.monotonic() + 120
    while not Ledger(out).newest() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    committed = len(Ledger(out).newest())
    assert 1 <= committed < 3, "the kill came too late to test anything"
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert tables(Build(out)) == reference
    assert list(verify(out, quick=False)) == []
    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and "nothing to do" in again.stdout


def test_sigterm_exits_75_and_the_same_command_continues(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    command = [sys.executable, "-m", "maskmill.pipeline.cli", "generate", str(photos), "--out", str(out)]
    command += ["--engine", "local", "--quiet", *(word for s in QUICK for word in ("--set", s))]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not Ledger(out).newest():
        time.sleep(0.01)
    first.terminate()
    _, words = first.communicate(timeout=60)
    assert first.returncode == 75 and "the same command continues" in words


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("generate.points_per_side=6", "generate.points_per_side: 5 -> 6"),
        ("generate.precision=bfloat16", "generate.precision: float32 -> bfloat16"),
        ("filter.box_nms_thresh=0.5", "maskmill filter"),
    ],
)
def test_another_recipe_or_filter_is_refused(assignment: str, words: str, photos: Path, tmp_path: Path) -> None:
    build(photos, tmp_path / "b")
    with pytest.raises(UserError, match=words):
        open_build(recipe_for(photos, config(assignment)), tmp_path / "b", append=False)


def test_run_settings_may_change(photos: Path, tmp_path: Path) -> None:
    build(photos, tmp_path / "b")
    assert open_build(recipe_for(photos, config("run.unit_size=1")), tmp_path / "b", append=False).pending == []


def test_changed_and_gone_inputs_are_refused(photos: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(photos, tmp_path / "in")
    build(mine, tmp_path / "b")
    original = (mine / "0.png").read_bytes()
    (mine / "0.png").write_bytes(original + b"more")
    with pytest.raises(UserError, match="1 changed"):
        open_build(recipe_for(mine), tmp_path / "b", append=False)
    (mine / "0.png").unlink()
    with pytest.raises(UserError, match=r"1 gone \(first: 0.png\)"):
        open_build(recipe_for(mine), tmp_path / "b", append=False)


def test_append_keeps_old_units_and_adds_new_ones(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    make_tar(folder / "b.tar", {"1.png": png(drawing(1))})
    old = build(folder, tmp_path / "b")
    before = {m.unit: m.files for m in old.manifests()}
    make_tar(folder / "a.tar", {"2.png": png(drawing(2))})
    with pytest.raises(UserError, match="--append"):
        open_build(recipe_for(folder), tmp_path / "b", append=False)
    new = build(folder, tmp_path / "b", append=True)
    after = {m.unit: m.files for m in new.manifests()}
    assert {unit: after[unit] for unit in before} == before and len(after) == 2
    assert sorted(new.images()["shard"].to_pylist()) == ["a.tar", "b.tar"]
    assert list(verify(tmp_path / "b", quick=False)) == []


def test_verify_names_what_is_broken(photos: Path, tmp_path: Path) -> None:
    made = build(photos, tmp_path / "b")
    victim = tmp_path / "b" / made.manifests()[1].files["masks/default"].path
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    (tmp_path / "b" / "ledger" / "images" / "000002.json").unlink()
    problems = list(verify(tmp_path / "b", quick=False))
    assert any(victim.name in p and "not the file that was committed" in p for p in problems)
    assert any("unit 000002: not committed yet" in p for p in problems)


def test_a_build_inside_its_images_is_refused(photos: Path) -> None:
    with pytest.raises(UserError, match="lies inside the images"):
        open_build(recipe_for(photos), photos / "masks", append=False)
    assert not (photos / "masks").exists()


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Path, Build, list[Unit]]:
    """A folder of two tars, a build of the first, and the unit that --append would add."""
    folder = tmp_path / "in"
    make_tar(folder / "a.tar", {"1.png": png(drawing(1))})
    run_local(folder, tmp_path / "b", inside=True)
    made = Build(tmp_path / "b")
    make_tar(folder / "b.tar", {"2.png": png(drawing(2))})
    new = compare(read_plan(made.path / "plan.parquet"), scan(str(folder))).new
    return folder, made, make_units(new, 3, first=1)


def test_of_two_appends_at_once_one_is_refused(grown: tuple[Path, Build, list[Unit]]) -> None:
    """They would give the same number to other units; what add the same units may both go on."""
    _, made, new = grown
    plan = read_plan(made.path / "plan.parquet")
    others = [replace(unit, shard="c.tar") for unit in new]
    extend_plan(made.path, plan, new)
    with pytest.raises(UserError, match="another --append"):
        extend_plan(made.path, plan, others)
    extend_plan(made.path, plan, new)
    assert read_plan(made.path / "plan.parquet") == [*plan, *new]
    (made.path / "attempts/append-000001.parquet").unlink()  # as gc does with an old one
    extend_plan(made.path, plan, others)
    assert read_plan(made.path / "plan.parquet") == [*plan, *new], "numbers that are given are not given again"


def test_a_refused_append_leaves_the_build_as_it_was(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "b"
    folder.mkdir()
    pq.write_table(pa.table({"image": [png(drawing(1))]}), folder / "a.parquet")
    run_local(folder, out, inside=True)
    pq.write_table(pa.table({"words": ["no image"]}), folder / "b.parquet")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="image column"):
        open_build(recipe(folder), out, append=True)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("killed", [True, False])
def test_an_append_that_was_cut_short_goes_on(
    killed: bool, grown: tuple[Path, Build, list[Unit]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its claim and its plan, or its plan could not be written: the same command does it."""
    folder, made, new = grown
    claim = made.path / "attempts/append-000001.parquet"
    if killed:
        assert write_plan(claim, [*read_plan(made.path / "plan.parquet"), *new])
    else:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
            patch.setattr("maskmill.pipeline.plan.write_bytes", full_disk)
            open_build(recipe(folder), made.path, append=True)
        assert not claim.exists()
    assert [unit.unit for unit in open_build(recipe(folder), made.path, append=True).pending] == ["000001"]
    assert not run_local(folder, made.path, inside=True).left and made.images().num_rows == 2
    assert list(verify(made.path, quick=False)) == []


def full_disk(*_: object) -> None:
    raise OSError("the disk is full")


def test_a_build_is_not_closed_beside_another_run(tmp_path: Path) -> None:
    attempt = Attempt(at(tmp_path), "000000", "other")
    assert not others_have_ended(at(tmp_path), most=0.1)
    attempt.done()
    assert others_have_ended(at(tmp_path), most=0.1)


def test_retry_refuses_a_tar_that_was_mended_meanwhile(tmp_path: Path) -> None:
    """Its `@byte=N` is gone: a row would be lost."""
    whole = make_tar(tmp_path / "whole.tar", {f"{i}.png": png(drawing(i)) for i in range(3)})
    cut = tmp_path / "in" / "cut.tar"
    cut.parent.mkdir()
    cut.write_bytes(whole.read_bytes()[:1300])
    made = build(cut, tmp_path / "b")
    rows = made.images()
    cut.write_bytes(whole.read_bytes())
    with pytest.raises(UserError, match="1 changed"):
        drive.retry(recipe_of(made, {}, None), made.path, LocalEngine(inside=True), "cpu", quiet=True)
    (task,) = retry_tasks(tmp_path / "b")
    job = new_job(recipe_for(cut), made.path, "cpu")
    (receipt,) = LocalEngine(inside=True).run(job, [task])
    assert receipt.error is not None and "no longer holds '@byte=" in receipt.error
    assert Build(tmp_path / "b").images() == rows
