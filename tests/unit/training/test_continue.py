"""What a training run that goes on compares with its beginning, and what it leaves to others."""

import shutil
from pathlib import Path

import pytest
import torch

from maskmill.errors import UserError
from maskmill.training.fit import fit, means
from maskmill.training.trainer import Place, Trainer
from tests.unit.training.sets import training_config as config


def begun_from_weights(tmp_path: Path) -> Path:
    """Weights to start from, and DIR/run begun with them and stopped."""
    assert fit(config(tmp_path, optim={"steps": 1}), str(tmp_path / "first"))
    path = tmp_path / "first/model.safetensors"
    cfg = config(tmp_path, model={"fresh": False, "checkpoint": str(path)})
    assert not fit(cfg, str(tmp_path / "run"), stopped=lambda: True)
    return path


def test_weights_may_move_but_not_change(tmp_path: Path) -> None:
    first = begun_from_weights(tmp_path)
    moved = shutil.move(first, tmp_path / "moved.safetensors")
    assert fit(config(tmp_path, model={"fresh": False, "checkpoint": str(moved)}), str(tmp_path / "run"))
    assert fit(config(tmp_path, seed=1, optim={"steps": 1}), str(tmp_path / "second"))
    other = {"fresh": False, "checkpoint": str(tmp_path / "second/model.safetensors")}
    with pytest.raises(UserError, match="was begun with weights="):
        fit(config(tmp_path, model=other), str(tmp_path / "run"))


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Its checkpoint knows nothing of settings that came later: they have their defaults."""
    begun_from_weights(tmp_path)
    path = tmp_path / "run/checkpoint.pt"
    state = torch.load(path, weights_only=True)
    del state["about"]["weights"], state["about"]["config"]["data"]["colour_jitter"]
    model = {"fresh": False, "checkpoint": str(tmp_path / "first/model.safetensors")}
    state["about"]["config"]["model"]["checkpoint"] = model["checkpoint"]
    torch.save(state, path)
    elsewhere = shutil.copy(tmp_path / "first/model.safetensors", tmp_path / "copy.safetensors")
    with pytest.raises(UserError, match="was begun with weights="):  # it cannot tell whether they are the same
        fit(config(tmp_path, model=model | {"checkpoint": str(elsewhere)}), str(tmp_path / "run"))
    assert fit(config(tmp_path, model=model), str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"data\.colour_jitter=False, not True"):
        fit(config(tmp_path, model=model, data={"colour_jitter": True}), str(tmp_path / "run"))


def test_a_stop_is_heard_where_every_step_saves(tmp_path: Path) -> None:
    cfg = config(tmp_path, run={"save_every": 1})
    seen: list[int] = []
    assert not fit(cfg, str(tmp_path / "out"), say=lambda p: seen.append(p.step), stopped=lambda: True)
    assert seen == [1] and torch.load(tmp_path / "out/checkpoint.pt", weights_only=True)["step"] == 1


def test_threads_are_given_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    assert fit(config(tmp_path, optim={"steps": 1}, run={"threads": before + 1}), str(tmp_path / "out"))
    assert torch.get_num_threads() == before


def test_figures_of_a_window_whose_last_step_had_no_mask() -> None:
    assert means([{"loss": 1.0, "masks": 2.0}, {"loss": 3.0, "masks": 2.0}, {"masks": 0.0}]) == {
        "loss": 2.0,
        "masks": pytest.approx(4 / 3),
    }


def test_processes_that_found_other_checkpoints_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over processes is what each of two would see: the other is at step 5."""
    trainer = Trainer(config(tmp_path), Place(0, 2))
    monkeypatch.setattr("torch.distributed.all_reduce", lambda steps: steps.add_(torch.tensor([0.0, 5.0])))
    with pytest.raises(UserError, match="some processes find another checkpoint"):
        trainer.check_together("/out")
    trainer.step = 5
    trainer.check_together("/out")


def test_embeddings_of_another_precision_are_not_taken(tmp_path: Path) -> None:
    first = begun_from_weights(tmp_path)
    model = {"fresh": False, "checkpoint": str(first), "train": "decoder"}
    for precision in ("bfloat16", "float32"):
        run = {"embeddings": str(tmp_path / "shared"), "precision": precision}
        fit(config(tmp_path, model=model, cache="float32", run=run), str(tmp_path / precision))
    fit(config(tmp_path, model=model), str(tmp_path / "plain"))
    made = [(tmp_path / d / "model.safetensors").read_bytes() for d in ("float32", "plain")]
    assert made[0] == made[1] and len(list((tmp_path / "shared").iterdir())) == 2
