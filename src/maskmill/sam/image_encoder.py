"""The ViT image encoder of SAM (paper section 3; segment-anything, modeling/image_encoder.py).

A plain ViT with windowed attention, a few global blocks, decomposed relative positions, and a convolutional neck.
Parameter names are the official ones, so published checkpoints load as they are.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.sam.common import LayerNorm2d, MLPBlock


@dataclass(frozen=True)
class ImageEncoderConfig:
    """The official constructor's arguments that differ between models. `img_size` is in pixels."""

    img_size: int
    embed_dim: int
    depth: int
    num_heads: int
    global_attn_indexes: tuple[int, ...]
    patch_size: int = 16
    mlp_ratio: float = 4.0
    out_chans: int = 256
    qkv_bias: bool = True
    use_rel_pos: bool = True
    window_size: int = 14


class ImageEncoderViT(nn.Module):
    """B x 3 x S x S normalised pixels -> B x out_chans x S/patch x S/patch embedding."""

    def __init__(self, cfg: ImageEncoderConfig) -> None:
        super().__init__()
        self.img_size = cfg.img_size
        grid = cfg.img_size // cfg.patch_size
        self.patch_embed = PatchEmbed(cfg.patch_size, cfg.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, cfg.embed_dim))
        self.blocks = nn.ModuleList(
            Block(cfg, window_size=0 if i in cfg.global_attn_indexes else cfg.window_size, grid=grid)
            for i in range(cfg.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(cfg.embed_dim, cfg.out_chans, kernel_size=1, bias=False),
            LayerNorm2d(cfg.out_chans),
            nn.Conv2d(cfg.out_chans, cfg.out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(cfg.out_chans),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))


class PatchEmbed(nn.Module):
    """B x 3 x H x W -> B x H/p x W/p x C."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Pre-norm transformer block on B x H x W x C; window_size 0 means global attention."""

    def __init__(self, cfg: ImageEncoderConfig, window_size: int, grid: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.embed_dim, eps=1e-6)
        self.attn = Attention(cfg, input_size=window_size or grid)
        self.norm2 = nn.LayerNorm(cfg.embed_dim, eps=1e-6)
        self.mlp = MLPBlock(cfg.embed_dim, int(cfg.embed_dim * cfg.mlp_ratio), act=nn.GELU)
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.norm1(x)
        if self.window_size > 0:
            h, w = x.shape[1], x.shape[2]
            x, padded = window_partition(x, self.window_size)
            x = window_unpartition(self.attn(x), self.window_size, padded, (h, w))
        else:
            x = self.attn(x)
        x = shortcut + x
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Multi-head attention on B x H x W x C with decomposed relative positions."""

    def __init__(self, cfg: ImageEncoderConfig, input_size: int) -> None:
        super().__init__()
        self.num_heads = cfg.num_heads
        head_dim = cfg.embed_dim // cfg.num_heads
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(cfg.embed_dim, cfg.embed_dim * 3, bias=cfg.qkv_bias)
        self.proj = nn.Linear(cfg.embed_dim, cfg.embed_dim)
        self.use_rel_pos = cfg.use_rel_pos
        if cfg.use_rel_pos:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * input_size - 1, head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * input_size - 1, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, _ = x.shape
        qkv = self.qkv(x).reshape(b, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, b * self.num_heads, h * w, -1).unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        if self.use_rel_pos:
            attn = add_rel_pos(attn, q, self.rel_pos_h, self.rel_pos_w, (h, w))
        x = attn.softmax(dim=-1) @ v
        x = x.view(b, self.num_heads, h, w, -1).permute(0, 2, 3, 1, 4).reshape(b, h, w, -1)
        return self.proj(x)


def window_partition(x: Tensor, size: int) -> tuple[Tensor, tuple[int, int]]:
    """B x H x W x C -> (B * windows) x size x size x C, zero-padded right and bottom; also the padded (H, W)."""
    b, h, w, c = x.shape
    x = F.pad(x, (0, 0, 0, -w % size, 0, -h % size))
    hp, wp = x.shape[1], x.shape[2]
    x = x.view(b, hp // size, size, wp // size, size, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, size, size, c), (hp, wp)


def window_unpartition(windows: Tensor, size: int, padded: tuple[int, int], hw: tuple[int, int]) -> Tensor:
    """The inverse of `window_partition`, with the padding cut off."""
    (hp, wp), (h, w) = padded, hw
    b = windows.shape[0] // ((hp // size) * (wp // size))
    x = windows.view(b, hp // size, wp // size, size, size, -1).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(b, hp, wp, -1)[:, :h, :w].contiguous()


def relative_table(size: int, rel_pos: Tensor) -> Tensor:
    """(2 * n - 1) x C embeddings -> size x size x C, one for each (query, key) offset; interpolated if n != size."""
    length = 2 * size - 1
    if rel_pos.shape[0] != length:
        table = rel_pos.T[None]
        rel_pos = F.interpolate(table, size=length, mode="linear")[0].T
    position = torch.arange(size, device=rel_pos.device)
    return rel_pos[position[:, None] - position[None, :] + size - 1]


def add_rel_pos(attn: Tensor, q: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, hw: tuple[int, int]) -> Tensor:
    """Add q . R_h[row offset] + q . R_w[column offset] to (B * heads) x HW x HW scores (MViTv2, eq. 4)."""
    h, w = hw
    b, _, dim = q.shape
    q = q.reshape(b, h, w, dim)
    rel_h = torch.einsum("bhwc,hkc->bhwk", q, relative_table(h, rel_pos_h))
    rel_w = torch.einsum("bhwc,wkc->bhwk", q, relative_table(w, rel_pos_w))
    bias = attn.view(b, h, w, h, w) + rel_h[:, :, :, :, None] + rel_w[:, :, :, None, :]
    return bias.view(b, h * w, h * w)
