"""`maskmill train` and `maskmill evaluate` as commands, and a training that is killed at random."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file

from maskmill.config import merge, parse_set, read_yaml
from maskmill.errors import UserError
from maskmill.pipeline.commands.evaluate import find_model
from maskmill.pipeline.commands.train import read_config
from maskmill.training.config import TrainConfig
from maskmill.training.fit import fit
from tests.pipeline.exchange import complaint, done, import_, run
from tests.unit.training.sets import annotation, scene, tiny_model, write_set

STEPS = 14


def recipe(folder: Path) -> Path:
    tree = {
        "model": {"name": tiny_model(folder), "fresh": True, "drop_path": 0.2},
        "prompts": {"clicks": 2},
        "optim": {"lr": 1e-3, "steps": STEPS, "warmup": 2, "milestones": [9], "images": 2},
        "run": {"device": "cpu", "threads": 1, "log_every": 1, "save_every": 3},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def config_of(path: Path, data: Path, *assignments: str) -> TrainConfig:
    """What the command makes of them."""
    return read_config(merge(read_yaml("train", str(path)), parse_set(assignments)), (str(data),), None)


def train(*words: str | Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "maskmill.pipeline.cli", "train", *map(str, words)]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True
    )


def lines(out: Path) -> list[str]:
    path = out / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    """Until the log has so many lines, or the process has ended."""
    while process.poll() is None and len(lines(out)) < count:
        time.sleep(0.005)


def test_killed_at_random_steps_it_ends_bit_by_bit_the_same(tmp_path: Path) -> None:
    data, cfg = write_set(tmp_path / "set", 3), recipe(tmp_path)
    done("train", cfg, "--data", data, "--out", tmp_path / "whole", "--quiet")
    chance = random.Random(0)
    out = tmp_path / "killed"
    kills = 0
    for _ in range(2):
        process = train(cfg, "--data", data, "--out", out, "--quiet")
        wait_for(process, out, len(lines(out)) + chance.randint(1, 5))
        time.sleep(chance.random() * 0.1)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2
    assert train(cfg, "--data", data, "--out", out, "--quiet").wait() == 0
    whole, killed = (load_file(d / "model.safetensors") for d in (tmp_path / "whole", out))
    assert whole.keys() == killed.keys() and all(np.array_equal(whole[k], killed[k]) for k in whole)
    steps = [[json.loads(line) | {"seconds": 0} for line in lines(d)] for d in (tmp_path / "whole", out)]
    assert steps[0] == steps[1] and len(steps[0]) == STEPS
    assert not [p.name for p in out.iterdir() if p.name.endswith(".pt") and p.name != "checkpoint.pt"]


def test_a_signal_to_all_its_processes_stops_it_between_steps_with_75(tmp_path: Path) -> None:
    data, cfg = write_set(tmp_path / "set", 3), recipe(tmp_path)
    out = tmp_path / "out"
    process = train(cfg, "--data", data, "--out", out, "--set", "optim.steps=100000", "--set", "run.save_every=100000",
                    "--set", "run.workers=1")  # fmt: skip
    wait_for(process, out, 2)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 75 and b"continues" in said, said
    assert (out / "checkpoint.pt").exists() and (out / "model.safetensors").exists()


def test_nano_can_be_stopped_while_scenes_are_drawn(tmp_path: Path) -> None:
    pool = tmp_path / "out/pool"
    process = train("nano", "--out", tmp_path / "out", "--set", "scene_size=48", "--set", "chunks=5000")
    while process.poll() is None and not list(pool.glob("*.npz")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate()
    assert process.returncode == 75 and not list(pool.glob("*.partial"))
    with pytest.raises(ProcessLookupError):  # no worker lives on
        os.killpg(process.pid, 0)


def test_a_disk_that_is_full_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of a file stands for it: the weights fit, the checkpoint does not."""
    data, cfg, out = write_set(tmp_path / "set", 3), recipe(tmp_path), tmp_path / "out"
    words = ("--data", data, "--out", out, "--set", "optim.steps=3", "--set", "optim.milestones=[]", "--quiet")
    done("train", cfg, *words, "--set", "run.save_every=3")
    whole = load_file(out / "model.safetensors")
    shutil.rmtree(out)
    config = config_of(cfg, data, "optim.steps=3", "optim.milestones=[]")
    assert not fit(config, str(out), stopped=lambda: len(lines(out)) == 1)
    before = (out / "checkpoint.pt").read_bytes()
    limit = len(before) - 1000
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    command = [sys.executable, "-c", f"{limited}; from maskmill.pipeline.cli import main; main()", "train", cfg, *words]
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert process.returncode == 1 and len(process.stderr.strip().splitlines()) == 1, process.stderr
    assert "File too large" in process.stderr and "keeps its last checkpoint" in process.stderr
    assert (out / "checkpoint.pt").read_bytes() == before and not list(out.glob(".*"))
    done("train", cfg, *words)
    again = load_file(out / "model.safetensors")
    assert all(np.array_equal(whole[k], again[k]) for k in whole)


