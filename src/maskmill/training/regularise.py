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
        self.images = 1
        self.kept: dict[nn.Module, Tensor] = {}  # of the encoder pass at hand
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

    def begin(self, images: int) -> None:
        """Before a pass of the encoder. A branch may be computed in parts: all of an image's are dropped, or none."""
        self.images, self.kept = images, {}

    def path_hook(self, share: float) -> Any:
        """Zero a residual branch (B x ...) for some images, and scale it up for the others (arXiv 1603.09382)."""

        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            if not module.training:
                return out
            self.calls["drop_path"] += 1
            if module not in self.kept:
                self.kept[module] = (torch.rand(self.images, device=out.device) >= share).to(out.dtype) / (1 - share)
            return out * self.kept[module].view(-1, *[1] * (out.ndim - 1))

        return hook

    def dropout_hook(self, share: float) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            if not module.training:
                return out
            self.calls["dropout"] += 1
            return F.dropout(out, share)

        return hook


def decoder_branches(model: Sam) -> list[nn.Module]:
    """What the decoder adds to its tokens: attentions, by their last projection, and MLPs.

    The paper does not say where its dropout is. The image's own stream has none: it is written without a module.
    """
    transformer: Any = model.mask_decoder.transformer
    reads = [layer.self_attn for layer in transformer.layers]
    reads += [layer.cross_attn_token_to_image for layer in transformer.layers]
    projections = [read.out_proj for read in (*reads, transformer.final_attn_token_to_image)]
    return [*projections, *(layer.mlp for layer in transformer.layers)]
