"""A random object."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from maskmill.training.scenes.base import Rng, chance
from maskmill.training.scenes.config import SceneConfig
from maskmill.training.scenes.grown import creature, lump, plant
from maskmill.training.scenes.made import building, crate, slender, vehicle, vessel
from maskmill.training.scenes.pieces import Thing
from maskmill.training.scenes.shapes import pose, roughen, simple

MAKERS: tuple[tuple[float, Callable[[Rng], Thing]], ...] = (
    (0.34, lump), (0.12, vessel), (0.2, creature), (0.08, building), (0.08, crate), (0.06, vehicle), (0.12, plant),
)  # fmt: skip


def make_thing(rng: Rng, cfg: SceneConfig) -> Thing:
    """A random object; holes, rough outlines and parts as the config says."""
    thin = chance(rng, cfg.thin)
    maker = MAKERS[int(rng.choice(len(MAKERS), p=[share for share, _ in MAKERS]))][1]
    thing = slender(rng) if thin else maker(rng)
    if chance(rng, cfg.holes) and not thin:
        hole = pose(
            simple(rng), (float(rng.uniform(-0.3, 0.3)), float(rng.uniform(-0.3, 0.3))), rng.uniform(0.15, 0.45)
        )
        roots = [i for i, p in enumerate(thing) if p.parent < 0]
        big = max(roots, key=lambda i: float(np.prod(np.ptp(thing[i].rings[0], axis=0))))
        thing[big] = replace(thing[big], rings=(*thing[big].rings, hole))
    if chance(rng, cfg.warp) and not thin:
        amount = 0.005 * float(np.exp(rng.uniform(0, 2)))
        thing = [replace(p, rings=tuple(roughen(rng, r, amount) for r in p.rings)) for p in thing]
    return thing
