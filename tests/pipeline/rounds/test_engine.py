"""The data engine as a user runs it: three stages, and what must hold whatever they measure."""

import hashlib
import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from maskmill import Build
from maskmill.errors import UserError
from maskmill.pipeline.engines.local import LocalEngine
from maskmill.pipeline.rounds import watch
from maskmill.pipeline.rounds.config import read_engine_config
from maskmill.pipeline.rounds.data import EngineImages
from maskmill.pipeline.rounds.gate import worse
from maskmill.pipeline.rounds.pack import stem
from maskmill.pipeline.rounds.run import DataEngine
from maskmill.pipeline.rounds.watch import Watch
from tests.pipeline.exchange import complaint, done, export, import_, run
from tests.pipeline.rounds.conftest import Made
from tests.pipeline.rounds.engine import ROUNDS, SABOTAGE, open_images, records, run_here, write_config
from tests.unit.training.sets import write_set


def test_three_stages(made: Made) -> None:
    """Every round has its record; masks come with their lineage; the models follow one another."""
    found = records(made.out)
    assert tuple(sorted(found)) == tuple(sorted(ROUNDS))
    assisted, semi, automatic = (found[name] for name in ROUNDS[1:])
    assert assisted["model_in"] == found["start-0"]["model_out"]
    assert semi["model_in"] == assisted["model_out"] and automatic["model_in"] == semi["model_out"]
    for record, name in ((assisted, "assisted-1"), (semi, "semi-1")):
        masks = Build(made.out / "rounds" / name / "masks").masks().to_pylist()
        assert len(masks) == record["annotation"]["masks"]
        for row in masks:
            meta = json.loads(row["meta"])
            assert meta["model"] == row["model"] and row["model"].endswith(record["model_in"]["sha256"][:8])
            assert row["source"] == record["stage"] and meta["round"] == name
            assert meta["edit"] in ("drawn", "accepted", "fixed") and meta["annotator"].startswith("simulated-")
    assert assisted["annotation"]["masks"] > 0 and assisted["annotation"]["prefilled"] == 0
    assert semi["annotation"]["prefilled"] > 0, "nothing was prefilled: the semi-automatic stage was not tested"
    shown = semi["annotation"]
    assert shown["prefilled"] == shown["accepted"] + shown["fixed"] + shown["rejected"]
    assert 0 <= semi["detector"]["recall"]["all"] <= semi["detector"]["recall_50"] <= 1
    assert automatic["quality"]["objects"] > 0 and Build(made.out / "automatic").masks().num_rows == automatic["masks"]
    for name in ROUNDS[:3]:
        metrics, times = found[name]["metrics"], json.loads((made.out / "rounds" / name / "timing.json").read_bytes())
        assert 0 < metrics["miou"]["1"]["mean"] < 1 and metrics["recall"]["all"] is not None
        assert all(step["seconds"] >= 0 for step in times.values()) and "measure" in times


def pixels(found: np.ndarray) -> str:
    return hashlib.sha256(found.tobytes()).hexdigest()


def test_held_out_images_are_nowhere_in_the_rounds(made: Made) -> None:
    """Neither by name nor by content: not shown to annotators, not learned from by model or detector."""
    images = open_images(made.config, made.out)
    held = {pixels(images.held_out.read(i).image) for i in range(len(images.held_out.names))}
    assert len(held) == 2 and len(images.whole.names) == 8
    shown: set[str] = set()
    for name in ("assisted-1", "semi-1"):
        folder = made.out / "rounds" / name
        with tarfile.open(folder / "images.tar") as tar:
            files = [tar.extractfile(member) for member in tar]
            shown |= {pixels(np.array(Image.open(io.BytesIO(f.read())))) for f in files if f is not None}
        trained = yaml.safe_load((folder / "train/config.yaml").read_text())["data"]["sources"]
        assert {Path(s["path"]).parent.name for s in trained} <= {"assisted-1", "semi-1"}
    assert len(shown) == 4, "two images a round, none twice"
    assert not shown & held
    assert records(made.out)["semi-1"]["detector"]["rounds"] == ["assisted-1"]


