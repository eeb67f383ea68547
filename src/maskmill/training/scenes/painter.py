"""Puts things and regions on a canvas: surfaces, light, shadows, and who owns the pixels."""

from dataclasses import dataclass, replace

import numpy as np

from maskmill.training.scenes.base import SMALLEST, Image, Points, Rng, blurred, chance
from maskmill.training.scenes.canvas import Box, Canvas
from maskmill.training.scenes.config import SceneConfig
from maskmill.training.scenes.lighting import cast_shadow, highlight, random_light, shading, slope
from maskmill.training.scenes.pieces import Thing
from maskmill.training.scenes.shapes import fill, pose, window
from maskmill.training.scenes.textures import Material, Textures, varied


@dataclass(frozen=True)
class Look:
    """How one thing appears: a material for each piece, whether its parts show, how it takes the light."""

    materials: tuple[Material, ...]
    parts: bool
    prints: int  # field of the bank that is printed on it, -1 none
    round: bool
    gloss: bool
    hidden: bool  # its surface is that of its surroundings


@dataclass(frozen=True)
class Place:
    """`centre` (x, y) and `radius` in pixels, `turn` in radians, `squeeze` across; `lying`: its shadow lies flat."""

    centre: tuple[float, float]
    radius: float
    turn: float = 0.0
    squeeze: float = 1.0
    lying: bool = False


Shape = tuple[Box, Image]  # a window and an array over it


