"""Seeded weights of any SAM architecture whose masks look like masks, for speed benchmarks without a checkpoint.

Random weights will not do: their masks are noise, nine tenths of the low-resolution cells lie on a contour (in real
masks about 1 %), and nearly all or none pass a threshold. So the random weights are shaped, in the official classes:

1. The encoder reads mean colours and adds smooth positions, so the embedding is smooth over 8-16 cells.
2. In the image-to-token attention both sides see only position channels, which nothing else writes to: an image cell
   attends to the prompt's token where it is near the point. So masks are blobs around their points.
3. Both transposed convolutions are nearly constant over their 2 x 2 kernel: no chequerboard.
4. The last layers are fitted on one image: each mask token to a blob of its size (whole, part, subpart) with as many
   stable masks as asked for, the IoU head to the share that shall pass.

What it costs to run the network does not depend on its weights; what comes after the decoder does, and is then like the
real thing: `shaped_fit.look` measures it.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.shaped_fit import Look, embed, fit, look
from maskmill.sam.sam import ModelConfig
from tests.parity.official import Sam, official_sam

GAIN = 1.6  # how sharply an image cell attends to a near point
GRAIN = 0.015  # how much of their own a mask's finest cells have


@torch.inference_mode()
def shaped_model(
    cfg: ModelConfig,
    image: np.ndarray,
    iou: float = 0.88,
    stability: float = 0.95,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> tuple[Sam, Look]:
    """The official model with shaped float32 weights on `device`, and what its masks of the image look like.

    Args: the architecture; H x W x 3 uint8 RGB to fit on; the thresholds that the shares in shaped_fit.py refer to.
    """
    torch.manual_seed(seed)
    with torch.device(device):
        model = official_sam(cfg).to(device)  # its pixel_mean does not heed the line above
    generator = torch.Generator().manual_seed(seed)
    channels = position_channels(model)
    smooth_encoder(model, cfg, channels, generator)
    local_decoder(model, channels)
    embedded = embed(model, image)
    fit(model, embedded, iou, stability, generator)
    return model, look(model, embedded, iou)


def position_channels(model: Sam) -> Tensor:
    """A quarter of the position code's frequencies, low to high: indices into its first (sine) half."""
    frequency = model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.norm(dim=0)
    return frequency.argsort()[len(frequency) // 20 :: 3][: len(frequency) // 4]


def smooth_encoder(model: Sam, cfg: ModelConfig, channels: Tensor, generator: torch.Generator) -> None:
    """Mean colour of each patch, smooth positions, a blurring neck; nothing in the position channels."""
    encoder, enc = model.image_encoder, cfg.image_encoder
    grid = enc.img_size // enc.patch_size
    colour = torch.randn(enc.embed_dim, 3, 1, 1, generator=generator) * 0.5 / enc.patch_size**2
    fill(encoder.patch_embed.proj.weight, colour)
    coarse = torch.randn(1, enc.embed_dim, max(2, grid // 8), max(2, grid // 8), generator=generator)
    field = F.interpolate(coarse, (grid, grid), mode="bicubic", align_corners=True)
    fill(encoder.pos_embed, field.permute(0, 2, 3, 1))
    for name, p in encoder.named_parameters():
        if "rel_pos" in name:
            fill(p, torch.randn(p.shape, generator=generator) * 0.02)
    mix = torch.randn(enc.out_chans, enc.out_chans, 1, 1, generator=generator) / (9 * math.sqrt(enc.out_chans))
    fill(encoder.neck[2].weight, mix)
    silence(encoder.neck[3], channels)


def local_decoder(model: Sam, channels: Tensor) -> None:
    """Image cells attend to the token of a near point; tokens keep what they are; no chequerboard."""
    prompt, decoder = model.prompt_encoder, model.mask_decoder
    both = torch.cat([channels, channels + decoder.transformer_dim // 2])
    point = prompt.point_embeddings[1]
    for embedding in (decoder.iou_token, decoder.mask_tokens, prompt.not_a_point_embed, prompt.no_mask_embed, point):
        embedding.weight[:, both] = 0
    point.weight.mul_(2)
    for layer in decoder.transformer.layers:
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)  # each token attends to itself most
        for norm in (layer.norm1, layer.norm2, layer.norm3, layer.norm4):
            silence(norm, channels)
        attention = layer.cross_attn_image_to_token
        select = position_projection(attention.q_proj, channels, attention.num_heads)
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.copy_(select)
            projection.bias.zero_()
        attention.out_proj.weight.mul_(8)
    for convolution in (decoder.output_upscaling[0], decoder.output_upscaling[3]):
        constant = convolution.weight[:, :, :1, :1].expand_as(convolution.weight)
        convolution.weight.copy_(constant + GRAIN * (convolution.weight - constant))
    last = decoder.output_upscaling[3]
    last.weight.mul_(2)
    last.weight[:, 0] = 0  # one channel is constant, so a mask's offset can be fitted
    last.bias[0] = 3


def position_projection(projection: nn.Linear, channels: Tensor, heads: int) -> Tensor:
    """Inner x C: each head takes a few sine and cosine pairs, the first four low frequencies, the others high ones."""
    inner, width = projection.weight.shape
    weight = torch.zeros_like(projection.weight)
    pairs = max(1, inner // heads // 2)
    for head in range(heads):
        low_or_high = channels.chunk(2)[head * 2 // heads]
        for i, channel in enumerate(low_or_high[head % 2 :: 2][:pairs].tolist()):
            weight[head * 2 * pairs + 2 * i, channel] = GAIN
            weight[head * 2 * pairs + 2 * i + 1, channel + width // 2] = GAIN
    return weight


def fill(parameter: Tensor, values: Tensor) -> None:
    """Set a parameter, broadcasting."""
    parameter.copy_(values.to(parameter).expand_as(parameter))


def silence(norm: nn.Module, channels: Tensor) -> None:
    """Nothing comes out of a norm's position channels."""
    for p in norm.parameters():
        half = len(p) // 2
        p[torch.cat([channels, channels + half])] = 0
