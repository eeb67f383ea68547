"""Points, boxes and masks -> prompt tokens (paper section 3; segment-anything, modeling/prompt_encoder.py)."""

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from maskmill.sam.common import LayerNorm2d, plain_float32

Points = tuple[Tensor, Tensor]


class PromptEncoder(nn.Module):
    """Sparse tokens (B x N x C) for points and boxes, and a dense map (B x C x h x w) for a mask."""

    def __init__(
        self,
        embed_dim: int,
        image_embedding_size: tuple[int, int],
        input_image_size: tuple[int, int],
        mask_in_chans: int,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.input_image_size = input_image_size
        self.image_embedding_size = image_embedding_size
        self.mask_input_size = (4 * image_embedding_size[0], 4 * image_embedding_size[1])
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        # background point, foreground point, top-left corner, bottom-right corner
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_in_chans // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans // 4),
            nn.GELU(),
            nn.Conv2d(mask_in_chans // 4, mask_in_chans, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans),
            nn.GELU(),
            nn.Conv2d(mask_in_chans, embed_dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)

    def get_dense_pe(self) -> Tensor:
        """The positional code of every embedding cell: 1 x C x h x w."""
        return self.pe_layer(self.image_embedding_size)[None]

    def label_embedding(self, i: int) -> Tensor:
        """1 x C: what is added for background (0), foreground (1), top-left (2), bottom-right (3)."""
        return cast(nn.Embedding, self.point_embeddings[i]).weight

    def embed_points(self, points: Tensor, labels: Tensor, pad: bool) -> Tensor:
        """B x N x 2 (x, y) in input pixels, labels 1/0/-1 -> B x N(+1) x C. A padding point stands in for a box."""
        points = points + 0.5  # to the centre of the pixel
        if pad:
            points = torch.cat([points, points.new_zeros(points.shape[0], 1, 2)], dim=1)
            labels = torch.cat([labels, -labels.new_ones(labels.shape[0], 1)], dim=1)
        embedding = self.pe_layer.forward_with_coords(points, self.input_image_size)
        label = labels[..., None]  # `where`, not an index by a mask: that would wait for a GPU to count
        embedding = torch.where(label == -1, self.not_a_point_embed.weight, embedding)
        embedding = torch.where(label == 0, embedding + self.label_embedding(0), embedding)
        return torch.where(label == 1, embedding + self.label_embedding(1), embedding)

    def embed_boxes(self, boxes: Tensor) -> Tensor:
        """B x 4 (x0, y0, x1, y1) in input pixels -> B x 2 x C."""
        corners = (boxes + 0.5).reshape(-1, 2, 2)
        embedding = self.pe_layer.forward_with_coords(corners, self.input_image_size)
        embedding[:, 0, :] += self.label_embedding(2)
        embedding[:, 1, :] += self.label_embedding(3)
        return embedding

    def forward(self, points: Points | None, boxes: Tensor | None, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """Any mix of prompts for B objects.

        Args: points (B x N x 2 coordinates, B x N labels), boxes B x 4, masks B x 1 x 4h x 4w logits.
        Returns: sparse B x N x C (N may be 0), dense B x C x h x w.
        """
        batch = next((x.shape[0] for x in (points[0] if points else None, boxes, masks) if x is not None), 1)
        sparse = self.no_mask_embed.weight.new_empty(batch, 0, self.embed_dim)
        if points is not None:
            sparse = torch.cat([sparse, self.embed_points(points[0], points[1], pad=boxes is None)], dim=1)
        if boxes is not None:
            sparse = torch.cat([sparse, self.embed_boxes(boxes)], dim=1)
        if masks is not None:
            with plain_float32(masks):
                return sparse, self.mask_downscaling(masks)
        dense = self.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return sparse, dense.expand(batch, -1, *self.image_embedding_size)


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of (x, y) in [0, 1] (Tancik et al. 2020). The matrix is fixed, part of the weights."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_pos_feats: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, num_pos_feats))

    def encode(self, coords: Tensor) -> Tensor:
        """... x 2 in [0, 1] -> ... x 2F."""
        coords = (2 * coords - 1) @ self.positional_encoding_gaussian_matrix
        coords = 2 * np.pi * coords
        return torch.cat([torch.sin(coords), torch.cos(coords)], dim=-1)

    def forward(self, size: tuple[int, int]) -> Tensor:
        """Codes of an h x w grid's cell centres: C x h x w."""
        h, w = size
        grid = torch.ones(
            (h, w),
            device=self.positional_encoding_gaussian_matrix.device,
            dtype=self.positional_encoding_gaussian_matrix.dtype,
        )
        y, x = (grid.cumsum(dim=0) - 0.5) / h, (grid.cumsum(dim=1) - 0.5) / w
        return self.encode(torch.stack([x, y], dim=-1)).permute(2, 0, 1)

    def forward_with_coords(self, coords: Tensor, image_size: tuple[int, int]) -> Tensor:
        """B x N x 2 pixels -> B x N x C. The division runs in the caller's dtype (float64 from the generator)."""
        coords = coords.clone()
        coords[:, :, 0] = coords[:, :, 0] / image_size[1]
        coords[:, :, 1] = coords[:, :, 1] / image_size[0]
        return self.encode(coords.to(self.positional_encoding_gaussian_matrix.dtype))
