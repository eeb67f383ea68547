"""float32 means float32 in inference on a GPU, in convolutions too: seen without one, by the switch for cuDNN."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskmill.detect.head import BoxHead, DetectorConfig, detect
from maskmill.sam.common import TF32
from maskmill.sam.image_encoder import ImageEncoderConfig, ImageEncoderViT
from maskmill.sam.prompt_encoder import PromptEncoder

CFG = ImageEncoderConfig(img_size=64, embed_dim=24, depth=1, num_heads=3, global_attn_indexes=(0,), out_chans=16)
EXACT = "ieee" if hasattr(torch.backends.cudnn, "conv") else False


class OnGpu(Tensor):
    """As if it lay on a GPU."""

    is_cuda = True


def seen(module: nn.Module) -> list[Any]:
    """The switch in each convolution to come."""
    found: list[Any] = []
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.register_forward_pre_hook(lambda *_: found.append(getattr(*TF32.place)))
    return found


@pytest.fixture(autouse=True)
def allowed() -> Iterator[Any]:
    """What torch begins with, and what must be found again."""
    before = getattr(*TF32.place)
    assert before != EXACT
    yield
    assert getattr(*TF32.place) == before


def test_every_convolution_of_inference() -> None:
    """The image encoder with its detail, a mask prompt, the detector on the embedding."""
    encoder = ImageEncoderViT(CFG)
    prompts, head = PromptEncoder(16, (4, 4), (64, 64), mask_in_chans=8), BoxHead(DetectorConfig(channels=8), 16)
    switches = [seen(part) for part in (encoder, prompts, head)]
    with torch.inference_mode():
        embedding = encoder(torch.zeros(1, 3, 64, 64).as_subclass(OnGpu))
        prompts(None, None, torch.zeros(1, 1, 16, 16).as_subclass(OnGpu))
        detect(head, embedding.as_subclass(OnGpu), (64, 64), (64, 64), 64)
    assert [set(s) for s in switches] == [{EXACT}] * 3 and [len(s) for s in switches] == [3, 3, 6]


def test_training_and_cpus_are_left_alone() -> None:
    encoder = ImageEncoderViT(CFG)
    switches = seen(encoder)
    encoder(torch.zeros(1, 3, 64, 64).as_subclass(OnGpu))
    with torch.no_grad():
        encoder(torch.zeros(1, 3, 64, 64))
    assert len(switches) == 6 and EXACT not in switches


def test_threads_share_the_switch() -> None:
    """It is the process's: one that leaves must not turn it on under another that came later."""
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    found: list[Any] = []

    def first() -> None:
        with TF32.off():
            first_in.set()
            second_in.wait(10)
        first_out.set()

    def second() -> None:
        first_in.wait(10)
        with TF32.off():
            second_in.set()
            first_out.wait(10)
            found.append(getattr(*TF32.place))

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [EXACT]
