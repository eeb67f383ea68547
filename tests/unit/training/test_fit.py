import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maskmill.errors import UserError
from maskmill.sam.build import load_model
from maskmill.training.data import Example, Samples
from maskmill.training.fit import Progress, fit
from maskmill.training.trainer import Diverged, Place, Trainer
from tests.pipeline.rounds.runs import make_build
from tests.unit.training.sets import training_config as config
from tests.unit.training.sets import write_set


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_was_stopped_ends_bit_by_bit_as_one_that_was_not(tmp_path: Path, stop: int) -> None:
    cfg = config(tmp_path)
    assert fit(cfg, str(tmp_path / "whole"))
    seen: list[int] = []
    out = str(tmp_path / "parts")
    assert not fit(cfg, out, say=lambda p: seen.append(p.step), stopped=lambda: len(seen) >= stop) or stop == 6
    assert fit(cfg, out)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    lines = [
        [json.loads(x) for x in (tmp_path / d / "metrics.jsonl").read_text().splitlines()] for d in ("whole", "parts")
    ]
    for a, b in zip(*lines, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert [x["step"] for x in lines[0]] == [1, 2, 3, 4, 5, 6]
    before = weights(tmp_path / "parts")
    assert fit(cfg, out) and same(before, weights(tmp_path / "parts"))  # a finished run is left as it is


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """What was done since is done again, also where the log knows more than the checkpoint."""
    cfg = config(tmp_path)

    class Killed(BaseException):
        pass

    def kill(progress: Progress) -> None:
        if progress.step == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(cfg, str(tmp_path / "killed"), say=kill)
    assert len((tmp_path / "killed/metrics.jsonl").read_text().splitlines()) == 5
    assert torch.load(tmp_path / "killed/checkpoint.pt", weights_only=True)["step"] == 4
    fit(cfg, str(tmp_path / "killed"))
    fit(cfg, str(tmp_path / "whole"))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert len((tmp_path / "killed/metrics.jsonl").read_text().splitlines()) == 6


def test_kept_weights_are_averaged_into_what_is_written_only(tmp_path: Path) -> None:
    assert fit(config(tmp_path), str(tmp_path / "first"))
    old = {"fresh": False, "checkpoint": str(tmp_path / "first/model.safetensors")}
    assert fit(config(tmp_path, model=old), str(tmp_path / "new"))
    kept = config(tmp_path, model={**old, "keep": 0.25})
    assert not fit(kept, str(tmp_path / "kept"), stopped=lambda: True)
    assert fit(kept, str(tmp_path / "kept"))  # also after a stop: training itself knows nothing of it
    first, new, mixed = (weights(tmp_path / d) for d in ("first", "new", "kept"))
    assert not same(first, new)
    assert all(torch.allclose(mixed[k], 0.25 * first[k] + 0.75 * new[k], atol=1e-7) for k in first)
    with pytest.raises(UserError, match=r"model.keep is 0.25: random weights"):
        config(tmp_path, model={"keep": 0.25})


def test_which_masks_of_a_build_is_part_of_a_run_and_where_it_lies_is_not(tmp_path: Path) -> None:
    def taught(build: Path, out: str = "out") -> bool:
        data = {"sources": [{"path": str(build)}]}
        return fit(config(tmp_path, data=data, optim={"steps": 1, "milestones": []}), str(tmp_path / out))

    build = make_build(tmp_path / "one", [])
    assert taught(build)
    assert taught(shutil.copytree(build, tmp_path / "moved"))
    other = make_build(tmp_path / "two", ["drawn"] * 3)  # the same images, and other words about their masks
    with pytest.raises(UserError, match="was begun with masks="):
        taught(other)
    checkpoint = torch.load(tmp_path / "out/checkpoint.pt", weights_only=True)
    del checkpoint["about"]["masks"]  # of an earlier version
    torch.save(checkpoint, tmp_path / "out/checkpoint.pt")
    assert taught(other)


def test_a_part_without_a_gradient_stays_as_it_is_in_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One click and no more: nothing reads mask prompts. Weight decay must not shrink what does not learn."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: None)
    cfg = config(tmp_path, prompts={"clicks": 0, "empty": False})
    ends = []
    for world in (1, 2):
        trainer = Trainer(cfg, Place(0, world))
        before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        trainer.train_step(numbered(trainer, 0, 1))
        ends.append({k: v for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])})
    assert same(*ends) and not any("mask_downscaling" in k for k in ends[0]) and len(ends[0]) > 20


def test_another_recipe_or_other_data_are_refused(tmp_path: Path) -> None:
    cfg = config(tmp_path, optim={"steps": 1})
    fit(cfg, str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"optim\.lr=0\.001, not 0\.5"):
        fit(config(tmp_path, optim={"steps": 1, "lr": 0.5}), str(tmp_path / "out"))
    with pytest.raises(UserError, match="data=3 images"):
        fit(config(tmp_path, 4, optim={"steps": 1}), str(tmp_path / "out"))
    assert fit(config(tmp_path, optim={"steps": 1}, run={"save_every": 9}), str(tmp_path / "out"))


