"""nano's own training on a GPU: the step, the checkpoint, and the same losses as on the CPU."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maskmill.sam.build import build_sam, load_config
from maskmill.training.nano_trainer import NanoConfig, Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two images of 128 x 128 with a square each, its click and its box."""
    chance = torch.Generator().manual_seed(0)
    image, mask = torch.randn(2, 3, 128, 128, generator=chance), torch.zeros(2, 1, 32, 32)
    mask[..., 4:20, 4:20] = 1
    return image, mask, torch.full((2, 1, 2), 47.5), torch.tensor([[16.0, 16, 80, 80]]).expand(2, 1, 4)


def trainer(device: str) -> Trainer:
    made = Trainer(NanoConfig(device=device, more=1.0, warmup=1, clicks=2))
    made.prepare(torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(1)))
    return made


def test_it_begins_as_on_the_cpu_learns_and_goes_on(tmp_path: Path) -> None:
    cpu, gpu = (trainer(device).train_step(batch())["loss"] for device in ("cpu", "cuda"))
    assert cpu == pytest.approx(gpu, rel=0.05)  # bfloat16 there, perhaps here too
    one = trainer("cuda")
    losses = [one.train_step(batch())["loss"] for _ in range(20)]
    assert losses[-1] < losses[0]
    one.save(tmp_path)
    build_sam(load_config("nano")).load_state_dict(load_file(tmp_path / "nano.safetensors"), strict=True)
    again = trainer("cuda")
    again.load(tmp_path / "checkpoint.pt")
    assert again.step == 20
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), one.model.parameters(), strict=True))
