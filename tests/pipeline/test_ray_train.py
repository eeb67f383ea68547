"""Data-parallel training by Ray Train on CPU processes."""

import contextlib
import json
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file

from maskmill.config import from_tree
from maskmill.errors import UserError
from maskmill.pipeline.ray_train import absolute, fit_on_ray, run, watch, words_of
from maskmill.training.config import TrainConfig
from maskmill.training.fit import NothingToLearn, Progress, fit
from tests.pipeline.test_train import STEPS as STEPS_OF_RECIPE
from tests.pipeline.test_train import config_of, recipe
from tests.unit.training.sets import write_set

STEPS, RATE = 6, 1e-4
PLAIN = ("model.drop_path=0", "model.decoder_dropout=0")  # their chance is drawn for each process


def plan(tmp_path: Path, *words: str) -> TrainConfig:
    data = write_set(tmp_path / "set", 3)
    steps = (f"optim.steps={STEPS}", "optim.milestones=[]", "optim.warmup=0", f"optim.lr={RATE:g}")
    return config_of(recipe(tmp_path), data, *steps, *PLAIN, *words)


def lines(out: Path) -> list[dict[str, float]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def workers() -> list[psutil.Process]:
    """Those of this test's own Ray that train."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.chaos  # minutes on busy cores
def test_two_processes_one_of_them_killed_do_what_one_does(tmp_path: Path, cluster: None) -> None:
    config = plan(tmp_path, "run.save_every=2")
    killed: list[int] = []

    def kill() -> None:
        while len(lines(tmp_path / "two")) < 3:
            time.sleep(0.01)
        (*_, victim) = workers()
        killed.append(victim.pid)
        victim.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    told: list[int] = []
    assert fit_on_ray(config, str(tmp_path / "two"), 2, lambda progress: told.append(progress.step))
    assert told == sorted(told) and told[-1] == STEPS
    assert killed and killed[0] not in [p.pid for p in workers()]
    assert fit(config, str(tmp_path / "one"))
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, STEPS + 1))
    for name in ("norm", "lr"):  # of the gradient of all images
        assert [line[name] for line in one] == pytest.approx([line[name] for line in two], rel=1e-3), name
    off = np.concatenate(differences(tmp_path / "one", tmp_path / "two"))
    # the gradient of a key's bias is nothing but rounding, and AdamW makes a whole step of it
    assert np.quantile(off, 0.99) < 1e-6 and off.max() <= 2.01 * STEPS * RATE


def differences(one: Path, two: Path) -> list[np.ndarray]:
    """Of all weights, flat."""
    a, b = (load_file(d / "model.safetensors") for d in (one, two))
    assert a.keys() == b.keys()
    return [np.abs(a[k].numpy() - b[k].numpy()).ravel() for k in a]


def test_places_hold_whatever_folder_a_process_works_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source, model = {"path": "set", "images": "pixels"}, {"name": "tiny.yaml", "checkpoint": "first.safetensors"}
    (tmp_path / "tiny.yaml").write_text("image_encoder: {patch_size: 16}")
    tree = {"data": {"sources": [source]}, "model": model, "run": {"embeddings": "embeddings"}}
    sent = absolute(from_tree(TrainConfig, tree))
    assert [sent["data"]["sources"][0][k] for k in ("path", "images")] == [f"{tmp_path}/set", f"{tmp_path}/pixels"]
    assert sent["model"]["name"] == f"{tmp_path}/tiny.yaml"
    assert sent["model"]["checkpoint"] == f"{tmp_path}/first.safetensors"
    assert sent["run"]["embeddings"] == f"{tmp_path}/embeddings"
    assert absolute(TrainConfig())["model"] | {"name": "nano", "checkpoint": None} == absolute(TrainConfig())["model"]


def test_ctrl_c_is_no_end_and_stays_ours() -> None:
    """Ray turns Ctrl-C into an exit with 0, by a handler that it leaves behind."""

    class Trainer:
        def fit(self) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise SystemExit(0)

    before = signal.getsignal(signal.SIGINT)
    assert not run(Trainer()) and signal.getsignal(signal.SIGINT) == before


def test_progress_is_read_from_the_log(tmp_path: Path) -> None:
    config, told = config_of(recipe(tmp_path), tmp_path), list[tuple[int, float]]()
    ended, log = threading.Event(), tmp_path / "metrics.jsonl"
    log.write_text(json.dumps({"step": 1, "seconds": 9.0}) + "\n")  # of an earlier run

    def say(progress: Progress) -> None:
        told.append((progress.step, progress.left))
        if progress.step == STEPS_OF_RECIPE:
            ended.set()
        else:
            log.write_text(json.dumps({"step": STEPS_OF_RECIPE, "seconds": 2.0}) + "\n")

    timer = threading.Timer(0.3, lambda: log.write_text(json.dumps({"step": 4, "seconds": 2.0}) + "\n"))
    timer.start()
    watch(config, str(tmp_path), say, ended)
    assert told == [(4, 2.0 * (STEPS_OF_RECIPE - 4)), (STEPS_OF_RECIPE, 0.0)]


def test_uneven_shares_are_refused(tmp_path: Path) -> None:
    config = config_of(recipe(tmp_path), tmp_path)
    with pytest.raises(UserError, match="cannot be shared evenly by 3"):
        fit_on_ray(config, str(tmp_path / "out"), 3)


class Broken:
    """A trainer whose processes end with these words."""

    def __init__(self, words: str) -> None:
        self.words = words

    def fit(self) -> None:
        raise RuntimeError(f"Traceback\n  File x\n{self.words}\n")


def test_what_a_process_says_is_told_as_what_it_is() -> None:
    with pytest.raises(NothingToLearn, match="no mask to train on"):
        run(Broken("maskmill.training.fit.NothingToLearn: no mask to train on in 3 images"))
    with pytest.raises(UserError, match="is broken"):
        run(Broken("maskmill.errors.UserError: a.png is broken"))
    with pytest.raises(RuntimeError, match="disk"):
        run(Broken("OSError: disk"))


def test_what_a_process_says_is_found_in_its_traceback() -> None:
    error = RuntimeError("Traceback\n  File x\nmaskmill.errors.UserError: set/: image a.png: broken: twice\n")
    assert words_of(error, "UserError") == "set/: image a.png: broken: twice"
    assert words_of(error, "Diverged") == ""
