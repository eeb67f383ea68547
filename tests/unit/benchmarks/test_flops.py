"""Counted operations against published counts, and against PyTorch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import count
from benchmarks.gpu_subject import tiny_config
from maskmill.sam.build import load_config
from tests.parity.official import official_sam

TFLOP = {"vit_b": 0.972, "vit_l": 2.986, "vit_h": 5.961}  # EfficientViT-SAM, table 1: ViT-H 2973 GMAC


@pytest.mark.parametrize("name", TFLOP)
def test_published_models(name: str) -> None:
    work = count(load_config(name))
    assert work.encoder / 1e12 == pytest.approx(TFLOP[name], rel=1e-3)
    assert work.prompt / 1e9 == pytest.approx(3.62, rel=2e-3)
    assert (work.least_prompt + work.least_upscaling) / 1e9 == pytest.approx(1.70, rel=5e-3)


def test_an_image_is_its_crops_and_prompts() -> None:
    work = count(load_config("vit_b"))
    assert work.image(21, 3072) == 21 * work.encoder + 3072 * work.prompt
    assert work.least_image(1, 1024, 0.4) == work.encoder + 1024 * (work.least_prompt + 0.4 * work.least_upscaling)


def test_as_torch_counts_the_official_model() -> None:
    cfg = tiny_config("vit_l")
    model, work = official_sam(cfg), count(cfg)
    size = cfg.image_encoder.img_size
    with torch.no_grad(), FlopCounterMode(display=False) as encoder:
        embedding = model.image_encoder(torch.zeros(1, 3, size, size))
    assert encoder.get_total_flops() == work.encoder
    sparse, dense = torch.zeros(3, 2, cfg.image_encoder.out_chans), torch.zeros_like(embedding).expand(3, -1, -1, -1)
    with torch.no_grad(), FlopCounterMode(display=False) as decoder:
        model.mask_decoder(embedding, torch.zeros_like(embedding), sparse, dense, multimask_output=True)
    assert decoder.get_total_flops() == 3 * work.prompt