@pytest.mark.parametrize("kind", ["build", "coco"])
def test_from_data_to_figures(tmp_path: Path, kind: str) -> None:
    """A build or a COCO export as data; the folder of the training as model."""
    folder = write_set(tmp_path / "set", 2)
    for n in range(2):
        tree = json.loads((folder / f"sa_{n}.json").read_text())
        (folder / f"sa_{n}.json").write_text(json.dumps(tree | {"image": {"image_id": n, "width": 80, "height": 60}}))
    made = import_(folder, tmp_path / "build", "sa1b")
    data: Path = tmp_path / "build"
    if kind == "coco":
        done("export", made.path, tmp_path / "coco", "--format", "coco", "--quiet")
        data = tmp_path / "coco"
    out = tmp_path / "out"
    done(
        "train",
        recipe(tmp_path),
        "--data",
        data,
        "--out",
        out,
        "--set",
        "optim.steps=1",
        "--set",
        "optim.milestones=[]",
    )
    words = ["--set", "evaluate.points_per_side=2", "--set", "evaluate.clicks=[1,2]", "--set", "evaluate.max_clicks=2"]
    shown = done("evaluate", out, data, "--out", tmp_path / "figures", *words).output
    tree = json.loads((tmp_path / "figures/evaluation.json").read_text())
    assert tree["images"] == 2 and tree["masks"] == 6 and "mIoU, 1 click" in shown and "AR@1000, all" in shown
    assert f"{tree['miou']['1']['mean']:.3f}" in shown and "recall" in tree
    assert pq.read_table(tmp_path / "figures/masks.parquet").num_rows == 6
    page = (tmp_path / "figures/evaluation.html").read_text()
    assert page.count("data:image/jpeg") == 6 and "Worst cases" in page and 'src="http' not in page


def test_an_audit(tmp_path: Path) -> None:
    before, after = write_set(tmp_path / "a", 1), write_set(tmp_path / "b", 1)
    _, masks = scene(0)
    small = masks[0].copy()
    small[np.flatnonzero(small.any(1))[0] :][:4] = False
    records = [annotation(m, i) for i, m in enumerate([small, *masks[1:]])]
    (after / "sa_0.json").write_text(json.dumps({"annotations": records}))
    shown = done("evaluate", "--audit", before, after, "--out", tmp_path / "audit").output
    tree = json.loads((tmp_path / "audit/audit.json").read_text())
    assert tree["pairs"] == 3 and tree["above"]["90"]["mean"] == pytest.approx(2 / 3, abs=1e-4)
    assert "above 90% IoU: 66.7% of pairs" in shown


