"""SAM's decoder and the encoder's attention as the paper has them, on maskmill's parameters: the oracle of the tests.

Nothing is shared, folded, gated or taken in parts; every prompt has image tokens of its own.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmill.sam import image_encoder
from maskmill.sam.mask_decoder import MaskDecoder
from maskmill.sam.transformer import Attention, TwoWayTransformer


def decode(
    decoder: MaskDecoder, embeddings: Tensor, pe: Tensor, sparse: Tensor, dense: Tensor, detail: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All four masks. embeddings and dense B x C x h x w, or 1 for B; pe 1 x C x h x w; sparse B x N x C; detail
    B x C/8 x 4h x 4w, or 1 for B."""
    b = len(sparse)
    learned = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([learned.expand(b, -1, -1), sparse], dim=1)
    src = (embeddings + dense).expand(b, -1, -1, -1)
    hs, keys = two_way(decoder.transformer, src, pe.expand(b, -1, -1, -1), tokens)
    up = decoder.output_upscaling[:-1](keys.transpose(1, 2).reshape(src.shape))
    up = decoder.output_upscaling[-1](up if detail is None else up + detail)
    hyper = torch.stack([mlp(hs[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    masks = (hyper @ up.flatten(2)).view(b, -1, *up.shape[2:])
    return masks, decoder.iou_prediction_head(hs[:, 0])


def two_way(transformer: TwoWayTransformer, image: Tensor, pe: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    keys, key_pe = (x.flatten(2).transpose(1, 2) for x in (image, pe))
    queries = points
    for i, layer in enumerate(transformer.layers):
        if i == 0:
            queries = attend(layer.self_attn, queries, queries, queries)
        else:
            q = queries + points
            queries = queries + attend(layer.self_attn, q, q, queries)
        queries = layer.norm1(queries)
        q, k = queries + points, keys + key_pe
        queries = layer.norm2(queries + attend(layer.cross_attn_token_to_image, q, k, keys))
        queries = layer.norm3(queries + layer.mlp(queries))
        q, k = queries + points, keys + key_pe
        keys = layer.norm4(keys + attend(layer.cross_attn_image_to_token, k, q, queries))
    q, k = queries + points, keys + key_pe
    queries = queries + attend(transformer.final_attn_token_to_image, q, k, keys)
    return transformer.norm_final_attn(queries), keys


def attend(attn: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def heads(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], attn.num_heads, -1).transpose(1, 2)

    q, k, v = heads(attn.q_proj(q)), heads(attn.k_proj(k)), heads(attn.v_proj(v))
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
    return attn.out_proj((weights @ v).transpose(1, 2).flatten(2))


def encoder_attention(attn: image_encoder.Attention, x: Tensor, window: int) -> Tensor:
    """B x H x W x C; zeros are padded on, projected, seen, and cut off."""
    b, h, w, c = x.shape
    size = window or h
    x = F.pad(x, (0, 0, 0, -w % size, 0, -h % size))
    rows, columns = x.shape[1] // size, x.shape[2] // size
    x = x.view(b, rows, size, columns, size, c).transpose(2, 3).reshape(-1, size, size, c)
    qkv = attn.qkv(x).reshape(len(x), size * size, 3, attn.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    grid = q.unflatten(2, (size, size))
    rel_h = torch.einsum("bnhwc,hkc->bnhwk", grid, image_encoder.relative_table(size, attn.rel_pos_h))
    rel_w = torch.einsum("bnhwc,wkc->bnhwk", grid, image_encoder.relative_table(size, attn.rel_pos_w))
    bias = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(4).flatten(2, 3)
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
    x = attn.proj((weights @ v).transpose(1, 2).flatten(2)).view(b, rows, columns, size, size, c)
    return x.transpose(2, 3).reshape(b, rows * size, columns * size, c)[:, :h, :w]
