"""Small layers that the encoder and the decoder share (segment-anything, modeling/common.py)."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Tf32Switch:
    """torch's switch that lets cuDNN round the float32 inputs of convolutions to TF32. It is the process's: threads
    that want it off together turn it off once, and the last of them puts it back."""

    def __init__(self) -> None:
        cudnn: Any = torch.backends.cudnn
        # since torch 2.9 convolutions have one of their own, and the older one cannot be read once that was set
        self.place = (cudnn.conv, "fp32_precision") if hasattr(cudnn, "conv") else (cudnn, "allow_tf32")
        self.lock, self.users, self.before = threading.Lock(), 0, None

    @contextmanager
    def off(self) -> Iterator[None]:
        with self.lock:
            if self.users == 0:
                self.before = getattr(*self.place)
                setattr(*self.place, "ieee" if self.place[1] == "fp32_precision" else False)
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if self.users == 0:
                    setattr(*self.place, self.before)


TF32 = Tf32Switch()


@contextmanager
def plain_float32(x: Tensor) -> Iterator[None]:
    """Inside, convolutions of a float32 x keep all its bits on a GPU, too. With gradients all stays as torch has it."""
    if not x.is_cuda or torch.is_grad_enabled():
        yield
        return
    with TF32.off():
        yield


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that does not make the host wait for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class MLPBlock(nn.Module):
    """Two linear layers around one activation: (..., C) -> (..., C)."""

    def __init__(self, embedding_dim: int, mlp_dim: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.lin1 = nn.Linear(embedding_dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, embedding_dim)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x.to(self.lin1.weight.dtype))))


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of a B x C x H x W map. Written out, as the official one is; never in half."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # float16 cannot hold the squares
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(var + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]
