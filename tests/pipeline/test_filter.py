"""`maskmill filter` on whole builds: promise 5, kills, races, and what the build knows of its filters."""

import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from maskmill.config import FilterConfig, to_tree
from maskmill.errors import UserError
from maskmill.pipeline import drive
from maskmill.pipeline.attempts import read_attempts
from maskmill.pipeline.engines.ray import RayEngine
from maskmill.pipeline.filtering.refilter import lagging
from maskmill.pipeline.generate import close_build, collect_orphans, orphans
from maskmill.pipeline.status import read_status
from maskmill.pipeline.verify import verify
from maskmill.storage.build import Build
from maskmill.storage.ledger import Ledger
from tests.chaos.builds import images, wait_for
from tests.pipeline.conftest import build as nano_build
from tests.pipeline.conftest import config
from tests.pipeline.filter_builds import CROPS, LOOSE, PLAIN, STRICT, blob_build, hashes, masks_files, refilter, rows
from tests.unit.filters.blobs import filters

UNITS = 40


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small pictures: three units."""
    return images(tmp_path_factory.mktemp("filter") / "in", 8)


@pytest.fixture
def made(source: Path, tmp_path: Path) -> Build:
    return blob_build(source, tmp_path / "b")


@pytest.fixture(scope="module")
def few(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the drawings, and the file that is no picture."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("0.png", "1.png", "2.png", "bad.jpg"):
        shutil.copy2(photos / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of UNITS units, filtered once without trouble."""
    base = tmp_path_factory.mktemp("many")
    made = blob_build(images(base / "in", UNITS), base / "b", ("run.unit_size=1", *PLAIN))
    assert refilter(made, "strict", STRICT) == drive.DONE
    return base / "b"


# --- Promise 5 -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[PLAIN, CROPS], ids=["plain", "crops"])
def pair(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Build, tuple[str, ...]]:
    """A build to be filtered again and again, and its settings."""
    return blob_build(source, tmp_path_factory.mktemp("pair") / "b", request.param), request.param


