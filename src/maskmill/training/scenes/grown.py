"""Things that grow: lumps, creatures, plants, branches."""

import numpy as np

from maskmill.training.scenes.base import Rng
from maskmill.training.scenes.pieces import Piece, Thing
from maskmill.training.scenes.shapes import blob, curve, ellipse, limb, polygon, pose, rectangle, roughen, simple, star


def lump(rng: Rng) -> Thing:
    """A compact body with spots, a band or an inset."""
    body = simple(rng)
    pieces = [Piece((body,))]
    kind = int(rng.integers(4))
    if kind == 0:  # one side of a cut
        angle = rng.uniform(0, 2 * np.pi)
        half = pose(roughen(rng, rectangle(-3, rng.uniform(-0.4, 0.4), 3, 3), 0.02), (0, 0), 1, angle)
        pieces.append(Piece((half,), 0))
    elif kind == 1:  # a smaller copy inside, and one inside that
        inset = body * rng.uniform(0.45, 0.8)
        pieces.append(Piece((inset,), 0))
        if rng.random() < 0.4:
            pieces.append(Piece((inset * rng.uniform(0.3, 0.7),), 1))
    else:
        for i in range(int(rng.integers(1, 6))):
            place = (float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.5, 0.5)))
            like = 1 if i and rng.random() < 0.6 else -1
            pieces.append(Piece((pose(simple(rng), place, rng.uniform(0.12, 0.35)),), 0, like))
    return pieces


def creature(rng: Rng) -> Thing:
    """A body with limbs, a head, eyes; upright or on four legs, seen from any side."""
    upright = rng.random() < 0.5
    high = rng.uniform(0.35, 0.6) if upright else rng.uniform(0.2, 0.4)
    body = blob(rng, 0.12) * ([high * 0.8, 0.8] if upright else [1.0, high * 1.3])
    hips = np.array([[0.0, 0.3], [0.0, -0.35]]) if upright else np.array([[0.5, 0.1], [-0.5, 0.1]])
    pieces: Thing = []
    width, reach = rng.uniform(0.06, 0.16), rng.uniform(0.5, 1.0)
    first = -1
    for hip in hips:
        for side in (-1, 1):
            angle = np.pi / 2 - side * rng.uniform(0.05, 0.5 if hip[1] > 0 else 1.6)
            start = hip + np.array([side * high * 0.45 if upright else side * 0.12, 0])
            path = curve(rng, start, angle, reach, 0.9)
            like, first = first, len(pieces) if first < 0 else first
            pieces.append(Piece((limb(path, width, width * rng.uniform(0.4, 0.9)),), -1, like))
            if rng.random() < 0.5:  # hand, paw, shoe
                pieces.append(Piece((pose(ellipse(0.7), tuple(path[-1]), width * 1.3),), len(pieces) - 1))
    trunk = len(pieces)
    pieces.append(Piece((body,)))
    if rng.random() < 0.6:
        pieces.append(Piece((rectangle(-2, rng.uniform(-0.1, 0.4), 2, 2) if upright else polygon(rng) * 0.5,), trunk))
    place = np.array([0.0, -0.85]) if upright else np.array([rng.choice([-1, 1]) * 1.0, -0.35])
    radius = rng.uniform(0.2, 0.38)
    head = len(pieces)
    pieces.append(Piece((pose(blob(rng, 0.1), tuple(place), radius / 0.75),), -1, 0 if rng.random() < 0.5 else -1))
    if rng.random() < 0.6:
        pieces.append(Piece((pose(rectangle(-2, -2, 2, rng.uniform(-0.6, 0)), tuple(place), radius),), head))
    for x in (-0.4, 0.4):
        spot = (place[0] + x * radius, place[1] - 0.05)
        pieces.append(Piece((pose(ellipse(), spot, radius * 0.16),), head, len(pieces) - 1 if x > 0 else -1))
    return pieces


def plant(rng: Rng) -> Thing:
    """A stem with leaves, or a trunk with a ragged crown, or a flower with petals."""
    kind = int(rng.integers(3))
    stem = curve(rng, np.array([0.0, 1.0]), -np.pi / 2, rng.uniform(1.0, 1.8), 0.8)
    if kind == 0:
        trunk = Piece((limb(stem, rng.uniform(0.05, 0.15), 0.04),))
        crown = pose(roughen(rng, blob(rng, 0.4), 0.04), tuple(stem[-1] * 0.7), rng.uniform(0.6, 0.9))
        return [trunk, Piece((crown,))]
    pieces = [Piece((limb(stem, 0.035, 0.02),))]
    if kind == 1:
        for _ in range(int(rng.integers(4, 14))):
            at = stem[int(rng.integers(2, len(stem)))]
            path = curve(rng, at, rng.uniform(-np.pi, 0), rng.uniform(0.3, 0.8), 1.0)
            leaf = np.concatenate([limb(path[:5], 0.02, 0.1), limb(path[4:], 0.1, 0.01)])
            pieces.append(Piece((leaf,), -1, 1 if len(pieces) > 1 else -1))
        return pieces
    petals = pose(star(rng), tuple(stem[-1]), rng.uniform(0.3, 0.6), rng.uniform(0, 6))
    pieces.append(Piece((petals,)))
    pieces.append(Piece((pose(ellipse(), tuple(stem[-1]), 0.15),), 1))
    return pieces