class Painter:
    """One scene in the making: canvas, light, config and the stream of random numbers."""

    def __init__(self, rng: Rng, cfg: SceneConfig, textures: Textures, size: int) -> None:
        self.rng, self.cfg, self.textures, self.size = rng, cfg, textures, size
        self.canvas = Canvas(np.zeros((size, size, 3), np.float32))
        self.light = random_light(rng)
        self.shadows = chance(rng, cfg.shadows)
        self.main, mood = textures.colour(rng), float(rng.uniform(0.2, 0.8))
        self.mood = mood if chance(rng, cfg.harmony) else 0.0

    def material(self, even: bool = False) -> Material:
        """A surface whose colour leans to the scene's own."""
        material = self.textures.material(self.rng, self.cfg.photo_textures, even)
        base = material.base + self.mood * (self.main - material.base)
        return replace(material, base=base, tint=max(material.tint, self.mood))

    def look(self, thing: Thing) -> Look:
        """Fresh materials; pieces that are alike share theirs, others may be of the same stuff in another colour."""
        rng, materials = self.rng, list[Material]()
        for piece in thing:
            if piece.like >= 0:
                materials.append(materials[piece.like])
            elif materials and rng.random() < 0.4:
                materials.append(varied(rng, materials[0], self.textures, rng.uniform(0.1, 0.9)))
            else:
                materials.append(self.material())
        prints = int(rng.integers(len(self.textures.bank))) if chance(rng, self.cfg.prints) else -1
        parts, round_ = chance(rng, self.cfg.parts), chance(rng, self.cfg.shade)
        gloss, hidden = rng.random() < 0.25, chance(rng, self.cfg.camouflage)
        return Look(tuple(materials), parts and not hidden, prints, round_, gloss, hidden)

    def put(self, thing: Thing, look: Look, place: Place, parent: int | None = None) -> int | None:
        """Paint a thing and its parts; its number, or None where too little of it lies in the picture."""
        rings = [[pose(r, place.centre, place.radius, place.turn, place.squeeze) for r in p.rings] for p in thing]
        box = window([r for p, some in zip(thing, rings, strict=True) if p.parent < 0 for r in some], self.size, 3)
        if box is None:
            return None
        shapes: list[Shape | None] = []
        whole = np.zeros((box[1] - box[0], box[3] - box[2]), np.float32)
        for piece, some in zip(thing, rings, strict=True):
            shape = self._shape(some, (box, None) if piece.parent < 0 else shapes[piece.parent])
            shapes.append(shape)
            if piece.parent < 0 and shape is not None:
                np.maximum(part_of(whole, box, shape[0]), shape[1], out=part_of(whole, box, shape[0]))
        if (whole > 0.5).sum() < SMALLEST:
            return None
        if self.shadows:
            self._shadow(box, whole, place.lying)
        number = self.canvas.claim(box, whole > 0.5, parent)
        self._paint(thing, shapes, look, number, self._surroundings(box) if look.hidden else None)
        return number

    def _paint(
        self, thing: Thing, shapes: list[Shape | None], look: Look, whole: int, surroundings: Shape | None
    ) -> None:
        """The pieces of a thing in their order; those that are targets get numbers below the whole's."""
        numbers: list[int] = []
        single = sum(p.parent < 0 for p in thing) == 1  # then the silhouette's one piece is the whole
        for piece, shape, material in zip(thing, shapes, look.materials, strict=True):
            numbers.append(whole if piece.parent < 0 else numbers[piece.parent])
            if shape is None or (piece.parent >= 0 and not look.parts):
                continue
            box, alpha = shape
            under = None if surroundings is None else part_of(surroundings[1], surroundings[0], box)
            surface = self.surface(material if look.parts else look.materials[0], look, alpha, under)
            self.canvas.blend(box, surface, alpha)
            if look.parts and piece.target and not (single and piece.parent < 0):
                numbers[-1] = self.canvas.claim(box, alpha > 0.5, numbers[-1])

    def _shape(self, rings: list[Points], above: tuple[Box, Image | None] | None) -> Shape | None:
        """Window and alpha of one piece, inside those of its parent."""
        box = window(rings, self.size, 2)
        if box is None or above is None:
            return None
        outer = above[0]
        box = (max(box[0], outer[0]), min(box[1], outer[1]), max(box[2], outer[2]), min(box[3], outer[3]))
        if box[1] <= box[0] or box[3] <= box[2]:
            return None
        alpha = fill(rings, box)
        return box, alpha if above[1] is None else np.minimum(alpha, part_of(above[1], outer, box))

    def surface(self, material: Material, look: Look, alpha: Image, under: Image | None) -> Image:
        """Lit h x w x 3 pixels of one piece; `under`: pixels to take instead of the material's."""
        rng, (h, w) = self.rng, alpha.shape
        colour = self.textures.render(rng, material, h, w) if under is None else under.copy()
        if look.prints >= 0 and under is None:
            turn = rng.uniform(0, 6) if rng.random() < 0.4 else 0.0
            pattern = self.textures.field(rng, look.prints, h, w, rng.uniform(0.3, 2), turn)
            ink = np.clip(pattern * 2 - 1, 0, 1)[..., None] * np.float32(rng.uniform(0.1, 0.9))
            colour += (self.textures.colour(rng).astype(np.float32) - colour) * ink
        if look.round and h * w > 60:
            factor = shading(rng, self.light, alpha)
            colour *= factor[..., None]
            if look.gloss:
                colour += highlight(rng, self.light, factor)[..., None]
        elif self.cfg.shade > 0:
            colour *= slope(rng, h, w, rng.uniform(0, 0.6))[..., None]
        return colour

    def _surroundings(self, box: Box) -> Shape:
        """Pixels from beside the window, as large as it, in a slightly other tone."""
        y0, y1, x0, x1 = box
        h, w = y1 - y0, x1 - x0
        y = int(np.clip(y0 + self.rng.integers(-h, h + 1), 0, self.size - h))
        x = int(np.clip(x0 + self.rng.integers(-w, w + 1), 0, self.size - w))
        patch = self.canvas.image[y : y + h, x : x + w, :]
        tone = self.rng.normal(1, 0.12) + self.rng.normal(0, 0.03, 3)
        flipped = patch[::-1] if self.rng.random() < 0.5 else patch
        return box, np.asarray(flipped, np.float32) * tone.astype(np.float32)

    def _shadow(self, box: Box, alpha: Image, lying: bool) -> None:
        """A shadow may fall outside the thing's own window."""
        y0, y1, x0, x1 = box
        pad = max(6, (y1 - y0 + x1 - x0) // 8)
        wide = (max(0, y0 - pad), min(self.size, y1 + pad), max(0, x0 - pad), min(self.size, x1 + pad))
        padded = np.pad(alpha, ((y0 - wide[0], wide[1] - y1), (x0 - wide[2], wide[3] - x1)))
        cast_shadow(self.rng, self.light, part_of(self.canvas.image, (0, 0, 0, 0), wide), padded, lying)

    def backdrop(self, colour: Image) -> int:
        """The first stuff, everywhere."""
        self.canvas.image = colour
        return self.canvas.claim((0, self.size, 0, self.size), np.ones((self.size, self.size), bool))

    def region(self, alpha: Image, colour: Image) -> int | None:
        """Stuff over the whole picture: S x S alpha, S x S x 3 colours."""
        if (alpha > 0.5).sum() < SMALLEST:
            return None
        box = (0, self.size, 0, self.size)
        self.canvas.blend(box, colour, alpha)
        return self.canvas.claim(box, alpha > 0.5)

    def debris(self, top: float = 0.0) -> None:
        """Small unlabelled things on the ground below the row `top`: pebbles, leaves, litter."""
        rng = self.rng
        materials = [self.material() for _ in range(3)]
        for _ in range(int(rng.integers(10, 60))):
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
            ring = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.2, 1)], 1)
            centre = (float(rng.uniform(0, self.size)), float(rng.uniform(top, self.size)))
            posed = pose(ring, centre, self.size * rng.uniform(0.003, 0.02), rng.uniform(0, 6))
            box = window([posed], self.size, 2)
            if box is not None:
                alpha = fill([posed], box)
                material = materials[int(rng.integers(3))]
                self.canvas.blend(box, self.textures.render(rng, material, *alpha.shape), alpha)

    def defocus(self, strength: float) -> None:
        """Blur everything so far, as a lens does with what lies far behind; sigma in pixels at a side of 384."""
        sigma = strength * self.size / 384
        self.canvas.image = blurred(self.canvas.image, sigma)


def part_of(array: Image, outer: Box, inner: Box) -> Image:
    """The view of `array` (over the window `outer`) over `inner`, a window inside it."""
    y, x = outer[0], outer[2]
    return array[inner[0] - y : inner[1] - y, inner[2] - x : inner[3] - x]