def test_an_audit_of_a_build_against_files(tmp_path: Path) -> None:
    """A build of a folder names its images otherwise; its images may have moved, the corrected ones lie beside."""
    source = write_set(tmp_path / "a", 2)
    for n in range(2):
        tree = json.loads((source / f"sa_{n}.json").read_text())
        about = {"image_id": n, "width": 80, "height": 60, "file_name": f"sa_{n}.png"}
        (source / f"sa_{n}.json").write_text(json.dumps(tree | {"image": about}))
    automatic = import_(source, tmp_path / "build", "sa1b").path
    corrected = shutil.copytree(source, tmp_path / "corrected")
    pixels = shutil.copytree(source, tmp_path / "moved")
    shutil.rmtree(source)
    words = ("evaluate", "--audit", automatic, corrected, "--out", tmp_path / "audit")
    done(*words, "--images", pixels)
    tree = json.loads((tmp_path / "audit/audit.json").read_text())
    assert tree["images"] == 2 and tree["pairs"] == 6 and tree["above"]["90"]["mean"] == 1
    said = complaint(run("evaluate", "--audit", corrected, pixels, "--out", tmp_path / "o", "--images", pixels))
    assert "only for a build or for COCO JSON" in said


def test_which_model_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may have the name of a model; a training of nano keeps its weights under another name."""
    monkeypatch.chdir(tmp_path)
    Path("nano").mkdir()
    assert find_model("nano", None) == ("nano", None)
    with pytest.raises(UserError, match="no training wrote this folder"):
        find_model("./nano", None)
    Path("nano/nano.safetensors").touch()
    assert find_model("nano/", None) == ("nano", "nano/nano.safetensors")
    with pytest.raises(UserError, match="weights are read from this machine"):
        find_model("s3://bucket/run", None)


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    data, cfg = write_set(tmp_path / "set", 1), recipe(tmp_path)
    assert "--data" in complaint(run("train", cfg, "--out", tmp_path / "o"))
    assert "did you mean 'optim'" in complaint(run("train", cfg, "--out", tmp_path / "o", "--set", "optm.lr=1"))
    assert "sam" in complaint(run("train", "nothing", "--data", data, "--out", tmp_path / "o"))
    assert "no such file" in complaint(run("train", cfg, "--data", tmp_path / "gone", "--out", tmp_path / "o"))
    (data / "sa_0.json").write_text(json.dumps({"annotations": [annotation(np.ones((5, 5), bool), 3)]}))
    words = complaint(run("train", cfg, "--data", data, "--out", tmp_path / "o"))
    assert "sa_0.png" in words and "annotation 3" in words
    assert "--images" in complaint(run("train", cfg, "--images", data, "--out", tmp_path / "o"))
    for key, hint in (
        ("run.device=gpu", "expected cpu, cuda"),
        ("run.threads=0", "at least 1"),
        ("optim.betas=[2,0.9]", "[0, 1)"),
        ("seed=-1", "at least 0"),
        ("cache=half", "known values: none, float32"),
        ("colour=1", "unknown config key"),
    ):
        words = complaint(run("train", cfg, "--data", data, "--out", tmp_path / "o", "--set", key))
        assert hint in words and key.partition("=")[0] in words, words
    assert "cannot write to --out" in complaint(run("train", cfg, "--data", data, "--out", cfg))
    assert "cannot write to --out" in complaint(run("evaluate", "nano", data, "--out", cfg))
    assert "leave out --boxes" in complaint(run("evaluate", "--audit", data, data, "--out", tmp_path, "--baselines"))
    assert "clicks" in complaint(run("evaluate", "nano", data, "--out", tmp_path / "e", "--set", "evaluate.clicks=[0]"))
    result = run(
        "train",
        cfg,
        "--data",
        write_set(tmp_path / "good", 1),
        "--out",
        tmp_path / "o2",
        "--set",
        "optim.lr=1e30",
        "--quiet",
    )
    assert result.exit_code == 1 and "lower optim.lr" in result.stderr and len(result.stderr.strip().splitlines()) == 1
