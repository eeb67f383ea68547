"""Things that people make: vessels, buildings, boxes, vehicles, and thin things like poles and fences."""

from itertools import pairwise

import numpy as np

from maskmill.training.scenes.base import Rng
from maskmill.training.scenes.pieces import Piece, Thing
from maskmill.training.scenes.shapes import curve, ellipse, limb, pose, profile, rectangle, simple


def vessel(rng: Rng) -> Thing:
    """A bottle, cup, vase: a profile with bands, perhaps a handle and a label."""
    body = profile(rng)
    pieces = [Piece((body,))]
    if rng.random() < 0.4:
        y = rng.uniform(-0.9, 0.2)
        pieces.append(Piece((rectangle(-2, y, 2, y + rng.uniform(0.3, 0.9)),), 0))
        if rng.random() < 0.6:
            pieces.append(Piece((pose(simple(rng), (0, y + 0.25), rng.uniform(0.1, 0.25)),), 1))
    if rng.random() < 0.5:
        pieces.append(Piece((rectangle(-2, -2, 2, rng.uniform(-0.95, -0.7)),), 0))
    if rng.random() < 0.3:
        ring = pose(ellipse(rng.uniform(0.7, 1.4)), (0.65, rng.uniform(-0.3, 0.3)), rng.uniform(0.25, 0.4))
        centre = ring.mean(0)
        pieces.append(Piece((ring, centre + (ring - centre) * rng.uniform(0.5, 0.8))))
    return pieces


def building(rng: Rng) -> Thing:
    """A front with a roof, a door and rows of windows; also a cupboard, a screen, a shelf."""
    wide = rng.uniform(0.4, 1)
    pieces = [Piece((rectangle(-wide, -0.6, wide, 1),))]
    rows, cols = int(rng.integers(1, 5)), int(rng.integers(1, 6))
    glass = rng.uniform(0.4, 0.8)
    for r in range(rows):
        for c in range(cols):
            x, y = -wide + 2 * wide * (c + 0.5) / cols, -0.6 + 1.3 * (r + 0.5) / rows
            dx, dy = glass * wide / cols, glass * 0.65 / rows
            pieces.append(Piece((rectangle(x - dx, y - dy, x + dx, y + dy),), 0, 1 if len(pieces) > 1 else -1))
    if rng.random() < 0.5:
        x = rng.uniform(-0.6, 0.4) * wide
        pieces.append(Piece((rectangle(x, 0.6, x + 0.3 * wide, 1),), 0))
    if rng.random() < 0.6:
        top = rng.uniform(0, 0.9) * wide
        eaves = wide * 1.1
        pieces.append(Piece((np.array([[-eaves, -0.6], [-top, -1], [top, -1], [eaves, -0.6]]),)))
    return pieces


def crate(rng: Rng) -> Thing:
    """Three faces of a box in a loose perspective: cartons, books, machines."""
    x, d, lean = rng.uniform(-0.3, 0.5), rng.uniform(0.15, 0.6), rng.uniform(-0.2, 0.2)
    low, high = 0.8, rng.uniform(-0.6, 0.5)
    front = np.array([[-0.9, high + lean], [x, high], [x, low], [-0.9, low - 0.5 * lean]])
    side = np.array([[x, high], [0.9, high - d * 0.5], [0.9, low - d * 0.6], [x, low]])
    back = np.array([0.9 - x, -d * 0.5])
    top = np.stack([front[0], front[0] + back, front[1] + back, front[1]])
    pieces = [Piece((front,)), Piece((side,), -1, 0), Piece((top,), -1, 0)]
    if rng.random() < 0.6:
        label = front.mean(0) + (front - front.mean(0)) * rng.uniform(0.3, 0.8)
        pieces.insert(1, Piece((label,), 0))
    return pieces


def vehicle(rng: Rng) -> Thing:
    """A body on wheels, with a cabin of windows."""
    cabin, nose = rng.uniform(0.2, 0.5), rng.uniform(0.5, 0.95)
    a, b = rng.uniform(-0.9, -0.4), rng.uniform(0.1, 0.6)
    roof = -0.25 - cabin
    hull = [
        [-1, 0.35],
        [-1, -0.15],
        [a - 0.1, -0.25],
        [a, roof],
        [b, roof],
        [b + 0.2, -0.2],
        [nose + 0.05, 0],
        [1, 0.35],
    ]
    pieces = [Piece((np.array(hull),))]
    panes = int(rng.integers(1, 4))
    edges = np.linspace(a + 0.04, b + 0.1, panes + 1)
    for left, right in pairwise(edges):
        pane = rectangle(left + 0.03, roof + 0.08, right - 0.02, -0.22)
        pieces.append(Piece((pane,), 0, 1 if len(pieces) > 1 else -1))
    radius, wheel = rng.uniform(0.16, 0.28), len(pieces)
    for x in (-0.6, 0.6):
        tyre = pose(ellipse(), (x, 0.38), radius)
        pieces.append(Piece((tyre,), -1, wheel if x > 0 else -1))
        pieces.append(Piece((pose(ellipse(), (x, 0.38), radius * 0.55),), len(pieces) - 1, wheel + 1 if x > 0 else -1))
    return pieces


def slender(rng: Rng) -> Thing:
    """Thin things: poles, ropes, branches, fences, frames, wheels with spokes."""
    kind, width = int(rng.choice(4, p=(0.35, 0.35, 0.2, 0.1))), rng.uniform(0.015, 0.07)
    if kind == 0:
        path = curve(rng, np.array([0.0, 1.0]), -np.pi / 2, 2.0, rng.choice([0.0, 2.0]))
        pieces = [Piece((limb(path, width, width),))]
        if rng.random() < 0.6:
            pieces.append(Piece((pose(simple(rng), tuple(path[-1]), rng.uniform(0.12, 0.3)),)))
        return pieces
    if kind == 1:  # branches
        path = curve(rng, np.array([0.0, 1.0]), -np.pi / 2, 2.0, 1.0, 14)
        pieces = [Piece((limb(path, 1.5 * width, 0.3 * width),), target=False)]
        for at in path[rng.integers(2, 13, int(rng.integers(2, 8)))]:
            twig = curve(rng, at, rng.uniform(-np.pi, 0), rng.uniform(0.3, 1.0), 1.5)
            pieces.append(Piece((limb(twig, width, 0.2 * width),), -1, 0, False))
        return pieces
    if kind == 2:  # fence, ladder, grid
        xs, ys = np.linspace(-1, 1, int(rng.integers(3, 10))), np.linspace(-0.7, 0.7, int(rng.integers(2, 5)))
        bars = [rectangle(x - width, -1, x + width, 1) for x in xs]
        bars += [rectangle(-1, y - width, 1, y + width) for y in ys]
        return [Piece((bar,), -1, 0 if i else -1, False) for i, bar in enumerate(bars)]
    rim = ellipse(rng.uniform(0.4, 1))
    pieces = [Piece((rim, rim * (1 - 2 * width)))]
    for angle in np.arange(int(rng.integers(2, 7))) * np.pi / 3:
        spoke = np.array([np.cos(angle), np.sin(angle)])
        pieces.append(
            Piece((limb(np.linspace(0, 1, 4)[:, None] * spoke * rim[:, 1].max(), width, width),), -1, 0, False)
        )
    return pieces
