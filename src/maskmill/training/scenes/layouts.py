"""Where things stand: the kinds of photographs."""

import cv2
import numpy as np

from maskmill.training.scenes.base import Points, between, chance
from maskmill.training.scenes.painter import Look, Painter, Place
from maskmill.training.scenes.pieces import Piece
from maskmill.training.scenes.shapes import rectangle, roughen
from maskmill.training.scenes.stuff import bands, flat, ground, walls
from maskmill.training.scenes.textures import varied
from maskmill.training.scenes.things import make_thing


def landscape(p: Painter) -> None:
    """Things on a ground that recedes: the nearer, the larger and lower."""
    rng, size = p.rng, p.size
    horizon = bands(p)
    if chance(rng, p.cfg.clutter):
        p.debris(horizon)
    count, scale = int(rng.integers(3, 16)), between(rng, 0.14, 0.5)
    blurred = int(rng.integers(count)) if chance(rng, p.cfg.focus) else -1
    kinds = [make_thing(rng, p.cfg) for _ in range(int(rng.integers(1, 5)))]
    for i, depth in enumerate(np.sort(rng.random(count))):
        if i == blurred:
            p.defocus(rng.uniform(0.6, 3))
        thing = kinds[int(rng.integers(len(kinds)))] if rng.random() < 0.5 else make_thing(rng, p.cfg)
        radius = size * scale * (0.12 + depth) * between(rng, 0.6, 1.5)
        foot = horizon + (size * 1.02 - horizon) * depth**1.3
        in_the_air = rng.random() < 0.1
        y = rng.uniform(0, horizon) if in_the_air else foot - 0.9 * radius
        place = Place((rng.uniform(0, size), y), radius, rng.normal(0, 0.08), between(rng, 0.5, 1.4), not in_the_air)
        p.put(thing, p.look(thing), place)


def room(p: Painter) -> None:
    """Pictures on the wall, furniture, things on the floor or a table."""
    rng, size = p.rng, p.size
    floor = walls(p)
    for _ in range(int(rng.integers(0, 4))):  # frames, windows, screens
        outer = rectangle(-1, -1, 1, 1)
        thing = [Piece((outer,)), Piece((outer * rng.uniform(0.6, 0.95),), 0)]
        centre = (rng.uniform(0, size), rng.uniform(0, floor))
        place = Place(centre, size * rng.uniform(0.04, 0.18), 0.0, between(rng, 0.6, 2))
        p.put(thing, p.look(thing), place)
    if chance(rng, p.cfg.clutter):
        p.debris(floor)
    if chance(rng, p.cfg.focus):
        p.defocus(rng.uniform(0.6, 3))
    for row in np.sort(rng.uniform(floor, 1.05 * size, int(rng.integers(2, 16)))):
        thing = make_thing(rng, p.cfg)
        radius = size * between(rng, 0.05, 0.35)
        turn = rng.normal(0, 0.05) if rng.random() < 0.8 else rng.uniform(0, 6)
        place = Place((rng.uniform(0, size), row - 0.8 * radius), radius, turn, between(rng, 0.5, 1.4), True)
        p.put(thing, p.look(thing), place)


def closeup(p: Painter) -> None:
    """One or two large things before a ground, usually out of focus."""
    rng, size = p.rng, p.size
    if rng.random() < 0.5:
        bands(p)
    else:
        ground(p)
    for _ in range(int(rng.integers(0, 5))):
        thing = make_thing(rng, p.cfg)
        p.put(thing, p.look(thing), Place(anywhere(p), size * between(rng, 0.04, 0.3), rng.normal(0, 0.4)))
    if chance(rng, min(1.0, 2 * p.cfg.focus)):
        p.defocus(rng.uniform(1.5, 7))
    for _ in range(int(rng.integers(1, 3))):
        thing = make_thing(rng, p.cfg)
        centre = (size * rng.normal(0.5, 0.15), size * rng.normal(0.5, 0.15))
        place = Place(centre, size * rng.uniform(0.25, 0.7), rng.normal(0, 0.3), between(rng, 0.6, 1.4))
        p.put(thing, p.look(thing), place)


