"""SAM's losses (paper, section 3 and appendix A): focal and dice 20:1, the mean square error of the predicted IoU,
and of several masks only the best one's gradient."""

from dataclasses import dataclass

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


def prompt_losses(logits: Tensor, scores: Tensor, target: Tensor, cfg: LossConfig) -> Losses:
    """The loss of B prompts with M masks each.

    Args: logits B x M x h x w, scores B x M (predicted IoU), target B x h x w in [0, 1].
    Each prompt's mask loss is the smallest of its M masks, so only that mask learns (section 3, Resolving ambiguity).
    The scores of all M learn: they have to rank good masks above bad ones.
    """
    logits, scores = cfg.logit_scale * logits.float(), scores.float()
    y = target[:, None].expand_as(logits)
    focal, dice = focal_loss(logits, y, cfg.alpha, cfg.gamma), dice_loss(logits, y)
    best, which = (cfg.focal * focal + cfg.dice * dice).min(1)
    iou = true_iou(logits, y)
    score = ((scores - iou) ** 2).mean()

    def of_best(x: Tensor) -> Tensor:
        return x.detach().gather(1, which[:, None]).mean()

    chosen = iou.gather(1, scores.argmax(1, keepdim=True)).mean()
    return Losses(best.mean() + cfg.iou * score, of_best(focal), of_best(dice), score.detach(), iou, chosen)


def on_grid(logits: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Low-resolution logits B x M x 4h x 4w (4 pixels a cell) on a grid of `stride` pixels, without the padding of the
    input: B x M x rows x columns, `size` = (height, width) of the image in the input."""
    if stride != 4:
        scale = 4 // stride
        logits = F.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False)
    return logits[..., : -(-size[0] // stride), : -(-size[1] // stride)]


def target_grid(masks: Tensor, stride: int) -> Tensor:
    """bool N x h x w pixels -> float32 N x ceil(h / stride) x ceil(w / stride): each cell's share of the mask."""
    h, w = masks.shape[-2:]
    padded = F.pad(masks.float(), (0, -w % stride, 0, -h % stride))
    return F.avg_pool2d(padded[:, None], stride)[:, 0] if stride > 1 else padded
