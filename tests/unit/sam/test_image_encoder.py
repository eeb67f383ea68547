"""The encoder's attention in parts, by one-hot keys and in windows, against the plain one."""

import pytest
import torch
from torch import Tensor

from maskmill.sam import image_encoder
from maskmill.sam.image_encoder import (
    Attention,
    ImageEncoderConfig,
    ImageEncoderViT,
    attention_by_onehots,
    attention_in_parts,
    cut_windows,
    join_windows,
)
from tests.unit.sam import plain

CFG = ImageEncoderConfig(
    img_size=112, embed_dim=24, depth=2, num_heads=3, global_attn_indexes=(1,), out_chans=16, window_size=3
)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(size: int, cfg: ImageEncoderConfig = CFG) -> Attention:
    """With relative positions that are not zero."""
    torch.manual_seed(0)
    attn = Attention(cfg, input_size=size).double()
    torch.nn.init.normal_(attn.rel_pos_h)
    torch.nn.init.normal_(attn.rel_pos_w)
    return attn


@pytest.mark.parametrize("window", [0, 3, 7, 14])
def test_attention_is_plain(window: int) -> None:
    """Over everything; windows of 3 (two rows and columns of padding); one window; one that is half padding."""
    attn, x = attention(window or 7), noise(1, 2, 7, 7, 24)
    ours, theirs = attn(x, window), plain.encoder_attention(attn, x, window)
    assert (ours - theirs).abs().max() < 1e-12
    leaves, weight = list(attn.parameters()), noise(2, *x.shape)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), leaves) for y in (ours, theirs)), strict=True):
        assert (a - b).abs().max() < 1e-10 and (b.abs().max() > 1e-6 or b.shape == (72,))


@pytest.mark.parametrize("scores", [1, 60, 49 * 20, 49 * 49, 49 * 49 * 2, 2**30])
def test_parts_change_nothing(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some queries of a head at a time, a head, several, all."""
    q, k, v, rel_h, rel_w = (noise(i, 3, 49, n) for i, n in enumerate((8, 8, 8, 7, 7)))
    bias = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(2)
    want = (q @ k.transpose(1, 2) / 8**0.5 + bias).softmax(-1) @ v
    monkeypatch.setattr(image_encoder, "CPU_SCORES", scores)
    assert (attention_in_parts(q, k, v, rel_h, rel_w) - want).abs().max() < 1e-12
    assert (attention_by_onehots(q, k, v, rel_h, rel_w) - want).abs().max() < 1e-12


@pytest.mark.parametrize("size", [(6, 6), (7, 5), (2, 9)])
def test_windows_and_back(size: tuple[int, int]) -> None:
    """Right and below there is padding, as it is given."""
    x, padding = noise(1, 2, *size, 5), noise(2, 5)
    windows = cut_windows(x, 3, padding)
    assert windows.shape == (2 * -(-size[0] // 3) * -(-size[1] // 3), 3, 3, 5)
    assert torch.equal(join_windows(windows, *size), x)
    pad = (windows == padding).all(-1).sum()
    assert pad == 9 * len(windows) - 2 * size[0] * size[1]
    assert torch.equal(windows[-1, -1, -1], x[-1, -1, -1] if size == (6, 6) else padding)


def test_qkv_without_bias() -> None:
    """Then padding is zero."""
    cfg = ImageEncoderConfig(**{**vars(CFG), "qkv_bias": False})
    attn, x = attention(3, cfg), noise(1, 1, 7, 7, 24)
    assert (attn(x, 3) - plain.encoder_attention(attn, x, 3)).abs().max() < 1e-12


@torch.no_grad()
def test_mlp_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = ImageEncoderViT(CFG).double(), noise(1, 2, 3, 112, 112)
    whole = model(x)
    monkeypatch.setattr(image_encoder, "CPU_TOKENS", 15)
    assert (model(x) - whole).abs().max() < 1e-12


@torch.no_grad()
def test_positions_are_interpolated_for_another_side() -> None:
    torch.manual_seed(0)
    model = ImageEncoderViT(CFG)
    torch.nn.init.normal_(model.pos_embed)
    x = noise(1, 1, 3, 160, 64).float()
    assert model(x).shape == (1, 16, 10, 4)
    before = model(x)
    model.pos_embed.add_(1.0)
    assert not torch.allclose(model(x), before), "positions take part"
