"""The same architecture, and the same weights, for an input of another size, or with detail (detail.py) added.

Only positions depend on the size: the encoder's absolute ones (one for each patch), and the relative ones of its global
blocks. Published weights have 1024 pixels; weights that were trained at another size say so by these shapes.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch.nn.functional as F
from torch import Size, Tensor

from maskmill.sam.sam import ModelConfig, Sam

POSITIONS = "image_encoder.pos_embed"
DETAIL = "image_encoder.detail."


def sized_as(cfg: ModelConfig, state: Mapping[str, Tensor]) -> ModelConfig:
    """`cfg` with the input size and the detail (detail.py) of these weights; its own size if they have no square of
    positions."""
    cfg = with_detail(cfg, any(name.startswith(DETAIL) for name in state))
    positions = state.get(POSITIONS)
    if positions is None or positions.ndim != 4 or positions.shape[1] != positions.shape[2]:
        return cfg
    return with_input(cfg, positions.shape[1] * cfg.image_encoder.patch_size)


def with_detail(cfg: ModelConfig, detail: bool) -> ModelConfig:
    """`cfg` with detail or without."""
    return replace(cfg, image_encoder=replace(cfg.image_encoder, detail=detail))


def with_input(cfg: ModelConfig, img_size: int) -> ModelConfig:
    """`cfg` for images of `img_size` pixels."""
    return replace(cfg, image_encoder=replace(cfg.image_encoder, img_size=img_size))


def resized(model: Sam, img_size: int) -> Sam:
    """A model for images of `img_size` pixels with the weights of `model`, its positions interpolated.

    Its embedding of such an image is the one that `model` gives.
    """
    patch = model.cfg.image_encoder.patch_size
    assert img_size >= patch and img_size % patch == 0, f"patches of {patch} pixels do not fill {img_size}"
    other = Sam(with_input(model.cfg, img_size))
    state = model.state_dict()
    for name, want in other.state_dict().items():
        if state[name].shape != want.shape:
            state[name] = stretched(state[name], want.shape)
    other.load_state_dict(state)
    return other.train(model.training)


def detailed(model: Sam) -> Sam:
    """The same model with detail (detail.py), which is not trained and changes no answer yet; itself if it has it."""
    if model.cfg.image_encoder.detail:
        return model
    other = Sam(with_detail(model.cfg, True))
    fresh = other.load_state_dict(model.state_dict(), strict=False)
    assert not fresh.unexpected_keys and all(name.startswith(DETAIL) for name in fresh.missing_keys)
    return other.train(model.training)


def stretched(table: Tensor, shape: Size) -> Tensor:
    """Positions 1 x H x W x C, or relative ones L x C, for another grid (as in image_encoder.py)."""
    if table.ndim == 4:
        return F.interpolate(table.permute(0, 3, 1, 2), shape[1:3], mode="bilinear").permute(0, 2, 3, 1)
    return F.interpolate(table.T[None], size=shape[0], mode="linear")[0].T
