"""AdamW's parameter groups and learning rate (paper, appendix A; ViTDet's layer decay, arXiv 2203.16527)."""

import re
from bisect import bisect_right
from typing import Any

from torch import nn

from maskmill.training.config import OptimConfig


def rate(step: int, cfg: OptimConfig) -> float:
    """The learning rate of update number `step` (from 0): a linear warm-up, then times `factor` at each milestone."""
    warm = min(1.0, (step + 1) / cfg.warmup) if cfg.warmup else 1.0
    return cfg.lr * warm * cfg.factor ** bisect_right(cfg.milestones, step)


def layer_of(name: str, depth: int) -> int:
    """0 for the encoder's embeddings, i + 1 for its block i, depth + 1 for the neck and what follows."""
    if found := re.match(r"image_encoder\.blocks\.(\d+)\.", name):
        return int(found[1]) + 1
    return 0 if name.startswith(("image_encoder.patch_embed", "image_encoder.pos_embed")) else depth + 1


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms, positions and learned tokens, which have no fan-in."""
    return parameter.ndim > 1 and not re.search(r"pos_embed|rel_pos|_embed\.weight|_embeddings\.|_tokens?\.", name)


def parameter_groups(model: nn.Module, depth: int, cfg: OptimConfig) -> list[dict[str, Any]]:
    """One group for each layer and kind, of what requires a gradient; `scale` is its share of the learning rate."""
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, decayed = layer_of(name, depth), decays(name, parameter)
        if (layer, decayed) not in groups:
            scale = cfg.layer_decay ** (depth + 1 - layer)
            decay = cfg.weight_decay if decayed else 0.0
            groups[layer, decayed] = {"params": [], "weight_decay": decay, "scale": scale, "lr": cfg.lr * scale}
        groups[layer, decayed]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
