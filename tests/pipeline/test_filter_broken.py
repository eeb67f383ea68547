"""What a filter says of broken files and bad input, and what `verify` finds in one that was tampered with."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from maskmill.config import FilterConfig
from maskmill.pipeline import drive
from maskmill.pipeline.engines.local import LocalEngine
from maskmill.pipeline.filtering.refilter import filter_job, filter_tasks
from maskmill.pipeline.generate import close_build
from maskmill.pipeline.retry import retry_tasks
from maskmill.pipeline.run import run_tasks
from maskmill.pipeline.supervisor import Supervisor
from maskmill.pipeline.unit import Job, Task
from maskmill.pipeline.verify import verify
from maskmill.storage.build import Build
from maskmill.storage.files import parquet_bytes
from maskmill.storage.ledger import DataFile
from tests.chaos.builds import images
from tests.pipeline.conftest import build as nano_build
from tests.pipeline.conftest import config
from tests.pipeline.filter_builds import STRICT, blob_build, blob_job, hashes, refilter
from tests.pipeline.test_cli import complaint, run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small pictures: three units."""
    return images(tmp_path_factory.mktemp("filter") / "in", 8)


@pytest.fixture
def made(source: Path, tmp_path: Path) -> Build:
    return blob_build(source, tmp_path / "b")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["missing", "changed"])
def test_a_broken_candidates_file_costs_its_unit_alone(
    how: str, made: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(str(made.path))
    victim = out / made.newest("000001").files["candidates"].path
    aside = victim.rename(out.parent / "aside")
    if how == "changed":
        shutil.copy(aside, victim)
        damage(victim)
    assert refilter(made, "strict", STRICT) == drive.FAILED
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "unit 000001:" in line]
    words = "is missing" if how == "missing" else "is not the file that was committed"
    assert f"candidates/{victim.name} {words}: restore it from a copy" in line
    assert sorted(hashes(made, "strict")) == ["000000", "000002"]
    aside.replace(victim)
    assert refilter(made, "strict", STRICT) == drive.DONE
    assert len(hashes(made, "strict")) == 3 and list(verify(out, quick=False)) == []


@pytest.mark.parametrize("table", ["images", "candidates", "masks/default"])
def test_a_redo_copies_no_rows_of_a_damaged_file(table: str, source: Path, tmp_path: Path) -> None:
    """Its unit alone is left; once the file is restored, the same redo is done."""
    out = tmp_path / "b"
    job, tasks = blob_job(source, out)
    ill = [task.without("0000.png", "ProcessDied: of nothing").without("0004.png", "the same") for task in tasks]
    run_tasks(job, ill, LocalEngine(inside=True), print)
    build = Build(out)
    victim = out / build.newest("000001").files[table].path
    good = victim.read_bytes()
    damage(victim)
    left = retry_tasks(out)
    assert [task.unit.unit for task in left] == ["000000", "000001"]
    receipts = {r.unit: r.error for r in LocalEngine(inside=True).run(job, left)}
    words = f"DamagedFile: {table}/{victim.name} is not the file that was committed: restore it from a copy"
    assert receipts == {"000000": None, "000001": words}
    victim.write_bytes(good)
    assert [r.error for r in LocalEngine(inside=True).run(job, retry_tasks(out))] == [None]
    assert close_build(out) == "closed" and list(verify(out, quick=False)) == []


def test_a_worker_that_dies_costs_its_unit_alone(made: Build) -> None:
    """No image is blamed or set aside: the unit is left, and the words say how the process died."""
    refilter(made, "strict", STRICT)
    job = replace(filter_job(made, "strict", config().run), worker="tests.pipeline.test_filter_broken:DyingWorker")
    task = Task(filter_tasks(made, "other")[0].unit, 1, ledger="masks.other")
    supervisor = Supervisor(replace(job, filter_name="other"))
    try:
        receipt = supervisor.run(task)
    finally:
        supervisor.close()
    assert receipt.deaths == 3 and receipt.error is not None and "killed by SIGKILL" in receipt.error
    assert list((made.path / "attempts").glob("verdict-*")) == []


