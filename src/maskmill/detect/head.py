"""A box detector on the frozen SAM embedding: a few convolutions, so it learns in minutes from stored embeddings.

The paper used Faster R-CNN [84] with a backbone of its own. This one is anchor-free, as FCOS (arXiv 1904.01355): every
cell of the embedding, made twice as fine, says for each of a few size classes whether an object's middle is near, and
how far its box's sides are. Size classes keep a part and the whole around it apart, whose middles often agree.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskmill.config import at_least
from maskmill.detect.boxes import Boxes
from maskmill.errors import UserError
from maskmill.masks.boxes import nms
from maskmill.sam.common import LayerNorm2d, plain_float32

CANDIDATES = 2000  # the best of an image's boxes before NMS


@dataclass(frozen=True)
class DetectorConfig:
    """`sizes`: where size classes part, as sqrt(box area) over the side of the model's input, ascending."""

    channels: int = 128
    depth: int = 3
    sizes: tuple[float, ...] = (0.06, 0.18)
    nms_thresh: float = 0.6
    max_boxes: int = 300

    def __post_init__(self) -> None:
        at_least("detector", self, {"channels": 8, "depth": 1, "max_boxes": 1})
        if list(self.sizes) != sorted(set(self.sizes)) or not all(0 < s < 1 for s in self.sizes):
            raise UserError(f"detector.sizes is {self.sizes}: they must ascend between 0 and 1")

    @property
    def scales(self) -> list[float]:
        """The middle of each size class, where a box's sides begin: half of it is the distance to a side."""
        edges = [self.sizes[0] / 3, *self.sizes, 1.0] if self.sizes else [0.05, 1.0]
        return [math.sqrt(low * high) for low, high in itertools.pairwise(edges)]


class BoxHead(nn.Module):
    """Embedding B x C x h x w -> objectness logits B x L x 2h x 2w and sides B x L x 4 x 2h x 2w.

    Sides are the distances left, top, right, bottom in units of the input's side, > 0.
    """

    scales: Tensor

    def __init__(self, cfg: DetectorConfig, in_channels: int) -> None:
        super().__init__()
        self.cfg, self.in_channels, levels = cfg, in_channels, len(cfg.scales)
        self.tower = nn.Sequential(*convolutions(in_channels, cfg))
        self.objectness = nn.Conv2d(cfg.channels, levels, kernel_size=3, padding=1)
        self.sides = nn.Conv2d(cfg.channels, 4 * levels, kernel_size=3, padding=1)
        self.register_buffer("scales", torch.tensor(cfg.scales).view(-1, 1, 1, 1), persistent=False)
        assert self.objectness.bias is not None and self.sides.bias is not None
        nn.init.constant_(self.objectness.bias, -math.log(99))  # few cells are positive (RetinaNet, arXiv 1708.02002)
        nn.init.normal_(self.sides.weight, std=0.01)
        nn.init.zeros_(self.sides.bias)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tower(embedding)
        sides = self.sides(x).unflatten(1, (-1, 4))
        return self.objectness(x), 0.5 * self.scales * torch.exp(sides.clamp(-4, 4))


def convolutions(in_channels: int, cfg: DetectorConfig) -> Iterator[nn.Module]:
    """`depth` 3 x 3 convolutions; a transposed one behind the first makes the cells twice as fine."""
    for n in range(cfg.depth):
        yield nn.Conv2d(in_channels if n == 0 else cfg.channels, cfg.channels, kernel_size=3, padding=1)
        yield LayerNorm2d(cfg.channels)
        yield nn.GELU()
        if n == 0:
            yield nn.ConvTranspose2d(cfg.channels, cfg.channels, kernel_size=2, stride=2)


def cell_centers(height: int, width: int, device: torch.device) -> Tensor:
    """Centers (x, y) of height x width cells in units of the input's side: 2 x height x width."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack([x[None].expand(height, width), y[:, None].expand(height, width)])


def to_xyxy(sides: Tensor) -> Tensor:
    """Sides B x L x 4 x h x w -> boxes of the same shape, XYXY in units of the input's side."""
    center = cell_centers(sides.shape[-2], sides.shape[-1], sides.device)
    return torch.cat([center - sides[:, :, :2], center + sides[:, :, 2:]], dim=2)


@torch.no_grad()
def detect(
    head: BoxHead, embedding: Tensor, input_size: tuple[int, int], size: tuple[int, int], img_size: int
) -> Boxes:
    """Boxes of one image.

    Args: embedding 1 x C x h x w; input_size (height, width) of the image in the model's input, which is a square of
    img_size pixels; size (height, width) of the image itself.
    """
    cfg = head.cfg
    with plain_float32(embedding):
        logits, sides = head(embedding.float())
    scores, boxes = logits.sigmoid().flatten(), to_xyxy(sides).permute(0, 1, 3, 4, 2).reshape(-1, 4)
    best = scores.argsort(descending=True, stable=True)[:CANDIDATES]
    limit = boxes.new_tensor([input_size[1], input_size[0]]).repeat(2) / img_size
    inside = boxes[best].clamp(min=0).minimum(limit)
    pixels = (inside * inside.new_tensor([size[1], size[0]]).repeat(2) / limit).cpu().numpy()
    found = scores[best].cpu().numpy()
    whole = (pixels[:, 2:] - pixels[:, :2] >= 1).all(1)
    pixels, found = pixels[whole], found[whole]
    keep = nms(pixels, found, cfg.nms_thresh)[: cfg.max_boxes]
    return Boxes(pixels[keep], found[keep])
