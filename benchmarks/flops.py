"""Counted floating-point operations of SAM (one multiply-add = 2), and what they take at least on a machine.

Matrix products and convolutions only. ViT-B 0.97, ViT-L 2.99, ViT-H 5.96 TFLOP an image; 3.62 GFLOP a prompt.
"""

import time
from dataclasses import dataclass

import torch

from maskmill.sam.sam import ModelConfig

TOKENS = 7  # IoU, four masks, the point, the padding point
H200_TFLOPS, H200_TB_S = 790.0, 4.3  # measured: a large bf16 matrix product, a large copy


@dataclass(frozen=True)
class Work:
    """FLOP of one image and of one prompt. `least` is the same masks with less work: shared and folded projections."""

    encoder: float
    prompt: float
    least_prompt: float  # what every prompt needs
    least_upscaling: float  # what a prompt with a mask that passes needs besides

    def image(self, crops: int, prompts: int) -> float:
        """As the official code does it."""
        return crops * self.encoder + prompts * self.prompt

    def least_image(self, crops: int, prompts: int, kept: float) -> float:
        """With the exact savings, `kept` of the prompts having a mask that passes the predicted IoU."""
        return crops * self.encoder + prompts * (self.least_prompt + kept * self.least_upscaling)


def count(cfg: ModelConfig) -> Work:
    """Of an architecture, from its shapes."""
    cells = (cfg.image_encoder.img_size // cfg.image_encoder.patch_size) ** 2
    dec, width = cfg.mask_decoder, cfg.image_encoder.out_chans
    inner, heads, depth = width // 2, dec.transformer.num_heads, dec.transformer.depth
    masks, hidden = dec.num_multimask_outputs + 1, dec.iou_head_hidden_dim
    crossings = 2 * depth + 1  # token to image and back in each layer, token to image at the end
    self_attention = depth * (4 * width**2 * TOKENS + 2 * TOKENS**2 * width)
    token_side = crossings * 2 * TOKENS * width * inner + depth * 2 * TOKENS * width * dec.transformer.mlp_dim
    hyper = masks * (2 * width**2 + width * width // 8)
    iou = width * hidden + (dec.iou_head_depth - 2) * hidden**2 + hidden * masks
    tokens = self_attention + token_side + hyper + iou
    attention = crossings * 2 * TOKENS * cells * inner
    image_side = 2 * crossings * cells * width * inner
    upscaling = cells * (width * width // 4 * 4) + 4 * cells * (width // 4 * width // 8 * 4)
    dots = 16 * cells * width // 8
    # Layer 0 looks at the same image for every prompt: 3 projections are shared. The others go through the tokens:
    # tokens x heads rows instead of `inner` columns.
    folded = (2 * crossings - 3) * cells * TOKENS * heads * width + 3 * TOKENS * cells * inner
    return Work(
        encoder=2.0 * encoder_macs(cfg),
        prompt=2.0 * (image_side + attention + tokens + upscaling + masks * dots),
        least_prompt=2.0 * (folded + tokens),
        least_upscaling=2.0 * (upscaling + (masks - 1) * dots),
    )


def encoder_macs(cfg: ModelConfig) -> int:
    """Multiply-adds of the image encoder, window padding counted as the official code computes it."""
    enc = cfg.image_encoder
    side, width = enc.img_size // enc.patch_size, enc.embed_dim
    cells, hidden = side**2, int(width * enc.mlp_ratio)
    window = enc.window_size
    padded = (side + -side % window) ** 2
    in_window = 4 * width**2 * padded + padded * width * (2 * window**2 + 2 * window)
    over_all = 4 * width**2 * cells + cells * width * (2 * cells + 2 * side)
    globals_ = len(enc.global_attn_indexes)
    blocks = globals_ * over_all + (enc.depth - globals_) * in_window + enc.depth * 2 * width * hidden * cells
    patches = cells * 3 * enc.patch_size**2 * width
    neck = cells * (width * enc.out_chans + 9 * enc.out_chans**2)
    return blocks + patches + neck


def matmul_tflops(device: torch.device, dtype: torch.dtype, size: int, repeat: int = 10) -> float:
    """What this machine's own matrix product reaches on random numbers: the ceiling that times are held against."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    return 2e-12 * size**3 / best_seconds(lambda: a @ b, device, repeat)


def copy_tb_s(device: torch.device, megabytes: int, repeat: int = 10) -> float:
    """Bytes read and written by a large copy."""
    a = torch.empty(megabytes * 2**20, dtype=torch.uint8, device=device).random_()
    b = torch.empty_like(a)
    return 2e-12 * a.numel() / best_seconds(lambda: b.copy_(a), device, repeat)


def best_seconds(work: object, device: torch.device, repeat: int) -> float:
    """The least of `repeat` turns after two to warm up; a GPU is timed over all turns together."""
    assert callable(work)
    for _ in range(2):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(repeat):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - begun) / repeat
    seconds = []
    for _ in range(repeat):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
