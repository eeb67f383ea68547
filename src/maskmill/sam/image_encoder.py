"""The ViT image encoder of SAM (paper section 3; segment-anything, modeling/image_encoder.py).

A plain ViT with windowed attention, a few global blocks, decomposed relative positions, and a convolutional neck.
Parameter names are the official ones, so published checkpoints load as they are. The same function as the official
one with less work: the padding of windows is never projected, and no score matrix is ever whole.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.sam.common import LayerNorm2d, MLPBlock, plain_float32
from maskmill.sam.detail import Detail

# What a CPU works on at a time, to keep it in its cache: attention scores, and tokens of an MLP.
CPU_SCORES = 2**21
CPU_TOKENS = 1024


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
    detail: bool = False  # not in SAM: see detail.py


class ImageEncoderViT(nn.Module):
    """B x 3 x S x S normalised pixels -> B x out_chans x S/patch x S/patch embedding, and `detail` behind it.

    S is img_size, or any multiple of the patch size in training: positions are interpolated.
    """

    def __init__(self, cfg: ImageEncoderConfig) -> None:
        super().__init__()
        self.cfg, self.img_size = cfg, cfg.img_size
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
        if cfg.detail:
            self.detail = Detail(cfg.patch_size, cfg.out_chans // 8)

    @property
    def dtype(self) -> torch.dtype:
        """Of what goes into matrix products and convolutions; what runs from block to block is float32 or more."""
        return next(self.neck.parameters()).dtype

    def forward(self, pixels: Tensor) -> Tensor:
        with plain_float32(pixels):
            return self.embed(pixels.to(self.dtype))

    def embed(self, pixels: Tensor) -> Tensor:
        """`forward` of pixels in the encoder's own dtype."""
        x = self.patch_embed(pixels)
        pos: Tensor = self.pos_embed
        if pos.shape[1:3] != x.shape[1:3]:
            pos = F.interpolate(pos.permute(0, 3, 1, 2), x.shape[1:3], mode="bilinear").permute(0, 2, 3, 1)
        x = x + pos
        for block in self.blocks:
            x = block(x)
        first, norm, second, last_norm = self.neck
        x = norm(first(x.permute(0, 3, 1, 2).to(self.dtype)))
        x = last_norm(second(x.to(self.dtype)))
        return torch.cat([x, self.detail(pixels)], dim=1) if self.cfg.detail else x


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
        x = x + self.attn(self.norm1(x), self.window_size)
        rows = x.shape[1] if x.is_cuda else max(1, CPU_TOKENS // x.shape[2])
        return torch.cat([part + self.mlp(self.norm2(part)) for part in torch.split(x, rows, dim=1)], dim=1)


class Attention(nn.Module):
    """Multi-head attention on B x H x W x C with decomposed relative positions: in windows, or over everything (0)."""

    def __init__(self, cfg: ImageEncoderConfig, input_size: int) -> None:
        super().__init__()
        self.num_heads = cfg.num_heads
        head_dim = cfg.embed_dim // cfg.num_heads
        self.qkv = nn.Linear(cfg.embed_dim, cfg.embed_dim * 3, bias=cfg.qkv_bias)
        self.proj = nn.Linear(cfg.embed_dim, cfg.embed_dim)
        self.use_rel_pos = cfg.use_rel_pos
        if cfg.use_rel_pos:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * input_size - 1, head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * input_size - 1, head_dim))

    def forward(self, x: Tensor, window_size: int = 0) -> Tensor:
        qkv = self.qkv(x.to(self.qkv.weight.dtype))
        if window_size == 0:
            return self.proj(self.attend(qkv))
        h, w = x.shape[1:3]
        # The official code pads before `qkv`, with zeros: so the query, key and value of a padding token are the bias.
        padding = qkv.new_zeros(qkv.shape[3]) if self.qkv.bias is None else self.qkv.bias
        windows = cut_windows(qkv, window_size, padding)
        return self.proj(join_windows(self.attend(windows), h, w))

    def attend(self, qkv: Tensor) -> Tensor:
        """B x h x w x 3C -> B x h x w x C, before the last projection."""
        b, h, w, _ = qkv.shape
        q, k, v = qkv.view(b, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)
        if self.use_rel_pos:
            grid = q.unflatten(1, (h, w))
            rel_h = torch.einsum("nhwc,hkc->nhwk", grid, relative_table(h, self.rel_pos_h).to(q.dtype)).flatten(1, 2)
            rel_w = torch.einsum("nhwc,wkc->nhwk", grid, relative_table(w, self.rel_pos_w).to(q.dtype)).flatten(1, 2)
            x = (attention_by_onehots if q.is_cuda else attention_in_parts)(q, k, v, rel_h, rel_w)
        else:
            x = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        return x.view(b, self.num_heads, h, w, -1).permute(0, 2, 3, 1, 4).flatten(3)


