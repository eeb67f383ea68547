"""An encoder that begins as a published MAE one: such weights cannot be had here, theirs are drawn, by their names."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskmill.errors import UserError
from maskmill.training.fit import fit
from maskmill.training.pretrained import load_encoder
from maskmill.training.trainer import Trainer
from tests.unit.training.sets import training_config

WIDTH, SIDE = 32, 3  # of the tiny model; cells along the side of MAE's image


def mae(blocks: int = 2, width: int = WIDTH, patch: int = 16) -> dict[str, Tensor]:
    """Its encoder and some of its decoder."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "pos_embed": (1, 1 + SIDE * SIDE, width),
        "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "decoder_embed.weight": (8, width), "decoder_blocks.7.norm1.weight": (8,),
    }  # fmt: skip
    for n in range(blocks):
        sizes: dict[str, tuple[int, ...]] = {
            "norm1": (width,), "norm2": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width),
            "mlp.fc1": (2 * width, width), "mlp.fc2": (width, 2 * width),
        }  # fmt: skip
        for part, shape in sizes.items():
            shapes[f"blocks.{n}.{part}.weight"], shapes[f"blocks.{n}.{part}.bias"] = shape, shape[:1]
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def saved(path: Path, state: Any) -> str:
    torch.save(state, path)
    return str(path)


def test_a_fresh_model_has_the_encoder_of_the_file(tmp_path: Path) -> None:
    theirs = mae()
    cfg = training_config(tmp_path, model={"encoder": saved(tmp_path / "mae.pth", {"model": theirs})})
    trainer = Trainer(cfg)
    trainer.fresh([torch.randint(0, 255, (3, 48, 64), dtype=torch.uint8)])
    ours = trainer.model.image_encoder.state_dict()
    assert torch.equal(ours["blocks.1.mlp.lin2.weight"], theirs["blocks.1.mlp.fc2.weight"])
    assert torch.equal(ours["blocks.0.attn.qkv.bias"], theirs["blocks.0.attn.qkv.bias"])
    assert torch.equal(ours["patch_embed.proj.weight"], theirs["patch_embed.proj.weight"])
    assert not ours["blocks.1.attn.rel_pos_h"].any() and ours["neck.0.weight"].any()
    # 3 x 3 positions become 4 x 4, the class token's is left out; corners stay nearest to their own
    grid = theirs["pos_embed"][0, 1:].view(SIDE, SIDE, WIDTH)
    corner = ours["pos_embed"][0, 0, 0]
    assert int((grid.flatten(0, 1) - corner).norm(dim=1).argmin()) == 0
    assert ours["pos_embed"].shape == (1, 4, 4, WIDTH)


def test_an_even_patch_is_embedded_as_by_smaller_patches(tmp_path: Path) -> None:
    """MAE's ViT-H has patches of 14 pixels."""
    theirs = mae(patch=14)
    model = Trainer(training_config(tmp_path)).model
    load_encoder(model.image_encoder, saved(tmp_path / "mae.pth", theirs))
    ours = model.image_encoder.patch_embed.proj.weight
    assert ours.shape[2:] == (16, 16)
    want = theirs["patch_embed.proj.weight"].sum((2, 3))
    assert (ours.sum((2, 3)) - want).norm() < 0.05 * want.norm()


def test_a_run_knows_the_encoder_that_it_began_with(tmp_path: Path) -> None:
    one, other = mae(), mae()
    other["cls_token"] += 1  # another file, though nothing that is used differs
    path = saved(tmp_path / "mae.pth", one)
    steps = {"optim": {"steps": 2, "milestones": []}}
    assert fit(training_config(tmp_path, model={"encoder": path}, **steps), str(tmp_path / "out"))
    moved = str(shutil.copy(path, tmp_path / "moved.pth"))
    assert fit(training_config(tmp_path, model={"encoder": moved}, **steps), str(tmp_path / "out"))
    changed = saved(tmp_path / "other.pth", other)
    with pytest.raises(UserError, match="was begun with weights="):
        fit(training_config(tmp_path, model={"encoder": changed}, **steps), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (mae(width=48), r"pos_embed is \(1, 10, 48\), expected \(1, 4, 4, 32\): is it another size"),
        (mae(blocks=3), "has 3 blocks, the model 2"),
        (mae(blocks=1), r"has no 'blocks\.1\.norm1\.weight': expected an MAE checkpoint"),
        ([1], "holds list, not a state dict"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, state: Any, words: str) -> None:
    cfg = training_config(tmp_path, model={"encoder": saved(tmp_path / "mae.pth", state)})
    with pytest.raises(UserError, match=words):
        fit(cfg, str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"model\.encoder '.*none\.pth' is not a file"):
        fit(training_config(tmp_path, model={"encoder": str(tmp_path / "none.pth")}), str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"set model\.fresh=true"):
        training_config(tmp_path, model={"fresh": False, "encoder": "mae.pth"})
