"""Closed outlines in a unit frame (x right, y down, about -1 to 1) and their anti-aliased filling."""

from collections.abc import Sequence

import cv2
import numpy as np

from maskmill.training.scenes.base import Image, Points, Rng

DENSE = 64  # points of a smooth outline


def ellipse(aspect: float = 1.0, power: float = 2.0) -> Points:
    """Superellipse: power 2 an ellipse, 4 and more a rounded rectangle, 1 a diamond."""
    t = np.linspace(0, 2 * np.pi, DENSE, endpoint=False)
    c, s = np.cos(t), np.sin(t)
    return np.stack([np.sign(c) * np.abs(c) ** (2 / power), aspect * np.sign(s) * np.abs(s) ** (2 / power)], 1)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def blob(rng: Rng, rough: float = 0.35) -> Points:
    """A smooth closed curve: waves on a circle."""
    t = np.linspace(0, 2 * np.pi, DENSE, endpoint=False)
    waves = np.arange(2, 9)
    phases = np.cos(waves[:, None] * t + rng.uniform(0, 2 * np.pi, (7, 1)))
    reach = np.maximum(0.75 + (rng.normal(0, rough / waves)[:, None] * phases).sum(0), 0.15)
    return np.stack([reach * np.cos(t), reach * np.sin(t)], 1)


def polygon(rng: Rng) -> Points:
    t = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
    reach = rng.uniform(0.5, 1, len(t))
    return np.stack([reach * np.cos(t), reach * np.sin(t)], 1)


def star(rng: Rng) -> Points:
    """A star, a flower or a gear, by the depth and sharpness of its waves."""
    n, depth = int(rng.integers(4, 11)), rng.uniform(0.1, 0.5)
    t = np.linspace(0, 2 * np.pi, 12 * n, endpoint=False)
    reach = 1 - depth * (1 - np.abs(np.cos(n * t / 2)) ** rng.uniform(0.3, 3))
    return np.stack([reach * np.cos(t), reach * np.sin(t)], 1)


def profile(rng: Rng) -> Points:
    """Mirror-symmetric about the upright axis: bottles, vases, lamps, cups."""
    knots = rng.uniform(0.15, 0.75, int(rng.integers(3, 7)))
    y = np.linspace(-1, 1, DENSE // 2)
    x = np.interp(y, np.linspace(-1, 1, len(knots)), knots)
    if rng.random() < 0.7:
        x = np.convolve(np.pad(x, 4, mode="edge"), np.ones(9) / 9, mode="valid")
    return np.concatenate([np.stack([x, y], 1), np.stack([-x, y], 1)[::-1]])


def limb(path: Points, start: float, end: float) -> Points:
    """The outline of a stroke along a path of N points, its half width going from `start` to `end`."""
    along = np.gradient(path, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], 1) / (np.hypot(*along.T)[:, None] + 1e-9)
    width = np.linspace(start, end, len(path))[:, None]
    tip = path[-1:] + along[-1:] / (np.hypot(*along[-1]) + 1e-9) * end
    return np.concatenate([path + width * normal, tip, (path - width * normal)[::-1]])


def curve(rng: Rng, start: Points, angle: float, length: float, bend: float, n: int = 10) -> Points:
    """A bent path from `start` (2) in the direction `angle`: n points."""
    turns = angle + bend * np.cumsum(rng.normal(0, 1 / n, n - 1) + rng.normal(0, 1) / n)
    steps = np.stack([np.cos(turns), np.sin(turns)], 1) * length / (n - 1)
    return start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)])


def simple(rng: Rng) -> Points:
    """Any compact outline."""
    kind = int(rng.integers(7))
    if kind == 0:
        return ellipse(rng.uniform(0.4, 1))
    if kind == 1:
        return ellipse(rng.uniform(0.25, 1), rng.uniform(3, 12))
    if kind == 2:
        return polygon(rng)
    if kind == 3:
        return star(rng)
    if kind == 4:
        return profile(rng)
    return blob(rng, rng.uniform(0.15, 0.6)) * [1, rng.uniform(0.4, 1)]


def roughen(rng: Rng, ring: Points, amount: float) -> Points:
    """The outline moved along 1/f noise: torn, hairy or wavy edges."""
    n = 160
    ends = np.concatenate([ring, ring[:1]])
    at = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(ends, axis=0).T))])
    t = np.linspace(0, at[-1], n, endpoint=False)
    dense = np.stack([np.interp(t, at, ends[:, 0]), np.interp(t, at, ends[:, 1])], 1)
    f = np.arange(1, n // 2 + 1, dtype=float)
    spectrum = np.concatenate([[0], (f + 2) ** -rng.uniform(0.6, 1.8)])
    waves = rng.standard_normal((2, len(spectrum))) + 1j * rng.standard_normal((2, len(spectrum)))
    shift = np.fft.irfft(waves * spectrum, n).T
    return dense + amount * shift / (shift.std() + 1e-9)


def pose(ring: Points, centre: tuple[float, float], radius: float, turn: float = 0.0, squeeze: float = 1.0) -> Points:
    """From the unit frame to pixels: stretched across by `squeeze`, turned by radians, scaled, moved."""
    c, s = radius * np.cos(turn), radius * np.sin(turn)
    x, y = ring[:, 0] * squeeze, ring[:, 1]
    return np.stack([centre[0] + c * x - s * y, centre[1] + s * x + c * y], 1)


def fill(rings: Sequence[Points], box: tuple[int, int, int, int]) -> Image:
    """Alpha in [0, 1] of the even-odd inside of closed outlines (pixels), over the window (y0, y1, x0, x1)."""
    y0, y1, x0, x1 = box
    alpha = np.zeros((y1 - y0, x1 - x0), np.uint8)
    shifted = [np.round((ring - [x0, y0]) * 16).astype(np.int32) for ring in rings]
    cv2.fillPoly(alpha, shifted, 255, cv2.LINE_AA, 4)
    return alpha.astype(np.float32) * np.float32(1 / 255)


def window(rings: Sequence[Points], size: int, pad: int) -> tuple[int, int, int, int] | None:
    """The part (y0, y1, x0, x1) of a size x size canvas around the outlines; None where they lie outside."""
    points = np.concatenate(list(rings))
    low, high = np.floor(points.min(0)).astype(int) - pad, np.ceil(points.max(0)).astype(int) + pad + 1
    x0, y0 = (max(0, int(v)) for v in low)
    x1, y1 = (min(size, int(v)) for v in high)
    return (y0, y1, x0, x1) if y1 - y0 > 2 and x1 - x0 > 2 else None
