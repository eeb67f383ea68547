"""Which machines are faster in bfloat16. Without units for it a CPU takes ten times as long as in float32."""

import torch


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware: GPUs since Ampere, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False


def resolved(precision: str, device: torch.device) -> str:
    """`auto` as what it means on this device: bfloat16 where that is fast, else float32."""
    if precision != "auto":
        return precision
    return "bfloat16" if fast_bfloat16(device) else "float32"
