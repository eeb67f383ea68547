"""What the box head should say, and how far it is off.

A cell is positive for a box of its size class if its center lies in the middle of the box (center sampling, FCOS arXiv
1904.01355v5, section 3.4); of several boxes the smallest. Objectness learns the IoU that its own box reaches (quality
focal loss, arXiv 2006.04388, equation 4, beta = 2), sides learn by GIoU (arXiv 1902.09630).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmill.detect.head import DetectorConfig, cell_centers, to_xyxy

MIDDLE = 0.25  # of a box's side, to both sides of its center


def assign(boxes: Tensor, cfg: DetectorConfig, height: int, width: int) -> Tensor:
    """Boxes N x 4 XYXY in units of the input's side -> L x height x width: the box of each cell, -1 for none."""
    owner = torch.full((len(cfg.scales), height, width), -1, dtype=torch.long, device=boxes.device)
    if not len(boxes):
        return owner
    sides = boxes[:, 2:] - boxes[:, :2]
    area = sides.prod(1)
    level = torch.bucketize(area.sqrt(), boxes.new_tensor(cfg.sizes))
    x, y = cell_centers(height, width, boxes.device)
    center, reach = (boxes[:, :2] + boxes[:, 2:]) / 2, MIDDLE * sides
    # a box smaller than a cell still owns the one that its center is in
    reach = reach.maximum(boxes.new_tensor([0.5 / width, 0.5 / height]))
    for n in area.argsort(descending=True, stable=True).tolist():  # the smallest last, over all others
        near = ((x - center[n, 0]).abs() <= reach[n, 0]) & ((y - center[n, 1]).abs() <= reach[n, 1])
        owner[level[n], near] = n
    return owner


def detector_loss(logits: Tensor, sides: Tensor, boxes: list[Tensor], cfg: DetectorConfig) -> tuple[Tensor, Tensor]:
    """Objectness and box loss of B images, each summed over cells and divided by the number of positive ones.

    Args: logits B x L x h x w and sides B x L x 4 x h x w of the head; for each image boxes N x 4.
    """
    height, width = logits.shape[-2:]
    owner = torch.stack([assign(b, cfg, height, width) for b in boxes])
    positive = owner >= 0
    count = positive.sum().clamp(min=1)
    predicted = to_xyxy(sides).permute(0, 1, 3, 4, 2)[positive]
    image = positive.nonzero()[:, 0]
    starts = torch.tensor([0, *[len(b) for b in boxes][:-1]], device=logits.device).cumsum(0)
    wanted = torch.cat(boxes)[starts[image] + owner[positive]]
    iou, giou = overlaps(predicted, wanted)
    quality = torch.zeros_like(logits)
    quality[positive] = iou.detach()
    away = (quality - logits.sigmoid()).square()
    objectness = (away * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")).sum()
    return objectness / count, (1 - giou).sum() / count


def overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of N pairs of boxes N x 4 XYXY that have an area."""
    inter = (a[:, 2:].minimum(b[:, 2:]) - a[:, :2].maximum(b[:, :2])).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inter
    hull = (a[:, 2:].maximum(b[:, 2:]) - a[:, :2].minimum(b[:, :2])).prod(1)
    iou = inter / union
    return iou, iou - (hull - union) / hull
