"""Ground for a scene: bands to a horizon, walls and floors, patches with ragged borders. All of it is a target."""

import numpy as np

from maskmill.training.scenes.base import Image, Rng, chance
from maskmill.training.scenes.lighting import slope
from maskmill.training.scenes.painter import Painter
from maskmill.training.scenes.shapes import fill
from maskmill.training.scenes.textures import SMOOTH, Material


def ragged(rng: Rng, n: int, beta: float) -> Image:
    """n values of 1/f^beta noise along a line, zero mean, unit deviation."""
    f = np.arange(1, n + 2, dtype=float)
    spectrum = np.concatenate([[0], f ** (-beta / 2)]) * np.exp(2j * np.pi * rng.random(len(f) + 1))
    line = np.fft.irfft(spectrum, 2 * n)[:n]  # half a period: the ends differ
    return np.asarray((line - line.mean()) / (line.std() + 1e-9), np.float32)


def flat(p: Painter, material: Material | None = None) -> Image:
    """S x S x 3 of one material under a light that grows to one side."""
    size = p.size
    colour = p.textures.render(p.rng, material or p.material(even=True), size, size)
    if p.cfg.shade and p.rng.random() < 0.5:
        colour *= slope(p.rng, size, size, p.rng.uniform(0, 0.7))[..., None]
    return colour


def receding(p: Painter, material: Material, horizon: float) -> Image:
    """S x S x 3 of a ground plane seen from the side: finer and finer towards the row `horizon`."""
    size = p.size
    colour = p.textures.render(p.rng, material, size, size)
    depth = 1 / (np.maximum(np.arange(size) - horizon, 0) / size + 0.12)
    rows = (size - 1 - (depth - depth[-1]) / (depth[0] - depth[-1] + 1e-9) * (size - 1)).astype(int)
    return np.asarray(colour[rows], np.float32)


def sky(p: Painter, horizon: float) -> Image:
    """Blue, white or grey, paler below, with clouds."""
    rng, size = p.rng, p.size
    blue = np.array([0.35, 0.55, 0.85]) * rng.uniform(0.5, 1.05)
    top = blue + rng.random() * (np.full(3, rng.uniform(0.4, 0.9)) - blue)
    low = top + rng.random() * (np.array([0.95, 0.92, 0.88]) - top)
    down = np.clip(np.arange(size) / max(horizon, 1), 0, 1)[:, None, None]
    clouds = p.textures.field(rng, int(rng.integers(10, SMOOTH)), size, size, rng.uniform(0.8, 3))
    cover = np.clip(clouds * rng.uniform(0, 0.35) + rng.uniform(-0.4, 0.2), 0, 0.8)[..., None]
    clear = top * (1 - down) + low * down
    return (clear + (rng.uniform(0.5, 1.0) - clear) * cover).astype(np.float32)


def below(p: Painter, line: Image) -> Image:
    """S x S alpha of what lies under a line of S rows."""
    return np.clip(np.arange(p.size, dtype=np.float32)[:, None] - line[None] + 0.5, 0, 1)


def bands(p: Painter) -> float:
    """Sky, far bands, ground, perhaps a path; returns the row of the horizon."""
    rng, size = p.rng, p.size
    horizon = size * float(rng.uniform(0.12, 0.65))
    p.backdrop(sky(p, horizon) if rng.random() < 0.75 else flat(p))
    if not chance(rng, p.cfg.stuff):
        return horizon
    for _ in range(int(rng.integers(0, 3))):  # hills, woods, rows of houses
        line = (
            horizon
            - size * rng.uniform(0.02, 0.25)
            + size * rng.uniform(0.005, 0.06) * ragged(rng, size, rng.uniform(1.2, 3.5))
        )
        if rng.random() < 0.3:
            line = line[(np.arange(size) // rng.integers(8, 50)) * 8 % size]  # roofs: flat pieces
        p.region(below(p, line), flat(p))
    if chance(rng, p.cfg.haze):
        p.canvas.image += (np.float32(rng.uniform(0.6, 0.9)) - p.canvas.image) * np.float32(rng.uniform(0.1, 0.6))
    tilt = np.linspace(-1, 1, size, dtype=np.float32) * size * np.float32(rng.normal(0, 0.03))
    line = horizon + tilt + size * rng.uniform(0, 0.012) * ragged(rng, size, rng.uniform(1, 3))
    p.region(below(p, line.astype(np.float32)), receding(p, p.material(even=True), horizon))
    if rng.random() < 0.3:  # a road, a river, a shadowed strip
        x, half = rng.uniform(0, size, 2), rng.uniform(0.05, 0.4) * size
        path = [[x[0], horizon + 3], [x[1] + half, size + 2], [x[1] - half, size + 2], [x[0] - half * 0.1, horizon + 3]]
        p.region(fill([np.array(path)], (0, size, 0, size)), receding(p, p.material(even=True), horizon))
    if rng.random() < 0.4:  # nearer ground: another field, a bank
        line = (
            horizon
            + (size - horizon) * rng.uniform(0.3, 0.9)
            + size * rng.uniform(0.005, 0.05) * ragged(rng, size, rng.uniform(0.8, 3))
        )
        p.region(below(p, line.astype(np.float32)), receding(p, p.material(even=True), horizon))
    return horizon


def walls(p: Painter) -> float:
    """Two walls and a floor that meet in a corner, or a wall and a table; returns the row where the floor begins."""
    rng, size = p.rng, p.size
    p.backdrop(flat(p))
    floor = size * float(rng.uniform(0.35, 0.85))
    if not chance(rng, p.cfg.stuff):
        return floor
    x, full = rng.uniform(0, size), (0, size, 0, size)
    if rng.random() < 0.5:
        side = np.array([[x, -2], [size + 2, -2], [size + 2, size + 2], [x, size + 2]])
        p.region(fill([side], full), flat(p))
    ends = floor + size * np.abs(rng.normal(0, 0.12, 2)) * rng.choice([0, 1])
    ground = np.array([[-2, ends[0]], [x, floor], [size + 2, ends[1]], [size + 2, size + 2], [-2, size + 2]])
    p.region(fill([ground], full), receding(p, p.material(even=True), floor - 0.2 * size))
    if rng.random() < 0.4:  # a table, a rug
        y = floor + rng.uniform(0, 0.3) * size
        near = rng.uniform(0.2, 0.5, 2) * size
        left, right = rng.uniform(-0.1, 0.4) * size, rng.uniform(0.6, 1.1) * size
        table = np.array(
            [[left, y], [right, y], [right + near[0] * 0.5, y + near[0]], [left - near[1] * 0.5, y + near[1]]]
        )
        p.region(fill([table], full), receding(p, p.material(even=True), y - 0.2 * size))
    return floor


def ground(p: Painter) -> None:
    """One surface, seen from above, with patches of others: level sets of smooth noise, with a slope or without."""
    rng, size = p.rng, p.size
    p.backdrop(flat(p))
    if not chance(rng, p.cfg.stuff):
        return
    for _ in range(int(rng.integers(0, 4))):
        field = p.textures.field(rng, int(rng.integers(12, SMOOTH)), size, size, rng.uniform(1, 3))
        tilt = slope(rng, size, size, rng.uniform(0, 8)) - 1
        p.region(np.clip((field + tilt - rng.uniform(-0.5, 1)) * 12, 0, 1), flat(p))
