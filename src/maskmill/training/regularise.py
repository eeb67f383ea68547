"""Drop path in the encoder and dropout in the decoder, as hooks: the model itself has no trace of them.

Both draw from torch's own generator, which the trainer seeds for every step.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.sam.sam import Sam


class Regulariser:
    """Attaches itself to a model; acts while the model is in training mode."""

    def __init__(self, model: Sam, drop_path: float, dropout: float) -> None:
        self.images = 1  # of the encoder pass at hand: windows of one image are dropped together
        self.calls = {"drop_path": 0, "dropout": 0}
        blocks: list[Any] = list(model.image_encoder.blocks)
        for i, block in enumerate(blocks):
            share = drop_path * i / max(1, len(blocks) - 1)
            for branch in (block.attn, block.mlp):
                if share > 0:
                    branch.register_forward_hook(self.path_hook(share))
        if dropout > 0:
            for module in decoder_branches(model):
                module.register_forward_hook(self.dropout_hook(dropout))

    def path_hook(self, share: float) -> Any:
        """Zero a residual branch for some images, and scale it up for the others (Huang et al., arXiv 1603.09382)."""

        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            if not module.training:
                return out
            self.calls["drop_path"] += 1
            kept = torch.rand(self.images, device=out.device) >= share
            each = (kept.to(out.dtype) / (1 - share)).repeat_interleave(out.shape[0] // self.images)
            return out * each.view(-1, *[1] * (out.ndim - 1))

        return hook

    def dropout_hook(self, share: float) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            if not module.training:
                return out
            self.calls["dropout"] += 1
            return F.dropout(out, share)

        return hook


def decoder_branches(model: Sam) -> list[nn.Module]:
    """What the decoder's transformer adds to its residual streams: attentions and MLPs."""
    transformer: Any = model.mask_decoder.transformer
    names = ("self_attn", "cross_attn_token_to_image", "mlp", "cross_attn_image_to_token")
    found = [getattr(layer, name) for layer in transformer.layers for name in names]
    return [*found, transformer.final_attn_token_to_image]
