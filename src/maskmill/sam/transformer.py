"""The two-way transformer of the mask decoder (paper appendix A; segment-anything, modeling/transformer.py).

The same function as the official one with less work on the image side, where T = 4096 tokens stand against 7:
- the image tokens are the same for all prompts of an image until the end of the first layer, so what the first layer
  makes of them alone is made once (`SharedImage`);
- later layers multiply their image-side matrices into the few prompt tokens: q (x W)^T = (q W^T) x^T, and
  P (x W) = (P x) W, where a row of probabilities P sums to one, so that a bias passes through;
- image tokens come in pieces (a list along T), so that what is made of a piece stays in a CPU's cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from maskmill.sam.common import MLPBlock

Pieces = list[Tensor]  # B x t x C each, B x T x C together

# What a CPU works on at a time, to keep it in its cache: bytes of image tokens, in so many pieces.
CPU_BYTES = 2**23
CPU_PIECES = 8


@dataclass(frozen=True)
class TwoWayTransformerConfig:
    depth: int = 2
    mlp_dim: int = 2048
    num_heads: int = 8


@dataclass(frozen=True)
class SharedImage:
    """What all prompts of an image have in common, for G images of T = h * w tokens.

    size (h, w); tokens G x t x C and pe 1 x t x C, in pieces; projections of the first layer, G x heads x T x d: key
    and value, where the prompt reads the image, and query, in pieces, where the image reads the prompt. detail
    G x t x 16 * C/8, in pieces: what is added to the cells of the mask, if the encoder has it.
    """

    size: tuple[int, int]
    tokens: Pieces
    pe: Pieces
    key: Tensor
    value: Tensor
    query: Pieces
    detail: Pieces | None = None

    def images(self, prompts: Tensor, of: int) -> "SharedImage":
        """For some of `of` prompts, B / G for each image: each with the detail of its own image."""
        if self.detail is None or len(self.detail[0]) == 1:
            return self
        i = prompts // (of // len(self.detail[0]))
        return replace(self, detail=[x[i] for x in self.detail])

    def batch_size(self, most: int) -> int:
        """How many prompts go together: at most `most`, and on a CPU a power of two whose tokens fit into CPU_BYTES."""
        if self.key.is_cuda:
            return most
        fitting = CPU_BYTES // sum(x[0].nbytes for x in self.tokens)
        return max(1, min(most, 2 ** (max(1, fitting).bit_length() - 1)))


class TwoWayTransformer(nn.Module):
    """Prompt tokens and image tokens attend to each other."""

    def __init__(self, cfg: TwoWayTransformerConfig, embedding_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayAttentionBlock(cfg, embedding_dim) for _ in range(cfg.depth))
        self.final_attn_token_to_image = Attention(embedding_dim, cfg.num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(embedding_dim)

    @property
    def first(self) -> "TwoWayAttentionBlock":
        """The layer that reads what all prompts share."""
        layer = self.layers[0]
        assert isinstance(layer, TwoWayAttentionBlock)
        return layer

    def share(self, image: Tensor, pe: Tensor) -> SharedImage:
        """What the prompts of G images share. image G x C x h x w, pe 1 x C x h x w."""
        # in training fewer and larger products are faster
        pieces = 1 if image.is_cuda or torch.is_grad_enabled() else CPU_PIECES
        tokens, key_pe = (x.flatten(2).transpose(1, 2).contiguous() for x in (image, pe))
        read, write = self.first.cross_attn_token_to_image, self.first.cross_attn_image_to_token
        tokens_pe = tokens + key_pe
        key, value = read.heads(read.k_proj(tokens_pe)), read.heads(read.v_proj(tokens))
        query = write.heads(write.q_proj(tokens_pe))
        size = (image.shape[2], image.shape[3])
        pieces = min(pieces, size[0] * size[1])
        cut = [list(x.tensor_split(pieces, dim=-2)) for x in (tokens, key_pe, query)]
        return SharedImage(size, cut[0], cut[1], key, value, cut[2])

    def forward(self, points: Tensor, shared: SharedImage) -> tuple[Tensor, Pieces]:
        """Tokens B x N x C, B / G for each image, one image's after another -> before the last attention: tokens
        B x N x C and image tokens B x t x C in pieces."""
        queries, image = self.first.from_shared(points, shared)
        for layer in list(self.layers)[1:]:
            queries, image = layer(queries, points, image, shared.pe)
        return queries, image

    def last(self, queries: Tensor, points: Tensor, image: Pieces, pe: Pieces) -> Tensor:
        """The last attention, tokens to image, for any of the tokens: no token depends on another here."""
        return self.norm_final_attn(queries + self.final_attn_token_to_image.read(queries + points, image, pe))


class TwoWayAttentionBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, MLP of the tokens, image to tokens."""

    def __init__(self, cfg: TwoWayTransformerConfig, embedding_dim: int) -> None:
        super().__init__()
        self.self_attn = Attention(embedding_dim, cfg.num_heads, downsample_rate=1)
        self.norm1 = nn.LayerNorm(embedding_dim)
        self.cross_attn_token_to_image = Attention(embedding_dim, cfg.num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(embedding_dim)
        self.mlp = MLPBlock(embedding_dim, cfg.mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(embedding_dim)
        self.norm4 = nn.LayerNorm(embedding_dim)
        self.cross_attn_image_to_token = Attention(embedding_dim, cfg.num_heads, downsample_rate=2)

    def from_shared(self, points: Tensor, shared: SharedImage) -> tuple[Tensor, Pieces]:
        """The first layer: tokens B x N x C and what their images share -> tokens, image tokens of each prompt."""
        queries = self.norm1(self.self_attn(q=points, k=points, v=points))
        queries = self.norm2(queries + self.cross_attn_token_to_image.read_shared(queries + points, shared))
        queries = self.norm3(queries + self.mlp(queries))
        pieces = self.cross_attn_image_to_token.write_shared(shared, k=queries + points, v=queries)
        return queries, [self.norm4(x) for x in pieces]

    def forward(self, queries: Tensor, points: Tensor, image: Pieces, pe: Pieces) -> tuple[Tensor, Pieces]:
        """Any later layer: each prompt has image tokens of its own."""
        q = queries + points
        queries = self.norm1(queries + self.self_attn(q=q, k=q, v=queries))
        queries = self.norm2(queries + self.cross_attn_token_to_image.read(queries + points, image, pe))
        queries = self.norm3(queries + self.mlp(queries))
        pieces = self.cross_attn_image_to_token.write(image, pe, k=queries + points, v=queries)
        return queries, [self.norm4(x) for x in pieces]


class Attention(nn.Module):
    """Multi-head attention whose inner width is embedding_dim / downsample_rate.

    `forward` is the plain one. `read` is forward(q, image + pe, image), `write` is image + forward(image + pe, k, v):
    each for an image of the prompt's own, and for one that is shared.
    """

    def __init__(self, embedding_dim: int, num_heads: int, downsample_rate: int) -> None:
        super().__init__()
        inner = embedding_dim // downsample_rate
        assert inner % num_heads == 0, f"{num_heads} heads must divide {inner}"
        self.num_heads = num_heads
        self.scale = (inner // num_heads) ** -0.5
        self.q_proj = nn.Linear(embedding_dim, inner)
        self.k_proj = nn.Linear(embedding_dim, inner)
        self.v_proj = nn.Linear(embedding_dim, inner)
        self.out_proj = nn.Linear(inner, embedding_dim)

    def heads(self, x: Tensor) -> Tensor:
        """B x N x C -> B x heads x N x d."""
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def by_head(self, proj: nn.Linear) -> Tensor:
        """The weight of an inner projection: heads x d x C."""
        return proj.weight.view(self.num_heads, -1, proj.in_features)

    def join(self, x: Tensor) -> Tensor:
        """B x heads x N x d -> B x N x C, projected."""
        return self.out_proj(x.transpose(1, 2).flatten(2))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(q, self.heads(self.k_proj(k)), self.heads(self.v_proj(v)))

    def attend(self, q: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries B x N x C; key and value are projected already, B x heads x M x d."""
        query = self.heads(self.q_proj(q)) * self.scale
        return self.join((query @ key.transpose(-2, -1)).softmax(-1) @ value)

    def read_shared(self, q: Tensor, shared: SharedImage) -> Tensor:
        """Tokens B x N x C, B / G for each of G images -> B x N x C."""
        return self.attend(q.view(len(shared.key), -1, q.shape[-1]), shared.key, shared.value).view(q.shape)

    def read(self, q: Tensor, image: Pieces, pe: Pieces) -> Tensor:
        """Tokens B x N x C read image tokens B x T x C."""
        query = self.heads(self.q_proj(q)) * self.scale
        folded, bias = self.fold(query, self.k_proj)
        scores = torch.cat([score(x + e, folded, bias) for x, e in zip(image, pe, strict=True)], dim=-1)
        weights = torch.split(scores.softmax(-1), [x.shape[1] for x in image], dim=-1)
        seen = torch.stack([w @ x for w, x in zip(weights, image, strict=True)]).sum(0)
        value = torch.einsum("bhnc,hdc->bhnd", seen.view(*query.shape[:3], -1), self.by_head(self.v_proj))
        return self.join(value + self.v_proj.bias.view(self.num_heads, 1, -1))

    def write_shared(self, shared: SharedImage, k: Tensor, v: Tensor) -> Iterator[Tensor]:
        """Image tokens G x T x C read tokens B x N x C, B / G for each image -> B x T x C, in pieces."""
        (b, n, c), groups = k.shape, len(shared.key)
        key = self.heads(self.k_proj(k.view(groups, -1, c))) * self.scale
        values = self.values(v)
        for x, query in zip(shared.tokens, shared.query, strict=True):
            scores = key @ query.transpose(-2, -1)
            scores = scores.view(groups, self.num_heads, b // groups, n, x.shape[1])  # G x heads x B/G x N x t
            x = x.repeat_interleave(b // groups, 0) if groups > 1 else x.expand(b, -1, -1)
            yield mix(x, scores.transpose(1, 2).flatten(0, 1), values)

    def write(self, image: Pieces, pe: Pieces, k: Tensor, v: Tensor) -> Iterator[Tensor]:
        """Image tokens B x T x C read tokens B x N x C -> B x T x C, in pieces."""
        key = self.heads(self.k_proj(k)) * self.scale
        folded, bias = self.fold(key, self.q_proj)
        values = self.values(v)
        for x, e in zip(image, pe, strict=True):
            yield mix(x, score(x + e, folded, bias).view(*key.shape[:3], -1), values)

    def fold(self, tokens: Tensor, proj: nn.Linear) -> tuple[Tensor, Tensor]:
        """Tokens' side of products with the other side's projection: t (x W + b) = (t W^T) x + t b.

        B x heads x N x d -> B x heads * N x C and B x heads * N x 1.
        """
        folded = torch.einsum("bhnd,hdc->bhnc", tokens, self.by_head(proj))
        return folded.flatten(1, 2), (tokens @ proj.bias.view(self.num_heads, -1, 1)).flatten(1, 2)

    def values(self, v: Tensor) -> Tensor:
        """Tokens B x N x C -> what each adds to an image token that looks at nothing else: B x heads * N x C."""
        out = self.out_proj.weight.view(v.shape[-1], self.num_heads, -1)
        value = torch.einsum("bhnd,chd->bhnc", self.heads(self.v_proj(v)), out)
        # one head's weights sum to one, so the bias may ride on the values of the first head
        return torch.cat([value[:, :1] + self.out_proj.bias, value[:, 1:]], dim=1).flatten(1, 2)


def score(image: Tensor, folded: Tensor, bias: Tensor) -> Tensor:
    """Image tokens B x t x C against folded prompt tokens: B x heads * N x t."""
    return torch.baddbmm(bias, folded, image.transpose(1, 2))


def mix(image: Tensor, scores: Tensor, values: Tensor) -> Tensor:
    """Image tokens B x t x C + B x heads * N x C values as B x heads x N x t scores weigh them."""
    return torch.baddbmm(image, scores.softmax(2).flatten(1, 2).transpose(1, 2), values)
