"""What is drawn, and how often."""

from dataclasses import dataclass, fields

from maskmill.errors import UserError

KINDS = ("landscape", "room", "closeup", "pile", "crowd", "tiling", "cells")


@dataclass(frozen=True)
class SceneConfig:
    """Every value is a share in [0, 1]; 0 switches the thing off, for ablations.

    The kinds of scene are weights relative to each other:
    - landscape: bands of stuff with ragged borders, objects that stand on the ground, smaller towards the horizon;
    - room: walls, a floor or a table, objects on it; closeup: one large object before a blurred ground;
    - pile: many things on each other; crowd: many alike; tiling: bricks, tiles, pebbles; cells: microscopy.
    The rest are chances of an object (parts, holes, thin, warp, camouflage, shade) or of a scene.
    """

    landscape: float = 0.26
    room: float = 0.2
    closeup: float = 0.16
    pile: float = 0.12
    crowd: float = 0.06
    tiling: float = 0.05
    cells: float = 0.1

    parts: float = 0.6  # an object has parts, of other materials and with masks of their own
    holes: float = 0.15  # an object has holes that show what lies behind
    thin: float = 0.16  # an object is a pole, a branch, a fence
    warp: float = 0.35  # an outline gets rough or wavy
    camouflage: float = 0.18  # an object's surface is that of its surroundings
    prints: float = 0.35  # a surface has stains, stripes or letters that are no part
    shade: float = 0.7  # an object is round under the scene's light

    harmony: float = 0.5  # the colours of a scene resemble each other
    photo_textures: float = 0.45  # a surface is cut from a photograph, if there are any; else noise of the bank
    stuff: float = 0.75  # the ground is divided into regions, which are targets too
    clutter: float = 0.5  # unlabelled debris on the ground
    shadows: float = 0.6  # objects cast shadows
    light: float = 0.6  # uneven light over the whole picture
    haze: float = 0.25  # far stuff fades
    focus: float = 0.35  # the background is out of focus
    motion: float = 0.05  # blur along a line
    soft: float = 0.5  # a lens less sharp than the pixels, or sharpened
    noise: float = 0.5
    jpeg: float = 0.6
    cast: float = 0.4  # white balance is off; sometimes grey
    tone: float = 0.7  # exposure and a contrast curve

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise UserError(f"scenes.{field.name}={value}: expected a share between 0 and 1")
        if not any(getattr(self, kind) for kind in KINDS):
            raise UserError(f"scenes: every kind of scene has share 0: set one of {', '.join(KINDS)}")
