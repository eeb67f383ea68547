"""Prompt tokens + image embedding -> masks and their predicted IoU (paper appendix A; modeling/mask_decoder.py)."""

import itertools
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.sam.common import LayerNorm2d
from maskmill.sam.transformer import TwoWayTransformer, TwoWayTransformerConfig


@dataclass(frozen=True)
class MaskDecoderConfig:
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    transformer: TwoWayTransformerConfig = field(default_factory=TwoWayTransformerConfig)


class MaskDecoder(nn.Module):
    """Four mask tokens: token 0 answers unambiguous prompts, tokens 1-3 are whole, part and subpart."""

    def __init__(self, cfg: MaskDecoderConfig, transformer_dim: int) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(cfg.transformer, transformer_dim)
        self.num_mask_tokens = cfg.num_multimask_outputs + 1
        self.iou_token = nn.Embedding(1, transformer_dim)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, transformer_dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(transformer_dim, transformer_dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(transformer_dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(transformer_dim // 4, transformer_dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(transformer_dim, transformer_dim, transformer_dim // 8, num_layers=3)
            for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = MLP(
            transformer_dim, cfg.iou_head_hidden_dim, self.num_mask_tokens, num_layers=cfg.iou_head_depth
        )

    def forward(
        self, image_embeddings: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        """B prompts of one image.

        Args: image_embeddings, image_pe 1 x C x h x w; sparse B x N x C and dense B x C x h x w of the prompt encoder.
        Returns: mask logits B x M x 4h x 4w and predicted IoU B x M, M = 3 with multimask_output, else 1.
        """
        masks, iou = self.predict_masks(image_embeddings, image_pe, sparse, dense)
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        return masks[:, chosen], iou[:, chosen]

    def predict_masks(
        self, image_embeddings: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All four masks: logits B x 4 x 4h x 4w, IoU B x 4."""
        batch = sparse.shape[0]
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight], dim=0)
        tokens = torch.cat([output_tokens.expand(batch, -1, -1), sparse], dim=1)
        src = torch.repeat_interleave(image_embeddings, batch, dim=0) + dense
        pe = torch.repeat_interleave(image_pe, batch, dim=0)
        b, c, h, w = src.shape

        hs, src = self.transformer(src, pe, tokens)
        iou_token_out, mask_tokens_out = hs[:, 0], hs[:, 1 : 1 + self.num_mask_tokens]

        upscaled = self.output_upscaling(src.transpose(1, 2).view(b, c, h, w))
        hyper = torch.stack([mlp(mask_tokens_out[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1)
        masks = (hyper @ upscaled.flatten(2)).view(b, -1, *upscaled.shape[2:])
        return masks, self.iou_prediction_head(iou_token_out)


class MLP(nn.Module):
    """num_layers linear layers with ReLU between them."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