@settings(
    max_examples=12, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(cfg=filters)
def test_a_rerun_equals_a_fresh_build(
    pair: tuple[Build, tuple[str, ...]], source: Path, tmp_path_factory: pytest.TempPathFactory, cfg: FilterConfig
) -> None:
    """Rows, and the very bytes of the files: stricter and looser than the build's own, any rule on or off."""
    build, how = pair
    name = f"f{len(build.filters)}"
    assert refilter(build, name, cfg) == drive.DONE
    fresh = blob_build(source, tmp_path_factory.mktemp("fresh") / "b", how, cfg)
    assert rows(build, name).equals(rows(fresh)) and rows(build).num_rows > 0
    assert hashes(build, name) == hashes(fresh, "default")
    shutil.rmtree(fresh.path)


def test_real_candidates(few: Path, tmp_path: Path) -> None:
    """nano with crops; an image that cannot be read has no masks by any filter."""
    crops = ("generate.points_per_side=3", "generate.crop_n_layers=1")
    base = nano_build(few, tmp_path / "b", config(*crops))
    everything = replace(
        STRICT, nms_overlap="mask", min_mask_region_area=9, shared_pixels="smallest", score_quantile=0.1, sample=0.8
    )
    counts = [rows(base).num_rows]
    for name, cfg in {"everything": everything, "loose": LOOSE}.items():
        fresh = nano_build(few, tmp_path / name, replace(config(*crops), filter=cfg))
        assert refilter(base, name, cfg) == drive.DONE
        assert rows(base, name).equals(rows(fresh)) and hashes(base, name) == hashes(fresh, "default")
        assert base.candidates().equals(fresh.candidates())
        counts.append(rows(base, name).num_rows)
    assert 0 < counts[1] < counts[0] < counts[2] == base.candidates().num_rows
    assert base.filters == ["default", "everything", "loose"] and base.own_filter == "default"
    assert list(verify(tmp_path / "b", quick=False)) == []


def test_on_ray(cluster: None, made: Build) -> None:
    assert refilter(made, "strict", STRICT) == refilter(made, "by-ray", STRICT, RayEngine(config().run)) == drive.DONE
    assert hashes(made, "strict") == hashes(made, "by-ray") and rows(made, "strict").num_rows > 0


def test_the_worker_is_light() -> None:
    """No torch, no Ray, no numba until a rule asks for it: it starts at once and stays small."""
    code = "import sys, maskmill.pipeline.filtering.filter_worker"
    heavy = "print(sorted({'torch', 'ray', 'numba'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", f"{code}; {heavy}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- Again, killed, raced -------------------------------------------------------------------------------------------


def test_the_same_again_and_what_the_build_knows(made: Build, capsys: pytest.CaptureFixture[str]) -> None:
    assert made.filters == ["default"] and (made.path / "_SUCCESS").exists()
    assert refilter(made, "strict", STRICT) == drive.DONE
    files = {p: p.stat().st_mtime_ns for p in Path(str(made.path)).rglob("*") if p.is_file()}
    assert made.path / "_SUCCESS" in files
    assert refilter(made, "strict", STRICT) == drive.DONE
    assert "filter 'strict' of" in (said := capsys.readouterr().out) and "3 units; nothing to do" in said
    assert {p: p.stat().st_mtime_ns for p in Path(str(made.path)).rglob("*") if p.is_file()} == files
    assert yaml.safe_load((made.path / "filters/strict.yaml").read_text()) == to_tree(STRICT)
    assert made.filters == ["default", "strict"] and lagging(made) == []
    (status,) = read_status(made.path).filters
    assert (status.name, status.units, status.outdated) == ("strict", 3, 0)
    assert status.masks == rows(made, "strict").num_rows > 0
    sums = Ledger(made.path).digests()
    for manifest in made.manifests("masks/strict"):
        assert manifest.read_sha256 == sums[manifest.unit] and set(manifest.files) == {"masks/strict"}
    with pytest.raises(UserError, match="has no filter 'lax': it has default, strict"):
        made.masks("lax")
    assert list(verify(made.path, quick=False)) == []


def command(out: Path, *more: str) -> list[str]:
    """`maskmill filter --name again` with the settings of STRICT."""
    file = out.parent / "strict.yaml"
    file.write_text(yaml.safe_dump(to_tree(STRICT)))
    words = ["filter", str(out), "--name", "again", "--filter", str(file), "--engine", "local", *more]
    return [sys.executable, "-m", "maskmill.pipeline.cli", *words]


def test_killed_many_times_then_the_same_command(many: Path, tmp_path: Path) -> None:
    """SIGKILL of the driver at random moments: its worker lives on for a while, and may still commit."""
    out, rng, kills = Path(shutil.copytree(many, tmp_path / "b")), random.Random(3), 0
    ledger = Ledger(out, "masks.again")
    for _ in range(4):
        before = len(ledger.redos())
        driver = subprocess.Popen(command(out, "--quiet"), start_new_session=True)
        wait_for(lambda before=before, driver=driver: len(ledger.redos()) > before or driver.poll() is not None)
        time.sleep(rng.uniform(0, 0.03))
        driver.kill()
        kills += driver.wait() == -signal.SIGKILL
    assert kills >= 1 and len(ledger.redos()) > 0, "nothing was killed in its work"
    done = subprocess.run(command(out), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    build = Build(out)
    assert hashes(build, "again") == hashes(build, "strict") and len(hashes(build, "again")) == UNITS
    assert masks_files(out, "again") == {m.files["masks/again"].path for m in build.manifests("masks/again")}
    assert read_attempts(build.path) == [] and list(verify(out, quick=False)) == []
    again = subprocess.run(command(out), capture_output=True, text=True, timeout=60)
    assert again.returncode == 0 and "nothing to do" in again.stdout


def test_sigterm_and_two_drivers(many: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(many, tmp_path / "b"))
    ledger = Ledger(out, "masks.again")
    first = subprocess.Popen(command(out), stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: ledger.redos())
    first.terminate()
    _, said = first.communicate(timeout=60)
    assert first.returncode == drive.RESUMABLE and "the same command continues" in said, said
    assert 0 < len(ledger.redos()) < UNITS
    assert not (out / "_SUCCESS").exists(), "plain readers of masks/again would see a part"
    drivers = [subprocess.Popen(command(out, "--quiet"), start_new_session=True) for _ in range(2)]
    assert [d.wait(60) for d in drivers] == [0, 0]
    build = Build(out)
    assert hashes(build, "again") == hashes(build, "strict")
    assert close_build(out) == "closed" and list(verify(out, quick=False)) == []


def test_a_filter_at_work_is_left_alone_by_gc(made: Build) -> None:
    """Before its first commit only this tells its files from orphans: its ledger has no manifest of their unit."""
    out = Path(str(made.path))
    refilter(made, "strict", STRICT)
    for name in ("masks/other/000000-0badc0de.parquet", "masks/strict/000001-0badc0de.parquet"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"half")
    assert [p.name for p in orphans(out)] == ["000001-0badc0de.parquet"]
    assert sum("no manifest names it" in line for line in verify(out, quick=True)) == 1
    collect_orphans(made.path)
    assert (out / "masks/other/000000-0badc0de.parquet").exists() and orphans(out) == []
    assert masks_files(out, "default") == {m.files["masks/default"].path for m in made.manifests()}
