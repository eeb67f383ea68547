"""Shaped weights give masks where random ones give noise, and load into both sides."""

import pytest
import torch

from benchmarks.gpu_subject import tiny_config
from benchmarks.pictures import picture
from benchmarks.shaped import shaped_model
from benchmarks.shaped_fit import embed, look
from maskmill.sam.build import build_sam, load_config
from tests.parity.official import official_sam


def test_masks_not_noise() -> None:
    cfg, image = tiny_config("vit_b"), picture(0, 90, 135)
    model, seen = shaped_model(cfg, image)
    assert seen.like_masks
    assert seen.contour <= seen.active
    assert 0.2 < seen.pass_iou < 0.5
    build_sam(cfg).load_state_dict(model.state_dict(), strict=True)
    torch.manual_seed(0)
    noise = official_sam(cfg)
    assert not look(noise, embed(noise, image), iou=-10.0).like_masks


def test_seeded() -> None:
    cfg, image = tiny_config("vit_b"), picture(0, 90, 135)
    first, second, other = (shaped_model(cfg, image, seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["image_encoder.pos_embed"], other["image_encoder.pos_embed"])


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_names_are_the_official_ones(name: str) -> None:
    with torch.device("meta"):
        ours, official = build_sam(load_config(name)), official_sam(load_config(name))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in official.state_dict().items()}