@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-6), ("bfloat16", 5e-3)])
def test_images_in_a_pass_do_not_change_the_update(tmp_path: Path, precision: str, most: float) -> None:
    """Gradient accumulation: three images one by one, in two passes, or all at once. Without drop path, whose chance
    is drawn for a pass. The gradient is the same but for rounding: `most` is the error's norm over its own."""
    gradients, moved = [], []
    for size in (1, 2, 3):
        model = {"drop_path": 0, "decoder_dropout": 0}
        run = {"images_per_pass": size, "precision": precision}
        trainer = Trainer(config(tmp_path, model=model, optim={"images": 3, "warmup": 0}, run=run))
        before = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        figures = trainer.train_step(numbered(trainer, 0, 1, 2))
        assert figures["images"] == 3 and figures["masks"] == 9
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
        moved.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - before)
    for gradient, step in zip(gradients[1:], moved[1:], strict=True):
        assert (gradient - gradients[0]).norm() < most * gradients[0].norm()
        # AdamW's first step is nearly a sign: where the gradient is rounding alone, it may fall to either side
        assert (step - moved[0]).abs().gt(1e-5).float().mean() < most**0.5


def numbered(trainer: Trainer, *numbers: int) -> list[Example]:
    samples = Samples(trainer.cfg, trainer.model.img_size)
    found = [samples[n] for n in numbers]
    assert all(isinstance(e, Example) for e in found)
    return [e for e in found if isinstance(e, Example)]


@pytest.mark.parametrize("cache", ["float32", "float16"])
def test_cached_embeddings_give_the_update_of_the_full_path(tmp_path: Path, cache: str) -> None:
    begun = config(tmp_path, optim={"steps": 1})
    fit(begun, str(tmp_path / "begun"))
    model = {"fresh": False, "checkpoint": str(tmp_path / "begun/model.safetensors"), "train": "decoder"}
    full = config(tmp_path, model=model)
    fit(full, str(tmp_path / "full"))
    cached = config(tmp_path, model=model, cache=cache)
    fit(cached, str(tmp_path / "cached"))
    a, b = weights(tmp_path / "full"), weights(tmp_path / "cached")
    start = weights(tmp_path / "begun")
    learned = {k for k in a if not torch.equal(a[k], start[k])}
    assert learned and not any(k.startswith("image_encoder") for k in learned)
    if cache == "float32":
        assert same(a, b)
    else:
        assert all(torch.allclose(a[k], b[k], atol=2e-2) for k in a)
    assert len(list((tmp_path / "cached/embeddings").rglob("*.npy"))) == 3


def test_the_encoder_looks_at_each_image_once(tmp_path: Path) -> None:
    cfg = config(tmp_path, model={"train": "all"}, optim={"steps": 1})
    fit(cfg, str(tmp_path / "begun"))
    model = {"fresh": False, "checkpoint": str(tmp_path / "begun/model.safetensors"), "train": "decoder"}
    run = {"embeddings": str(tmp_path / "shared")}
    fit(config(tmp_path, model=model, cache="float32", run=run), str(tmp_path / "a"))
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "shared").rglob("*.npy")}
    fit(config(tmp_path, model=model, cache="float32", run=run, seed=1), str(tmp_path / "b"))
    assert len(stamps) == 3 and stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "shared").rglob("*.npy")}


def test_a_loss_that_is_no_number_leaves_the_last_good_state(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    fit(config(tmp_path), str(tmp_path / "out"), stopped=lambda: True)
    before = (tmp_path / "out/checkpoint.pt").read_bytes()
    trainer = Trainer(cfg)
    examples = numbered(trainer, 0, 1)
    with torch.no_grad():
        trainer.model.mask_decoder.iou_prediction_head.layers[0].weight[0, 0] = torch.nan
    state = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with pytest.raises(Diverged, match=r"the loss is nan at step 1, image sa_\d.png: lower optim.lr"):
        trainer.train_step(examples)
    after = trainer.model.state_dict()
    assert trainer.step == 0 and all(torch.equal(state[k].nan_to_num(7), after[k].nan_to_num(7)) for k in state)
    assert (tmp_path / "out/checkpoint.pt").read_bytes() == before


def test_a_rate_that_explodes_is_said(tmp_path: Path) -> None:
    cfg = config(tmp_path, optim={"lr": 1e30, "warmup": 0, "milestones": []})
    with pytest.raises(Diverged, match=r"lower optim\.lr"):
        fit(cfg, str(tmp_path / "out"))


def test_a_set_without_masks_is_said(tmp_path: Path) -> None:
    write_set(tmp_path / "bare", 2, masks=False)
    cfg = config(tmp_path, data={"sources": [{"path": str(tmp_path / "bare")}]})
    with pytest.raises(UserError, match="no mask to train on"):
        fit(cfg, str(tmp_path / "out"))


def test_half_precision_and_workers(tmp_path: Path) -> None:
    cfg = config(tmp_path, run={"precision": "bfloat16", "workers": 1}, optim={"steps": 2})
    assert fit(cfg, str(tmp_path / "half"))
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in weights(tmp_path / "half").values())
    model = load_model(cfg.model.name, tmp_path / "half/model.safetensors", device="cpu")
    assert model.img_size == 64


