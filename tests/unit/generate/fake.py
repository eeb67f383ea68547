"""A model without weights: its masks are seeded noise, a function of the point alone."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskmill.generate import candidates
from maskmill.generate.grids import Crop


class FakeSam:
    """Stands where `Sam` stands in candidate generation; logits come at full resolution."""

    img_size = 64
    device = torch.device("cpu")

    class prompt_encoder:
        @staticmethod
        def get_dense_pe() -> None:
            return None

    def encode(self, image: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
        return image.shape[:2], image.shape[:2]  # type: ignore[return-value]

    def postprocess_masks(self, masks: Tensor, input_size: Any, original_size: tuple[int, int]) -> Tensor:
        return torch.nn.functional.interpolate(masks, original_size, mode="bilinear")


def decode(
    model: FakeSam, embedding: tuple[int, int], pe: None, size: Any, crop: Crop, points: np.ndarray, capacity: int
) -> tuple[Tensor, Tensor]:
    """Three bumps of other width and height near each point, with grain, and an IoU between -0.1 and 1.1."""
    height, width = embedding
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    masks, scores = [], []
    for point in points:
        seed = int(abs(hash((float(point[0]), float(point[1]), crop.index))) % 2**31)
        noise = torch.Generator().manual_seed(seed)
        peak, radius = torch.rand(2, 3, 1, 1, generator=noise) * torch.tensor([12.0, 9.0]).view(2, 1, 1, 1) + 2
        distance = (x + 0.5 - float(point[0])) ** 2 + (y + 0.5 - float(point[1])) ** 2
        grain = torch.randn(3, height, width, generator=noise)
        masks.append(peak * (1 - distance / radius**2) + grain)
        scores.append(torch.rand(3, generator=noise) * 1.2 - 0.1)
    return torch.stack(masks), torch.stack(scores)


def patch(monkeypatch: Any) -> FakeSam:
    """Let candidate generation decode with `decode`."""
    monkeypatch.setattr(candidates, "decode_points", decode)
    return FakeSam()
