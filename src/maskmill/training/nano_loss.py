"""Losses of `nano`'s training, over I images x P prompts x M masks at the decoder's resolution."""

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmill.training.iterate import uniform_cells


def mask_loss(logits: Tensor, target: Tensor, balanced: float) -> tuple[Tensor, Tensor]:
    """Loss and true IoU of every mask.

    Args: logits I x P x M x h x w; target I x P x h x w in [0, 1]; balanced: weight of the class-balanced
    cross-entropy, the rest is focal loss (gamma 2).
    Returns: loss and IoU, both I x P x M; the IoU carries no gradient.
    """
    logits = logits.float().flatten(3)
    y = target.flatten(2)[:, :, None]
    ce = F.softplus(logits) - y * logits
    p = logits.sigmoid()
    area = y.sum(-1)
    rest = (1 - y).sum(-1)
    inside, outside = (ce * y).sum(-1) / area.clamp(min=1), (ce * (1 - y)).sum(-1) / rest.clamp(min=1)
    focal = (ce * (p - y).square()).mean(-1)
    # a constant of 1 would hide masks of a few cells
    dice = 1 - (2 * (p * y).sum(-1) + 0.1) / (p.sum(-1) + area + 0.1)
    with torch.no_grad():
        a, b = logits > 0, y > 0.5
        iou = (a & b).sum(-1) / (a | b).sum(-1).clamp(min=1)
    return dice + balanced * (inside + outside) / 2 + (1 - balanced) * 5 * focal, iou


def same_object(tokens: Tensor, bias: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
    """Do two cells show the same object? Balanced cross-entropy on the tokens' inner products.

    Args: tokens I x D x h x w; target I x P x 4h x 4w. A cell's object is the smallest mask on it.
    At most 256 random cells an image take part; pairs outside every mask are left out.
    """
    _, dim, h, w = tokens.shape
    cells = F.avg_pool2d(target, 4).flatten(2) > 0.5
    area = cells.sum(-1, keepdim=True).float()
    size = torch.where(cells, area, torch.inf)
    smallest, label = size.min(1)
    label = torch.where(smallest.isinf(), -1, label)
    picked = torch.randperm(h * w, generator=generator)[:256].to(tokens.device)
    label, x = label[:, picked], tokens.flatten(2)[:, :, picked]
    scores = x.transpose(1, 2) @ x / dim**0.5 + bias
    same = (label[:, :, None] == label[:, None]).float()
    known = ((label >= 0)[:, :, None] | (label >= 0)[:, None]).float()
    ce = F.softplus(scores) - same * scores
    yes, no = same * known, (1 - same) * known
    return (ce * yes).sum() / yes.sum().clamp(min=1) / 2 + (ce * no).sum() / no.sum().clamp(min=1) / 2


def error_click(answer: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A uniform click where I x P x h x w bool answer and target differ (anywhere if nowhere): (x, y) in input pixels
    I x P x 2, and its label I x P: 1 inside the target, else 0."""
    images, prompts, _, w = target.shape
    wrong = (answer ^ target).flatten(0, 1)
    region = wrong | ~wrong.flatten(1).any(1)[:, None, None]
    chance = torch.rand(3, images, prompts, generator=generator).to(target.device)
    x, y = (c.view(images, prompts) for c in uniform_cells(region, chance[0].flatten()))
    label = target.flatten(2).gather(2, (y * w + x)[..., None])[..., 0].long()
    return 4 * (torch.stack([x, y], -1) + chance[1:].movedim(0, -1)) - 0.5, label