def pile(p: Painter) -> None:
    """Many things of a few kinds in any position, on each other."""
    rng, size = p.rng, p.size
    ground(p)
    if chance(rng, p.cfg.clutter):
        p.debris()
    kinds = [make_thing(rng, p.cfg) for _ in range(int(rng.integers(2, 8)))]
    looks = [p.look(thing) for thing in kinds]
    count, scale = int(rng.integers(6, 26)), between(rng, 0.7, 1.6)
    for radius in np.sort(np.exp(rng.uniform(np.log(0.03), np.log(0.3), count)))[::-1]:
        i = int(rng.integers(len(kinds)))
        look = looks[i] if rng.random() < 0.5 else p.look(kinds[i])
        p.put(kinds[i], look, Place(anywhere(p), size * scale * radius, rng.uniform(0, 6), between(rng, 0.7, 1.4)))


def crowd(p: Painter) -> None:
    """Individuals of one kind, in rows or strewn: coins, fruit, cars, people far away."""
    rng, size = p.rng, p.size
    ground(p)
    if chance(rng, p.cfg.clutter):
        p.debris()
    thing = make_thing(rng, p.cfg)
    look = p.look(thing)
    radius = size * between(rng, 0.022, 0.1)
    n = int(np.clip(size / (radius * between(rng, 1.2, 4)), 2, 11))  # places in a row
    aligned = rng.random() < 0.4
    turn, jitter, change = rng.uniform(0, 6), rng.uniform(0.02, 0.15) if aligned else 0.4, rng.uniform(0, 0.5)
    for cell in rng.permutation(n * n)[: int(rng.integers(8, 60))]:
        x, y = (np.array(divmod(int(cell), n)) + 0.5 + rng.normal(0, jitter, 2)) * size / n
        materials = tuple(varied(rng, m, p.textures, change) for m in look.materials)
        own = Look(materials, look.parts, look.prints, look.round, look.gloss, False)
        angle = turn + rng.normal(0, 0.1) if aligned else rng.uniform(0, 6)
        p.put(thing, own, Place((x, y), radius * np.exp(rng.normal(0, 0.12)), angle))


def tiling(p: Painter) -> None:
    """A wall or a floor of bricks, tiles or stones, seen at an angle; the stones are parts of the wall."""
    rng, size = p.rng, p.size
    wall = p.backdrop(flat(p))
    material, change = p.material(), rng.uniform(0, 0.6)
    rough = rng.random() < 0.5
    for ring in tiles(p):
        outline = roughen(rng, ring, rng.uniform(0.2, 1.2)) if rough else ring
        own = Look((varied(rng, material, p.textures, change),), False, -1, chance(rng, p.cfg.shade), False, False)
        p.put([Piece((outline,))], own, Place((0, 0), 1), wall)
    for _ in range(int(rng.integers(0, 3))):
        thing = make_thing(rng, p.cfg)
        p.put(thing, p.look(thing), Place(anywhere(p), size * between(rng, 0.06, 0.3), rng.normal(0, 0.3)))


def tiles(p: Painter) -> list[Points]:
    """Outlines in pixels: rows of rectangles under a perspective, or shrunken Voronoi cells."""
    rng, size = p.rng, p.size
    n, gap = int(rng.integers(4, 10)), rng.uniform(0.01, 0.12)
    if rng.random() < 0.5:
        plane = cv2.Subdiv2D((0, 0, size, size))
        for point in np.stack(np.meshgrid(range(n), range(n)), -1).reshape(-1, 2) + rng.uniform(0, 1, (n * n, 2)):
            plane.insert((float(point[0] * size / n * 0.99), float(point[1] * size / n * 0.99)))
        facets = plane.getVoronoiFacetList([])[0]
        cells = [np.asarray(f, float) for f in facets]
        return [c.mean(0) + (c - c.mean(0)) * (1 - 1.5 * gap) for c in cells]
    shift, aspect = rng.choice([0.0, 0.5]), rng.uniform(0.35, 1)
    rows = int(n / aspect)
    lean = np.array([[1, rng.normal(0, 0.15)], [rng.normal(0, 0.15), 1]])
    far = rng.normal(0, 0.25, 2)
    out = []
    for r in range(-1, rows + 1):
        for c in range(-2, n + 2):
            x, y = (c + shift * (r % 2)) / n - 0.5, r / rows - 0.5
            ring = rectangle(x + gap / n, y + gap / n, x + (1 - gap) / n, y + 1 / rows - gap / n) @ lean.T
            out.append((ring / (1 + ring @ far)[:, None] * 1.1 + 0.5) * size)
    return out


def anywhere(p: Painter) -> tuple[float, float]:
    return float(p.rng.uniform(0, p.size)), float(p.rng.uniform(0, p.size))