def test_a_finished_run_is_left_as_it_is(made: Made) -> None:
    before = {p: p.stat().st_mtime_ns for p in made.out.rglob("*") if p.is_file()}
    done("engine", "run", made.config, "--out", made.out, "--engine", "local")
    assert {p: p.stat().st_mtime_ns for p in made.out.rglob("*") if p.is_file()} == before
    assert all(name in done("engine", "status", made.out).output for name in ROUNDS)


def test_another_config_is_refused(made: Made) -> None:
    words = ("engine", "run", made.config, "--out", made.out, "--set")
    assert "config.train.optim.steps: 6 -> 7" in complaint(run(*words, "train.optim.steps=7"))
    assert "config.seed: 0 -> 1" in complaint(run(*words, "seed=1"))


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("assisted.images=20", "fewer images in each"),
        ("annotators.patience_s=1", "too short for a single click"),
        ("queue.leases=5", "did you mean"),
        ("queue.processes=-1", "at least 0"),
        ("data.kinds=[cats]", "'cats' is no kind of scene"),
        ("data.source=/nowhere", "exactly one of source"),
        ("train=finetun", "did you mean 'finetune'"),
        ("measure.clicks=[1, 3]", "clicks lack 5"),
        ("train.data.sources=[{path: x}]", "leave it out"),
        ("train.model.checkpoint=x.pth", "model.checkpoint is the first one"),
        ("train.run.embeddings=x", "keeps its own"),
        ("automatic.set=[generate.point_per_side=4]", "did you mean 'points_per_side'"),
        ("automatic.set=[model.name=vit_b]", "automatic.set has model.*"),
        ("automatic.set=[run.unit_size=1]", "automatic.set has run.*"),
        ("assisted.rounds=0", "no mask to learn from"),
        ("train_processes=2", "train.optim.images=1 cannot be shared evenly"),
        ("train.model.img_size=650", "multiple of the patches"),
    ],
)
def test_refused(tmp_path: Path, assignment: str, words: str) -> None:
    said = complaint(
        run("engine", "run", write_config(tmp_path), "--out", tmp_path / "run", "--dry-run", "--set", assignment)
    )
    assert words in said and not (tmp_path / "run").exists()


def test_a_dry_run_says_what_would_be_done(tmp_path: Path) -> None:
    shown = done("engine", "run", write_config(tmp_path), "--out", tmp_path / "run", "--dry-run").output
    assert "8 images" in shown and "2 held out" in shown and not (tmp_path / "run").exists()
    assert [line.split()[0] for line in shown.splitlines()[2:]] == list(ROUNDS[1:])
    assert "2 tasks for 2 annotators: detector 12 steps, prefill, annotate, train 6 steps, measure, gate" in shown
    for name in ("demo", "nuclei"):
        words = [] if name == "demo" else ["--set", f"data.source={write_set(tmp_path / 'set', 260, masks=False)}"]
        assert "automatic-1" in done("engine", "run", name, "--out", tmp_path / "run", "--dry-run", *words).output


def test_a_recipe_by_name_may_be_changed(tmp_path: Path) -> None:
    cfg = read_engine_config(str(write_config(tmp_path)), ("train=finetune", "train.optim.steps=50"))
    assert cfg.train.optim.steps == 50 and cfg.train.optim.warmup == 20, "the rest is finetune's"


def test_no_data(tmp_path: Path) -> None:
    path = tmp_path / "engine.yaml"
    path.write_text("seed: 1")
    assert "config key 'data' is missing" in complaint(run("engine", "run", path, "--out", tmp_path / "run"))