def test_training_at_another_input_size(tmp_path: Path) -> None:
    """The new weights have the size in them, and go on being trained at it."""
    assert fit(config(tmp_path), str(tmp_path / "first"))
    begin = {"fresh": False, "checkpoint": str(tmp_path / "first/model.safetensors")}
    cfg = config(tmp_path, model=begin | {"img_size": 96, "keep": 0.5})
    assert Trainer(cfg).model.img_size == 96
    assert fit(cfg, str(tmp_path / "finer"))
    finer = {"fresh": False, "checkpoint": str(tmp_path / "finer/model.safetensors")}
    trainer = Trainer(config(tmp_path, model=finer))
    example = Samples(trainer.cfg, trainer.model.img_size)[0]
    assert isinstance(example, Example) and example.pixels.shape == (3, 72, 96)  # the images are 60 x 80
    with pytest.raises(UserError, match=r"img_size is 100: expected a multiple of the patches of .*, 16 pixels"):
        fit(config(tmp_path, model=begin | {"img_size": 100}), str(tmp_path / "odd"))


def test_a_view_of_single_pixels_is_learned_and_kept(tmp_path: Path) -> None:
    """Weights without detail get it; they say that they have it, stop and continue with the same bits, and embeddings
    that are cached carry it."""
    assert fit(config(tmp_path), str(tmp_path / "first"))
    begin = {"fresh": False, "checkpoint": str(tmp_path / "first/model.safetensors"), "detail": True}
    cfg = config(tmp_path, model=begin)
    start = {k: v.clone() for k, v in Trainer(cfg).model.state_dict().items()}
    assert not start["image_encoder.detail.last.weight"].any()
    assert fit(cfg, str(tmp_path / "whole"))
    steps: list[int] = []
    assert not fit(cfg, str(tmp_path / "parts"), say=lambda p: steps.append(p.step), stopped=lambda: len(steps) >= 2)
    assert fit(cfg, str(tmp_path / "parts")) and same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    learned = {k for k, v in weights(tmp_path / "whole").items() if not torch.equal(v, start[k])}
    assert {k for k in start if k.startswith("image_encoder.detail.")} <= learned

    decoder = {"fresh": False, "checkpoint": str(tmp_path / "whole/model.safetensors"), "train": "decoder"}
    for cache in ("none", "float32"):
        assert fit(config(tmp_path, model=decoder, cache=cache), str(tmp_path / cache))
    assert same(weights(tmp_path / "none"), weights(tmp_path / "float32"))
    assert "image_encoder.detail.last.weight" in weights(tmp_path / "none")
    with pytest.raises(UserError, match=r"model.detail is a part of the encoder.*model.train=all"):
        config(tmp_path, model=begin | {"train": "decoder"})


def test_dropout_reaches_the_decoder_and_drop_path_the_encoder(tmp_path: Path) -> None:
    trainer = Trainer(config(tmp_path))
    trainer.train_step(numbered(trainer, 0, 1))
    calls = trainer.regulariser.calls
    # images x iterations x (5 reads, the last one apart for the scores, and 2 MLPs); the last block's two branches
    assert calls["dropout"] == 2 * 5 * 8 and calls["drop_path"] >= 2 * 2


def test_one_image_is_learned_by_heart(tmp_path: Path) -> None:
    cfg = config(
        tmp_path,
        1,
        model={"name": "nano", "fresh": False, "train": "decoder", "drop_path": 0, "decoder_dropout": 0},
        cache="float32",
        prompts={"clicks": 1, "empty": False},
        optim={"steps": 45, "warmup": 3, "milestones": [36], "images": 1, "clip": 1.0},
        loss={"stride": 2, "logit_scale": 0.25},
        run={"log_every": 9, "save_every": 1000},
    )
    fit(cfg, str(tmp_path / "out"))
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["iou_last"] < 0.95 < min(lines[-1]["iou_best"], lines[-1]["iou_last"]), lines


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    """A run is killed after its last checkpoint and goes on: its events say what metrics.jsonl says."""
    reason = "tensorboard is not installed: pip install 'maskmill[board]'"
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)
    cfg = config(tmp_path, run={"tensorboard": True})

    def kill(progress: Progress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(cfg, str(tmp_path / "out"), say=kill)
    assert fit(cfg, str(tmp_path / "out"))
    board = reader.EventAccumulator(str(tmp_path / "out/tensorboard"))
    board.Reload()
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [e.step for e in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    for name in board.Tags()["scalars"]:
        assert [e.value for e in board.Scalars(name)] == pytest.approx([line[name] for line in lines], rel=1e-5), name
    assert {"loss", "iou_best", "lr", "norm"} <= set(board.Tags()["scalars"])


def test_tensorboard_without_its_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [n for n in sys.modules if n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"pip install 'maskmill\[board\]'"):
        fit(config(tmp_path, run={"tensorboard": True}), str(tmp_path / "out"))
