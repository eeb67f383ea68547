"""One scene from one seed."""

import numpy as np

from maskmill.training.scenes.base import Rng, Sample
from maskmill.training.scenes.cells import cells
from maskmill.training.scenes.config import KINDS, SceneConfig
from maskmill.training.scenes.degrade import photograph
from maskmill.training.scenes.layouts import closeup, crowd, landscape, pile, room, tiling
from maskmill.training.scenes.painter import Painter
from maskmill.training.scenes.textures import Textures

LAYOUTS = {
    "landscape": landscape, "room": room, "closeup": closeup, "pile": pile, "crowd": crowd, "tiling": tiling,
    "cells": cells,
}  # fmt: skip


def draw_scene(rng: Rng, cfg: SceneConfig, textures: Textures, size: int) -> Sample:
    """A size x size picture with the exact masks of what is visible; equal arguments give equal pixels."""
    shares = np.array([getattr(cfg, kind) for kind in KINDS])
    kind = KINDS[int(rng.choice(len(KINDS), p=shares / shares.sum()))]
    painter = Painter(rng, cfg, textures, size)
    LAYOUTS[kind](painter)
    return painter.canvas.finish(photograph(rng, cfg, textures, painter.canvas.image))
