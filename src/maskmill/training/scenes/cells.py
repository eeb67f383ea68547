"""Microscopy-like pictures: cells with nuclei, glowing on black, stained on white, or transparent on grey."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from maskmill.training.scenes.base import SMALLEST, Image, Points, between
from maskmill.training.scenes.painter import Painter, part_of
from maskmill.training.scenes.shapes import blob, fill, pose, window
from maskmill.training.scenes.textures import SMOOTH


@dataclass(frozen=True)
class Stain:
    """Colours of the ground, the cell and its nucleus; `edge`: blur of an outline in pixels; `grain`: texture of a
    body; `rim`: a bright (or dark) line around it, as in phase contrast."""

    ground: NDArray[np.float64]
    cell: NDArray[np.float64]
    nucleus: NDArray[np.float64]
    edge: float
    grain: float
    rim: float


def random_stain(p: Painter) -> Stain:
    """Fluorescence in half the cases, else a stained section or bright field."""
    rng = p.rng
    kind = rng.random()
    if kind < 0.5:
        dark, bright = between(rng, 0.004, 0.12), between(rng, 0.06, 0.9)
        hue = np.ones(3) if rng.random() < 0.7 else np.clip(rng.normal(0.4, 0.5, 3), 0, 1)
        nucleus = dark + bright * rng.uniform(1, 2) * hue
        return Stain(dark * hue, dark + bright * hue, nucleus, rng.uniform(0.5, 2), rng.uniform(0, 0.25), 0.0)
    if kind < 0.8:
        pale = np.array([0.9, 0.75, 0.87]) * rng.uniform(0.75, 1.05) + rng.normal(0, 0.04, 3)
        deep = np.array([0.45, 0.25, 0.6]) + rng.normal(0, 0.1, 3)
        cell = pale + rng.uniform(0.1, 0.5) * (deep - pale)
        return Stain(pale, cell, np.clip(deep, 0, 1), rng.uniform(0.4, 1.2), rng.uniform(0.1, 0.4), 0.0)
    grey = rng.uniform(0.35, 0.75) * (1 + rng.normal(0, 0.02, 3))
    step = rng.choice([-1, 1]) * rng.uniform(0.04, 0.2)
    return Stain(grey, grey + step, grey + 2 * step, rng.uniform(0.4, 1), rng.uniform(0.1, 0.5), rng.normal(0, 0.15))


def cells(p: Painter) -> None:
    """Alike round things, many or few, some in touch, some with a nucleus as a part; ghosts out of focus."""
    rng, size = p.rng, p.size
    stain = random_stain(p)
    haze = p.textures.field(rng, int(rng.integers(8, SMOOTH)), size, size, rng.uniform(1, 4))[..., None]
    step = float(np.abs(stain.cell - stain.ground).mean())
    everything = stain.ground + rng.uniform(0, 0.3) * step * haze
    p.backdrop(np.clip(everything, 0, 1).astype(np.float32))
    radius = size * between(rng, 0.012, 0.09)
    count = int(np.clip(rng.uniform(0.05, 0.6) * size**2 / (4 * radius**2), 4, 80))
    for _ in range(int(rng.integers(0, 6))):  # ghosts: no targets
        ghost(p, stain, radius * rng.uniform(0.8, 2))
    spread, rough, flat = rng.uniform(0, 0.35), rng.uniform(0.02, 0.2), rng.uniform(0.5, 1)
    whole_cells, clumped = rng.random() < 0.35, rng.random() < 0.4
    centres = rng.uniform(0, size, (count, 2))
    if clumped:
        centres = centres[rng.integers(0, max(1, count // 6), count)] + rng.normal(0, 2.2 * radius, (count, 2))
    for centre in centres:
        r = radius * np.exp(rng.normal(0, spread))
        ring = pose(blob(rng, rough), (centre[0], centre[1]), r / 0.75, rng.uniform(0, 6), rng.uniform(flat, 1))
        tone = float(np.exp(rng.normal(0, 0.3)))
        number = body(p, stain, ring, stain.cell if whole_cells else stain.nucleus, tone, None)
        if whole_cells and number is not None:
            core = pose(blob(rng, 0.15), (centre[0], centre[1]), r * rng.uniform(0.3, 0.6) / 0.75)
            body(p, stain, core, stain.nucleus, tone, number)


def body(
    p: Painter, stain: Stain, ring: Points, colour: NDArray[np.float64], tone: float, parent: int | None
) -> int | None:
    """One cell or nucleus; most stay off the others. Returns its number."""
    box = window([ring], p.size, 4)
    if box is None:
        return None
    alpha = fill([ring], box)
    owner = p.canvas.owner[box[0] : box[1], box[2] : box[3]]
    taken = (owner > 1) & (alpha > 0.5)  # 1 is the ground
    if (alpha > 0.5).sum() < SMALLEST or (parent is None and taken.any() and p.rng.random() < 0.75):
        return None
    if parent is not None:
        alpha = alpha * (owner >= parent)
    h, w = alpha.shape
    grain = p.textures.field(p.rng, int(p.rng.integers(SMOOTH)), h, w, p.rng.uniform(0.3, 1))[..., None]
    ground = stain.ground
    pixels = ground + (colour - ground) * (tone * np.maximum(1 + stain.grain * grain, 0.2))
    soft = np.asarray(cv2.GaussianBlur(alpha, (0, 0), stain.edge), np.float32)
    p.canvas.blend(box, np.clip(pixels, 0, 1).astype(np.float32), soft)
    if stain.rim:
        line = soft * (1 - soft) * 4
        part_of(p.canvas.image, (0, 0, 0, 0), box)[...] += np.float32(stain.rim) * line[..., None]
    return p.canvas.claim(box, alpha > 0.5, parent)


def ghost(p: Painter, stain: Stain, radius: float) -> None:
    """A cell far out of focus."""
    centre = (float(p.rng.uniform(0, p.size)), float(p.rng.uniform(0, p.size)))
    ring = pose(blob(p.rng, 0.2), centre, radius / 0.75)
    box = window([ring], p.size, int(radius) + 4)
    if box is None:
        return
    alpha: Image = np.asarray(cv2.GaussianBlur(fill([ring], box), (0, 0), max(1.0, 0.4 * radius)), np.float32)
    colour = np.broadcast_to(stain.cell.astype(np.float32), (*alpha.shape, 3))
    p.canvas.blend(box, colour, alpha * np.float32(p.rng.uniform(0.1, 0.5)))