class DyingWorker:
    """As the kernel's OOM killer leaves it."""

    def __init__(self, job: Job) -> None:
        pass

    def run(self, task: Task, report: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def reseal(build: Build, table: pa.Table, **changes: object) -> None:
    """Put another file in the place of the masks of unit 000000 by the filter `strict`, with a manifest that fits."""
    out, manifest = Path(str(build.path)), build.newest("000000", "masks/strict")
    path = manifest.files["masks/strict"].path
    file = DataFile.write(build.path, path, table.num_rows, parquet_bytes(table, ["image_id", "mask_id"], {}))
    resealed = replace(manifest, files={"masks/strict": file}, **{"masks": table.num_rows, **changes})  # type: ignore[arg-type]
    (out / "ledger/masks.strict/000000.json").write_bytes(resealed.to_json())


def test_verify_catches_a_second_filter_that_was_tampered_with(made: Build) -> None:
    out = Path(str(made.path))
    refilter(made, "strict", STRICT)
    table = made.read_unit(made.newest("000000", "masks/strict"), "masks/strict")
    shutil.copytree(out, clean := out.parent / "clean")

    def broken(how: Callable[[], object]) -> list[str]:
        shutil.rmtree(out)
        shutil.copytree(clean, out)
        how()
        return list(verify(out, quick=False))

    def altered(**changes: object) -> pa.Table:
        first, *others = table.to_pylist()
        return pa.Table.from_pylist([{**first, **changes}, *others], schema=table.schema)

    file = out / made.newest("000000", "masks/strict").files["masks/strict"].path
    assert table.num_rows > 2 and broken(lambda: None) == []
    (line,) = broken(lambda: damage(file))
    assert f"masks/strict/{file.name} is not the file that was committed" in line
    (line,) = broken(file.unlink)
    assert f"masks/strict/{file.name} is missing" in line
    lines = broken(lambda: reseal(made, altered(mask_id=-1)))
    assert any("masks/strict: mask_id -1 is not among the candidates" in line for line in lines)
    lines = broken(lambda: reseal(made, altered(area=int(table["area"][0].as_py()) + 1)))
    assert any("masks/strict: image_id" in line and "area is" in line for line in lines)
    lines = broken(lambda: reseal(made, altered(image_id=5)))
    assert any("masks/strict has masks of image_id 5" in line for line in lines)
    lines = broken(lambda: reseal(made, table.drop_columns(["meta"])))
    assert any("has another schema" in line for line in lines)
    lines = broken(lambda: reseal(made, table, masks=table.num_rows + 1))
    assert any("masks/strict: its manifest says" in line for line in lines)
    lines = broken(lambda: reseal(made, table, read_sha256="0" * 64))
    assert any("filter strict: the masks of unit 000000 are of an older manifest" in line for line in lines)
    lines = broken((out / "ledger/masks.strict/000001.json").unlink)
    assert any("filter strict: unit 000001 has no masks yet" in line for line in lines)
    lines = broken(lambda: (out / "filters/strict.yaml").write_text("pred_iou: 3"))
    assert any("filter strict: its settings cannot be read: unknown config key" in line for line in lines)


def test_a_damaged_manifest_is_named_and_the_rest_is_verified(made: Build) -> None:
    """And nothing that reads it ends in a traceback, or takes its files for orphans."""
    out = Path(str(made.path))
    refilter(made, "strict", STRICT)
    damage(out / made.newest("000001").files["images"].path)
    for ledger, manifest in (("images", "000000"), ("masks.strict", "000002")):
        (out / "ledger" / ledger / f"{manifest}.json").write_text('{"unit": "0')
    first, second, third = verify(out, quick=False)
    assert f"unit 000000: {str(out / 'ledger/images/000000.json')!r} is damaged (JSONDecodeError: " in first
    assert f"unit 000002: {str(out / 'ledger/masks.strict/000002.json')!r} is damaged" in second
    assert "unit 000001: images/" in third and "is not the file that was committed" in third
    for command in (["status", out], ["gc", out], ["filter", out, "--name", "strict", "--engine", "local"]):
        assert ".json' is damaged" in complaint(run(*command))


@pytest.mark.parametrize("name", ["build.json", "plan.parquet"])
@pytest.mark.parametrize("content", [b"", b'{"recipe": 1', b"[3]", b"PAR1 and PAR1"])
def test_a_build_without_its_first_files_is_named(made: Build, name: str, content: bytes) -> None:
    """Nothing ends in a traceback."""
    out = Path(str(made.path))
    refilter(made, "strict", STRICT)
    (out / name).write_bytes(content)
    commands = [["status"], ["verify"]]
    if name == "build.json":
        export = ["export", str(out.parent / "x"), "--format", "coco"]
        commands += [["retry"], ["filter", "--name", "other"], ["diff", "default", "strict"], export]
    for command, *more in commands:
        assert f"{str(out / name)!r} is damaged (" in complaint(run(command, out, *more))


def test_damaged_settings_of_a_filter_are_named(made: Build) -> None:
    out = Path(str(made.path))
    refilter(made, "strict", STRICT)
    (out / "filters/strict.yaml").write_text("pred_iou_thresh: [0.6")
    (line,) = verify(out, quick=True)
    assert (
        "filter strict: its settings cannot be read" in line and f"{str(out / 'filters/strict.yaml')!r} is not" in line
    )
    assert "strict.yaml' is not YAML" in complaint(run("diff", out, "default", "strict"))


# --- Words -----------------------------------------------------------------------------------------------------------


def test_bad_input(made: Build) -> None:
    out = Path(str(made.path))
    refilter(made, "strict", STRICT)
    files = {p for p in out.rglob("*") if p.is_file()}
    for more, words in (
        (("--name", "a/b"), "--name 'a/b': give letters, digits"),
        (("--name", "strict", "--set", "filter.min_area=21"), "--name 'strict' is taken by another filter of"),
        (("--name", "default", "--set", "filter.min_area=21"), "--name 'default' is taken"),
        (("--name", "low", "--set", "filter.pred_iou_thresh=0.2"), "below the floor generate.floor_pred_iou=0.25"),
        (("--name", "low", "--set", "filter.stability_score_thresh=0"), "below the floor generate.floor_stability=0.6"),
        (("--name", "x", "--set", "filter.min_aera=2"), "did you mean 'min_area'?"),
        (("--name", "x", "--set", "generate.points_per_side=2"), "only filter.* and run.* can be set"),
        (("--name", "x", "--set", "filter=5"), "config section 'filter' is 5: expected a mapping of keys"),
        (("--name", "x", "--set", "run=[1]"), "config section 'run' is [1]: expected a mapping of keys"),
        (("--name", "x", "--filter", "sa1bb"), "unknown filter config 'sa1bb': did you mean 'sa1b'?"),
        (("--name", "x", "--filter", "nowhere.yaml"), "'nowhere.yaml' does not exist"),
        (("--name", "x", "--set", "filter.sample=2"), "filter.sample is 2: it must lie in (0, 1]"),
    ):
        assert words in complaint(run("filter", out, "--engine", "local", *more)), more
    taken = complaint(run("filter", out, "--name", "strict", "--filter", "sa1b", "--engine", "local"))
    assert "pred_iou_thresh: 0.6 -> 0.88" in taken and "min_area: 20 -> 0" in taken
    assert {p for p in out.rglob("*") if p.is_file()} == files, "a refusal writes nothing"
    assert "is not a build" in complaint(run("filter", out.parent, "--name", "x"))
    assert run("filter", out).exit_code == 2, "--name is asked for"


def test_without_candidates(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy2(photos / "0.png", tmp_path / "in")
    nano_build(tmp_path / "in", tmp_path / "b", config("generate.points_per_side=2"), candidates=False)
    line = complaint(run("filter", tmp_path / "b", "--name", "x", "--engine", "local"))
    assert "--no-candidates" in line and not (tmp_path / "b/filters/x.yaml").exists()


def test_where_settings_come_from(made: Build, tmp_path: Path) -> None:
    """Without --filter the build's own, with it those of a new build; --set on top; all of it in filters/NAME.yaml."""
    out = Path(str(made.path))

    def stored(name: str, *more: str) -> dict[str, object]:
        done = run("filter", out, "--name", name, "--engine", "local", "--quiet", *more)
        assert done.exit_code == 0, done.output
        tree: dict[str, object] = yaml.safe_load((out / "filters" / f"{name}.yaml").read_text())
        return tree

    own = yaml.safe_load((out / "filters/default.yaml").read_text())
    assert own["pred_iou_thresh"] == 0.4, "nano's recommendation"
    assert stored("one", "--set", "filter.min_area=7") == own | {"min_area": 7}
    (tmp_path / "f.yaml").write_text("box_nms_thresh: 0.5")
    assert stored("two", "--filter", str(tmp_path / "f.yaml")) == own | {"box_nms_thresh": 0.5}
    assert stored("three", "--filter", "sa1b", "--set", "filter.tokens=[0]")["tokens"] == [0]
    said = run("filter", out, "--name", "default", "--engine", "local")
    assert said.exit_code == 0 and "is the filter that it was built with; nothing to do" in said.stdout


def test_a_build_of_before_the_new_rules_goes_on(source: Path, tmp_path: Path) -> None:
    """build.json and filters/*.yaml that know six settings: the others are off."""
    out = tmp_path / "b"
    made = blob_build(source, out)
    refilter(made, "strict", FilterConfig(0.6, 0.8))
    info = json.loads((out / "build.json").read_text())
    known = ["name", "pred_iou_thresh", "stability_score_thresh", "max_area_share", "box_nms_thresh", "crop_nms_thresh"]
    info["filter"] = {name: info["filter"][name] for name in [*known, "min_mask_region_area"]}
    (out / "build.json").write_text(json.dumps(info))
    (out / "filters/strict.yaml").write_text("pred_iou_thresh: 0.6\nstability_score_thresh: 0.8\n")
    assert blob_job(source, out)[1] == [], "the recipe is the same"
    assert refilter(Build(out), "strict", FilterConfig(0.6, 0.8)) == drive.DONE
    assert list(verify(out, quick=False)) == []
