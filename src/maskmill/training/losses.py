"""SAM's losses (paper, section 3 and appendix A): focal and dice 20:1, the mean square error of the predicted IoU,
and of several masks only the best one's gradient."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskmill.training.config import LossConfig


def focal_loss(logits: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss (Lin et al., eq. 5), the mean over pixels: ... x h x w -> ...; target in [0, 1]."""
    p = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    right = p * target + (1 - p) * (1 - target)
    weight = alpha * target + (1 - alpha) * (1 - target)
    return (weight * (1 - right) ** gamma * ce).flatten(-2).mean(-1)


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - (2 |p y| + 1) / (|p| + |y| + 1): ... x h x w -> ..."""
    p, y = logits.sigmoid().flatten(-2), target.flatten(-2)
    return 1 - (2 * (p * y).sum(-1) + 1) / (p.sum(-1) + y.sum(-1) + 1)


@torch.no_grad()
def true_iou(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of logits above 0 with target above one half: ... x h x w -> ..."""
    a, b = (logits > 0).flatten(-2), (target > 0.5).flatten(-2)
    return (a & b).sum(-1) / (a | b).sum(-1).clamp(min=1)


@dataclass(frozen=True)
class Losses:
    """Means over B prompts: `total` has a gradient, the others are for the log. iou: B x M, of every mask; chosen: the
    mean IoU of those with the highest score."""

    total: Tensor
    focal: Tensor
    dice: Tensor
    score: Tensor
    iou: Tensor
    chosen: Tensor


def learners(each: Tensor, relaxed: float, rng: np.random.Generator) -> Tensor:
    """Which mask of each prompt learns, by the losses of all (B x M): the best one, or by chance any."""
    best = each.argmin(1)
    if not relaxed or each.shape[1] == 1:
        return best
    chance = torch.as_tensor(rng.random((2, len(each))), device=each.device)
    return torch.where(chance[0] < relaxed, (chance[1] * each.shape[1]).long(), best)


def prompt_losses(
    low: Tensor, fine: Tensor, scores: Tensor, target: Tensor, cfg: LossConfig, rng: np.random.Generator
) -> Losses:
    """The loss of B prompts with M masks each.

    Args: low B x M x 4h x 4w, the decoder's logits; fine B x M x rows x columns, the same `on_grid`, without a
    gradient; scores B x M (predicted IoU); target B x rows x columns in [0, 1].
    Each prompt's mask loss is the smallest of its M masks, so only that mask learns (section 3, Resolving ambiguity),
    and only for that one a gradient is made: the same as through the minimum, for a third of the work. With
    `cfg.relaxed` it is sometimes another one.
    The scores of all M learn: they have to rank good masks above bad ones.
    """
    scores = scores.float()
    with torch.no_grad():
        every = cfg.logit_scale * fine
        y = target[:, None].expand_as(every)
        focal, dice = focal_loss(every, y, cfg.alpha, cfg.gamma), dice_loss(every, y)
        which = learners(cfg.focal * focal + cfg.dice * dice, cfg.relaxed, rng)
        iou = true_iou(every, y)
    rows = torch.arange(len(which), device=which.device)
    learning = cfg.logit_scale * on_grid(low[rows, which][:, None].float(), cfg.stride, target)[:, 0]
    focal, dice = focal_loss(learning, target, cfg.alpha, cfg.gamma).mean(), dice_loss(learning, target).mean()
    score = ((scores - iou) ** 2).mean()
    total = cfg.focal * focal + cfg.dice * dice + cfg.iou * score
    chosen = iou.gather(1, scores.argmax(1, keepdim=True)).mean()
    return Losses(total, focal.detach(), dice.detach(), score.detach(), iou, chosen)


def on_grid(logits: Tensor, stride: int, target: Tensor) -> Tensor:
    """Low-resolution logits B x M x 4h x 4w (4 pixels a cell) on the grid of the target, `stride` pixels a cell and
    without the padding of the input: B x M x rows x columns."""
    if stride != 4:
        scale = 4 // stride
        logits = F.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False)
    return logits[..., : target.shape[-2], : target.shape[-1]]


def target_grid(masks: Tensor, stride: int) -> Tensor:
    """bool N x h x w pixels -> float32 N x ceil(h / stride) x ceil(w / stride): each cell's share of the mask."""
    h, w = masks.shape[-2:]
    padded = F.pad(masks.float(), (0, -w % stride, 0, -h % stride))
    return F.avg_pool2d(padded[:, None], stride)[:, 0] if stride > 1 else padded
