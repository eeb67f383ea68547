"""A model without weights: its masks are seeded noise, a function of the point alone."""

from typing import Any

import torch
from torch import Tensor

from maskmill.config import GenerateConfig
from maskmill.generate import candidates
from maskmill.generate.grids import Crop
from maskmill.sam.mask_decoder import passes
from maskmill.sam.sam import Sam


class FakeSam:
    """Stands where `Sam` stands in candidate generation. Sizes and full resolution are those of a real one."""

    device = torch.device("cpu")
    precision = "float32"
    input_size = Sam.input_size
    postprocess_masks = Sam.postprocess_masks

    def __init__(self, img_size: int = 64) -> None:
        self.img_size = img_size

    def share(self, embedding: None) -> None:
        return None

    def encode(self, image: Any) -> tuple[None, tuple[int, int]]:
        return None, self.input_size(*image.shape[:2])  # type: ignore[misc, arg-type]


def decode(
    model: FakeSam, shared: None, size: tuple[int, int], crop: Crop, points: Any, cfg: GenerateConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Three bumps of other width and height near each point, with grain, and an IoU between -0.1 and 1.1."""
    side = model.img_size // 4
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    y, x = (y + 0.5) * 4 * crop.height / size[0], (x + 0.5) * 4 * crop.width / size[1]
    masks, scores = [], []
    for point in points:
        seed = int(abs(hash((float(point[0]), float(point[1]), crop.index))) % 2**31)
        noise = torch.Generator().manual_seed(seed)
        peak, radius = torch.rand(2, 3, 1, 1, generator=noise) * torch.tensor([12.0, 9.0]).view(2, 1, 1, 1) + 2
        distance = (x - float(point[0])) ** 2 + (y - float(point[1])) ** 2
        grain = torch.randn(3, side, side, generator=noise)
        masks.append(peak * (1 - distance / radius**2) + grain)
        scores.append(torch.rand(3, generator=noise) * 1.2 - 0.1)
    return above_floor(torch.stack(masks), torch.stack(scores), cfg)


def above_floor(masks: Tensor, scores: Tensor, cfg: GenerateConfig) -> tuple[Tensor, Tensor, Tensor]:
    """n x 3 masks -> what `decode_points` returns."""
    place = passes(scores, cfg.floor_pred_iou).flatten().nonzero()[:, 0]
    return masks.flatten(0, 1)[place], scores.flatten()[place], place


def patch(monkeypatch: Any, img_size: int = 64) -> FakeSam:
    """Let candidate generation decode with `decode`."""
    monkeypatch.setattr(candidates, "decode_points", decode)
    return FakeSam(img_size)