def attention_in_parts(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Attention of N heads with the scores' bias rel_h[query, key's row] + rel_w[query, key's column].

    Args: q, k, v N x hw x d; rel_h N x hw x h; rel_w N x hw x w. Returns: N x hw x d.
    """
    cells = q.shape[1]
    heads = max(1, CPU_SCORES // cells**2)
    step = max(1, CPU_SCORES // cells)
    out = []
    # split, not sliced: in training a slice's gradient is as large as all of its source
    for q_some, k_some, v_some, *rel in zip(*(torch.split(x, heads) for x in (q, k, v, rel_h, rel_w)), strict=True):
        parts = []
        for q_at, h_at, w_at in zip(*(torch.split(x, step, dim=1) for x in (q_some, *rel)), strict=True):
            bias = (h_at[..., None] + w_at[:, :, None]).flatten(2)
            parts.append(F.scaled_dot_product_attention(q_at[None], k_some[None], v_some[None], bias[None])[0])
        out.append(torch.cat(parts, dim=1))
    return torch.cat(out)


def attention_by_onehots(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """The same for a GPU's fused kernels, which know no bias of this form: the bias is a product with one-hot keys.

    In half precision they take widths that are multiples of 8 only, so the rest is filled up with zeros.
    """
    h, w, scale = rel_h.shape[2], rel_w.shape[2], q.shape[2] ** -0.5
    row = torch.eye(h, dtype=k.dtype, device=k.device).repeat_interleave(w, 0)
    column = torch.eye(w, dtype=k.dtype, device=k.device).repeat(h, 1)
    spare = -(q.shape[2] + h + w) % 8
    q = F.pad(torch.cat([q, rel_h / scale, rel_w / scale], dim=2), (0, spare))
    k = F.pad(torch.cat([k, row.expand(len(k), -1, -1), column.expand(len(k), -1, -1)], dim=2), (0, spare))
    return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0]


def cut_windows(x: Tensor, size: int, padding: Tensor) -> Tensor:
    """B x H x W x C -> B * windows x size x size x C; right and bottom are filled up with `padding` (C)."""
    b, h, w, c = x.shape
    rows, columns = -(-h // size), -(-w // size)
    if (rows * size, columns * size) != (h, w):
        whole = padding.to(x.dtype).expand(b, rows * size, columns * size, c).clone()
        whole[:, :h, :w] = x
        x = whole
    return x.view(b, rows, size, columns, size, c).transpose(2, 3).flatten(0, 2)


def join_windows(x: Tensor, h: int, w: int) -> Tensor:
    """The inverse of `cut_windows`, without the padding."""
    size = x.shape[1]
    rows, columns = -(-h // size), -(-w // size)
    return x.view(-1, rows, columns, size, size, x.shape[3]).transpose(2, 3).flatten(1, 2).flatten(2, 3)[:, :h, :w]


def relative_table(size: int, rel_pos: Tensor) -> Tensor:
    """(2 * n - 1) x C embeddings -> size x size x C, one for each (query, key) offset; interpolated if n != size."""
    length = 2 * size - 1
    if rel_pos.shape[0] != length:
        table = rel_pos.T[None]
        rel_pos = F.interpolate(table, size=length, mode="linear")[0].T
    position = torch.arange(size, device=rel_pos.device)
    return rel_pos[position[:, None] - position[None, :] + size - 1]
