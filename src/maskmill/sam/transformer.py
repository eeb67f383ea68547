"""The two-way transformer of the mask decoder (paper appendix A; segment-anything, modeling/transformer.py)."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from maskmill.sam.common import MLPBlock


@dataclass(frozen=True)
class TwoWayTransformerConfig:
    depth: int = 2
    mlp_dim: int = 2048
    num_heads: int = 8


class TwoWayTransformer(nn.Module):
    """Tokens (B x N x C) and image (B x C x h x w) attend to each other; both come back, the image as B x hw x C."""

    def __init__(self, cfg: TwoWayTransformerConfig, embedding_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(cfg, embedding_dim, skip_first_layer_pe=i == 0) for i in range(cfg.depth)
        )
        self.final_attn_token_to_image = Attention(embedding_dim, cfg.num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(embedding_dim)

    def forward(self, image_embedding: Tensor, image_pe: Tensor, point_embedding: Tensor) -> tuple[Tensor, Tensor]:
        keys = image_embedding.flatten(2).permute(0, 2, 1)
        key_pe = image_pe.flatten(2).permute(0, 2, 1)
        queries = point_embedding
        for layer in self.layers:
            queries, keys = layer(queries, keys, point_embedding, key_pe)
        q, k = queries + point_embedding, keys + key_pe
        queries = queries + self.final_attn_token_to_image(q=q, k=k, v=keys)
        return self.norm_final_attn(queries), keys


class TwoWayAttentionBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, MLP of the tokens, image to tokens."""

    def __init__(self, cfg: TwoWayTransformerConfig, embedding_dim: int, skip_first_layer_pe: bool) -> None:
        super().__init__()
        self.self_attn = Attention(embedding_dim, cfg.num_heads, downsample_rate=1)
        self.norm1 = nn.LayerNorm(embedding_dim)
        self.cross_attn_token_to_image = Attention(embedding_dim, cfg.num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(embedding_dim)
        self.mlp = MLPBlock(embedding_dim, cfg.mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(embedding_dim)
        self.norm4 = nn.LayerNorm(embedding_dim)
        self.cross_attn_image_to_token = Attention(embedding_dim, cfg.num_heads, downsample_rate=2)
        self.skip_first_layer_pe = skip_first_layer_pe

    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        if self.skip_first_layer_pe:
            queries = self.self_attn(q=queries, k=queries, v=queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q=q, k=q, v=queries)
        queries = self.norm1(queries)

        q, k = queries + query_pe, keys + key_pe
        queries = self.norm2(queries + self.cross_attn_token_to_image(q=q, k=k, v=keys))
        queries = self.norm3(queries + self.mlp(queries))

        q, k = queries + query_pe, keys + key_pe
        keys = self.norm4(keys + self.cross_attn_image_to_token(q=k, k=q, v=queries))
        return queries, keys


class Attention(nn.Module):
    """Multi-head attention whose inner width is embedding_dim / downsample_rate."""

    def __init__(self, embedding_dim: int, num_heads: int, downsample_rate: int) -> None:
        super().__init__()
        inner = embedding_dim // downsample_rate
        assert inner % num_heads == 0, f"{num_heads} heads must divide {inner}"
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embedding_dim, inner)
        self.k_proj = nn.Linear(embedding_dim, inner)
        self.v_proj = nn.Linear(embedding_dim, inner)
        self.out_proj = nn.Linear(inner, embedding_dim)

    def heads(self, x: Tensor) -> Tensor:
        """B x N x C -> B x heads x N x C/heads."""
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = self.heads(self.q_proj(q)), self.heads(self.k_proj(k)), self.heads(self.v_proj(v))
        attn = q @ k.permute(0, 1, 3, 2) / math.sqrt(q.shape[-1])
        out = (attn.softmax(dim=-1) @ v).transpose(1, 2)
        return self.out_proj(out.reshape(*out.shape[:2], -1))