def test_a_refused_config_draws_nothing(made: Made) -> None:
    before = sorted((made.out / "data").iterdir())
    words = ("engine", "run", made.config, "--out", made.out, "--set", "data.scenes=16")
    assert "config.data.scenes: 8 -> 16" in complaint(run(*words))
    assert sorted((made.out / "data").iterdir()) == before


def test_scenes_of_a_start_that_came_to_nothing_are_not_kept(tmp_path: Path) -> None:
    """Too many images are refused before anything is drawn, and what was drawn before engine.json is drawn anew."""
    config, out = write_config(tmp_path), tmp_path / "run"
    words = ("engine", "run", config, "--out", out)
    assert "the rounds ask for 22 images, there are 6" in complaint(run(*words, "--set", "assisted.images=20"))
    assert not (out / "data").exists()
    cfg = read_engine_config(str(config))
    watch = Watch(out, quiet=True)
    first = EngineImages(replace(cfg.data, scenes=5), 1, out, watch).whole.read(0).image
    again = EngineImages(cfg.data, 2, out, watch)
    assert len(again.whole.names) == 8 and not np.array_equal(again.whole.read(0).image, first)


def test_a_disk_that_fails_while_a_round_is_prepared_blames_no_image(tmp_path: Path) -> None:
    """Embeddings cannot be kept: the run ends, and once that is mended the same command goes on to the same record."""
    words = [*small(tmp_path), "assisted.rounds=1", "retrain=false"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/embeddings").write_text("in the way")
    config = [word for text in words for word in ("--set", text)]
    command = ("engine", "run", write_config(tmp_path), "--out", tmp_path / "run", "--engine", "local", "--quiet")
    failed = run(*command, *config)
    assert failed.exit_code == 1 and "the embedding cannot be kept or read" in failed.stderr
    assert not (tmp_path / "run/rounds/assisted-1/prepared/_SUCCESS").exists()
    (tmp_path / "run/embeddings").unlink()
    record = run_here(tmp_path, *words)["assisted-1"]
    assert record["annotation"]["images"] == 2 and "quarantined" not in record["annotation"]


def test_rounds_without_a_mask_go_on_without_a_detector(tmp_path: Path) -> None:
    words = [*small(tmp_path)[:3], "semi.rounds=1", "assisted.rounds=1", "automatic.enabled=false", "retrain=false"]
    found = run_here(tmp_path, *words, "annotators.keep_iou=0.9999", "annotators.patience_s=4")
    assert found["assisted-1"]["annotation"]["masks"] == found["semi-1"]["annotation"]["prefilled"] == 0
    assert "detector" not in found["semi-1"]
    done("engine", "status", tmp_path / "run")
    done("engine", "report", tmp_path / "run")


def test_a_run_of_an_earlier_version_goes_on(made: Made, tmp_path: Path) -> None:
    """Settings that it knows nothing of have their defaults."""
    shutil.copytree(made.out, tmp_path / "run")
    path = tmp_path / "run/engine.json"
    tree = json.loads(path.read_bytes())
    del tree["config"]["train"]["data"]["colour_jitter"], tree["config"]["train"]["model"]["img_size"]
    path.write_text(json.dumps(tree))
    done("engine", "run", made.config, "--out", tmp_path / "run", "--engine", "local")


def test_a_run_within_its_images_is_refused(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set", 8)
    words = ("--set", f"data.source={source}", "--set", "data.scenes=0")
    said = complaint(run("engine", "run", write_config(tmp_path), "--out", source / "run", *words))
    assert "lies inside the images" in said and not (source / "run").exists()


def test_an_image_that_cannot_be_read_costs_itself_alone(tmp_path: Path) -> None:
    """One without an annotation, one that is no picture: the rounds go on without them."""
    words = small(tmp_path)
    cfg = read_engine_config(str(write_config(tmp_path)), tuple(words))
    images = EngineImages(cfg.data, cfg.seed, tmp_path / "run", Watch(tmp_path / "run", quiet=True))
    first, second = (images.whole.names[i] for i in images.take(0, 2))
    (tmp_path / "set" / Path(first).with_suffix(".json").name).unlink()
    (tmp_path / "set" / Path(images.whole.names[images.take(2, 1)[0]]).name).write_bytes(b"no picture")
    found = run_here(tmp_path, *words, "retrain=false")
    for name in ("assisted-1", "assisted-2"):
        assert found[name]["annotation"]["images"] == found[name]["annotation"]["not_done"] == 1
    keys = Build(tmp_path / "run/rounds/assisted-1/masks").images()["key"].to_pylist()
    assert keys == [stem(second)]


def test_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOCK_S", 0.2)
    config, out = write_config(tmp_path), tmp_path / "run"
    words = ("engine", "run", config, "--out", out, "--engine", "local", "--set", "data.scenes=0", "--set")
    with Watch(out, quiet=True).alone():
        said = complaint(run(*words, f"data.source={write_set(tmp_path / 'set', 8)}", "--quiet"))
    assert "another maskmill engine run is at work" in said and not (out / "rounds").exists()


def test_a_second_start_leaves_the_scenes_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first is still drawing, before it has an engine.json."""
    monkeypatch.setattr(watch, "LOCK_S", 0.2)
    config, out = write_config(tmp_path), tmp_path / "run"
    (out / "data").mkdir(parents=True)
    (out / "data/scene-0000.png").write_bytes(b"of the first")
    with Watch(out, quiet=True).alone():
        said = complaint(run("engine", "run", config, "--out", out, "--engine", "local", "--quiet"))
    assert "another maskmill engine run is at work" in said
    assert [path.read_bytes() for path in (out / "data").iterdir()] == [b"of the first"]


def test_changed_weights_are_refused(made: Made) -> None:
    """The model that serves must be the one that the records speak of."""
    engine = DataEngine(read_engine_config(str(made.config)), made.out, LocalEngine(), Watch(made.out, quiet=True))
    first = records(made.out)["start-0"]
    assert engine.serving([first])[1] == first["model_out"]
    with pytest.raises(UserError, match="are no longer those"):
        engine.serving([{"model_out": first["model_out"] | {"sha256": 64 * "0"}}])


def test_status_of_nothing(tmp_path: Path) -> None:
    assert "no run of the data engine" in complaint(run("engine", "status", tmp_path))


def figures(miou: float, noc: float) -> dict[str, Any]:
    return {
        "miou": {n: {"mean": miou} for n in ("1", "3", "5")},
        "noc": {n: {"mean": noc} for n in ("85", "90")},
    }


def test_the_gate() -> None:
    """A figure that falls keeps the old model; equal or better figures do not."""
    old = [figures(0.8, 6.0)]
    assert not worse(figures(0.8, 6.0), old, 0) and not worse(figures(0.9, 5.0), old, 0)
    assert any("mIoU@3 fell" in line for line in worse(figures(0.79, 5.0), old, 0))
    assert any("NoC@90 rose" in line for line in worse(figures(0.9, 6.1), old, 0))
    assert not worse(figures(0.79, 6.1), old, 0.02)
    later = [*old, figures(0.79, 6.1)]
    assert any("mIoU@1 fell from 0.8000" in line for line in worse(figures(0.775, 6.1), later, 0.02)), "no drift"


def small(folder: Path) -> list[str]:
    """Two assisted rounds on a set of strong colours, no others."""
    source = write_set(folder / "set", 8)
    words = ["queue.processes=1", "assisted.rounds=2", "semi.rounds=0", "automatic.enabled=false"]
    return [f"data.source={source}", "data.scenes=0", *words]


def test_a_sabotaged_model_does_not_serve(tmp_path: Path) -> None:
    """Training that ruins the model: the round is kept, the old model goes on, the record says why."""
    found = run_here(tmp_path, *small(tmp_path), *SABOTAGE)
    for name in ("assisted-1", "assisted-2"):
        record = found[name]
        assert record["decision"].startswith("not promoted: mIoU@1 fell from ")
        assert record["model_in"] == record["model_out"] == found["start-0"]["model_out"]
        assert record["candidate"]["sha256"] != record["model_in"]["sha256"]
        assert record["metrics"] == found["start-0"]["metrics"] != record["candidate"]["metrics"]
        assert Build(tmp_path / "run/rounds" / name / "masks").masks().num_rows == record["annotation"]["masks"] > 0
    shown = done("engine", "status", tmp_path / "run").output
    assert "assisted-2: not promoted: mIoU@1 fell" in shown


def test_without_a_gate_it_serves(tmp_path: Path) -> None:
    found = run_here(tmp_path, *small(tmp_path), *SABOTAGE, "gate.enabled=false", "assisted.rounds=1")
    record = found["assisted-1"]
    assert record["decision"] == "promoted: the gate is off" and record["model_out"] != record["model_in"]
    assert record["metrics"]["miou"]["1"]["mean"] < found["start-0"]["metrics"]["miou"]["1"]["mean"] - 0.1


def test_a_training_that_diverges_does_not_serve(tmp_path: Path) -> None:
    found = run_here(tmp_path, *small(tmp_path), "train.optim.lr=1e30", "train.optim.clip=0", "assisted.rounds=1")
    assert "lower optim.lr" in found["assisted-1"]["decision"]
    assert found["assisted-1"]["model_out"] == found["start-0"]["model_out"]


def test_no_retraining_and_prefill_unseen(tmp_path: Path) -> None:
    """Two ablations: one model throughout; what is prefilled is taken as it is, without a second of anyone's time."""
    words = [*small(tmp_path)[:3], "retrain=false", "annotators.verify=false"]
    found = run_here(tmp_path, *words)
    first = found["start-0"]
    for name in ("assisted-1", "semi-1"):
        assert found[name]["decision"] == "kept: no retraining"
        assert found[name]["model_out"] == first["model_out"] and found[name]["metrics"] == first["metrics"]
        assert not (tmp_path / "run/rounds" / name / "train").exists()
    semi = found["semi-1"]["annotation"]
    assert semi["prefilled"] == semi["accepted"] > 0 and semi["rejected"] == semi["fixed"] == 0
    metas = [json.loads(m) for m in Build(tmp_path / "run/rounds/semi-1/masks").masks()["meta"].to_pylist()]
    assert {m["seconds"] for m in metas if m["edit"] == "accepted"} == {0.0}
    assert found["automatic-1"]["model_in"] == first["model_out"]


@pytest.mark.parametrize("kind", ["build", "coco", "tar"])
def test_any_annotated_set_is_a_source(tmp_path: Path, kind: str) -> None:
    """The automatic stage finds the images behind it, and its masks meet the truth of the same images."""
    source = write_set(tmp_path / "set", 3)
    if kind == "tar":
        with tarfile.open(tmp_path / "set.tar", "w") as tar:
            for path in sorted(source.iterdir()):
                tar.add(path, path.name)
        source = tmp_path / "set.tar"
    else:
        for n in range(3):
            tree = json.loads((source / f"sa_{n}.json").read_text())
            image = {"image_id": n, "width": 80, "height": 60}
            (source / f"sa_{n}.json").write_text(json.dumps(tree | {"image": image}))
        built = import_(source, tmp_path / "build", "sa1b")
        source = built.path if kind == "build" else export(built.path, tmp_path / "coco", "coco")
    words = [f"data.source={source}", "data.scenes=0", "assisted.rounds=0", "semi.rounds=0"]
    found = run_here(tmp_path, *words)["automatic-1"]
    assert found["images"] == 3 and found["quality"]["objects"] == 3 and found["quality"]["masks"] > 0
    assert found["quality"]["matched"] > 0
