"""Surfaces: materials that can be rendered at any size, from photographs and from the bank of fields."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from maskmill.training.scenes.base import Image, Rng, between, chance
from maskmill.training.scenes.fields import SIDE, make_bank

SMOOTH = 16  # the first fields of the bank are isotropic noise, from rough to smooth
LEVELS = 32.0  # a field of deviation 1 is kept in 8 bits around 128
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Material:
    """A kind of surface; two renderings differ in place but not in kind.

    `patch` is the index of a window of a photograph, or -1; then `field` of the bank moves the colour from `base`
    along `swing` (2 x 3: in proportion, and bent). `zoom`: pixels per pixel of the source; `angle` in radians; `gain`
    scales a photograph's contrast, `tint` says how far its mean colour moves to `base`.
    """

    base: NDArray[np.float64]
    swing: NDArray[np.float64]
    field: int
    patch: int
    zoom: float
    angle: float
    gain: float
    tint: float


def recolour(rng: Rng, patch: Image) -> Image:
    """The patch under another light: contrast, brightness, saturation, tint."""
    grey = patch.mean(-1, keepdims=True)
    patch = grey + (patch - grey) * rng.uniform(0.3, 1.4)
    mean = patch.mean((0, 1))
    target = np.clip(mean + rng.normal(0, 0.06, 3) + rng.normal(0, 0.15), 0.03, 0.97)
    return np.clip(target + (patch - mean) * rng.uniform(0.4, 1.2), 0, 1).astype(np.float32)


class Textures:
    """Photographs (H x W x 3 uint8 RGB, perhaps none) and a bank of fields; the same for the same seed."""

    def __init__(self, photos: Sequence[Pixels], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.bank = [np.clip(f * LEVELS + 128, 0, 255).astype(np.uint8) for f in make_bank(seed)]
        self.windows = [w for p in photos for w in windows(rng, p)]
        self.means = [w.mean((0, 1)) / 255 for w in self.windows]
        self.even = np.array([evenness(w) > 0.8 for w in self.windows], bool)
        # colours of the world: pixels of the photographs, averaged a little
        coloured = [p for p in photos if np.ptp(p[::8, ::8].astype(int), axis=-1).mean() > 20]
        small = [cv2.resize(p, (32, 32), interpolation=cv2.INTER_AREA).reshape(-1, 3) for p in coloured]
        self.palette = np.concatenate(small).astype(np.float64) / 255 if small else None
        self.white = rng.standard_normal(2**21, np.float32)

    def colour(self, rng: Rng) -> NDArray[np.float64]:
        """One colour: mostly from the photographs, else any hue, rarely vivid."""
        if self.palette is not None and rng.random() < 0.6:
            picked = self.palette[int(rng.integers(len(self.palette)))]
            return np.clip(picked * between(rng, 0.7, 1.5) + rng.normal(0, 0.02, 3) + 0.03, 0.02, 0.98)
        value, vivid = rng.beta(1.5, 1.4), rng.beta(1.2, 1.8)
        return np.clip(value * (1 - vivid * rng.random(3)), 0.02, 0.98)

    def material(self, rng: Rng, photos: float, even: bool = False) -> Material:
        """A random surface. `photos`: the chance of a photographic one; `even`: a photograph's window must look the
        same all over, because a region with a cup on it is two regions."""
        patch = -1
        if chance(rng, photos) and self.windows:
            wanted = self.even if (even or rng.random() < 0.6) and self.even.any() else ~self.even
            patch = int(rng.choice(np.flatnonzero(wanted if wanted.any() else ~wanted)))
        strength = between(rng, 0.02, 0.25)
        swing = np.stack([strength * rng.normal(1, 0.25, 3), 0.4 * strength * rng.normal(0, 1, 3)])
        natural = rng.random() < 0.65
        return Material(
            base=self.colour(rng),
            swing=swing * rng.choice([-1, 1]),
            field=int(rng.integers(SMOOTH + 10 if natural else len(self.bank))),
            patch=patch,
            zoom=between(rng, 0.35, 2),
            angle=float(rng.uniform(0, 2 * np.pi)) if rng.random() < 0.3 else 0.0,
            gain=float(rng.uniform(0.5, 1.4)),
            tint=float(rng.random()) if rng.random() < 0.75 else 0.0,
        )

    def field(self, rng: Rng, index: int, h: int, w: int, zoom: float, angle: float = 0.0) -> Image:
        """An h x w float32 window of a field, anywhere in it."""
        return (self._window(rng, index, h, w, zoom, angle).astype(np.float32) - 128) * np.float32(1 / LEVELS)

    def _window(self, rng: Rng, index: int, h: int, w: int, zoom: float, angle: float) -> Pixels:
        x, y = rng.uniform(0, SIDE, 2)
        return warped(self.bank[index], h, w, zoom, angle, (x, y), cv2.BORDER_WRAP)

    def render(self, rng: Rng, material: Material, h: int, w: int) -> Image:
        """h x w x 3 of this surface, in [0, 1]."""
        level = np.arange(256)[:, None]
        if material.patch >= 0:
            source = self.windows[material.patch]
            if self.even[material.patch]:
                start = (rng.uniform(0, source.shape[1]), rng.uniform(0, source.shape[0]))
                pixels = warped(source, h, w, min(material.zoom, 1.6), material.angle, start, cv2.BORDER_REFLECT_101)
            else:  # a motif: shown once, not as wallpaper
                pixels = np.asarray(cv2.resize(source, (w, h), interpolation=cv2.INTER_LINEAR), np.uint8)
            mean = self.means[material.patch]
            hue = 1 + material.tint * np.clip(
                material.base / material.base.mean() - 1, -0.5, 0.5
            )  # grey stone becomes red brick
            table = (level / 255 - mean) * material.gain * hue + mean + material.tint * (material.base - mean)
        else:
            grey = self._window(rng, material.field, h, w, material.zoom, material.angle)
            pixels = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)
            z = (level - 128) / LEVELS
            table = material.base + z * material.swing[0] + np.sin(1.5 * z) * material.swing[1]
        return np.asarray(cv2.LUT(pixels, np.clip(table, 0, 1).astype(np.float32)[:, None]), np.float32)

    def white_noise(self, rng: Rng, h: int, w: int) -> Image:
        """h x w x 3 of unit deviation, from a fixed table where it is large enough: far cheaper than fresh numbers."""
        n = h * w * 3
        if n > len(self.white) // 2:
            return rng.standard_normal((h, w, 3), np.float32)
        start = int(rng.integers(len(self.white) - n))
        return self.white[start : start + n].reshape(h, w, 3)


def warped(
    source: Pixels, h: int, w: int, zoom: float, angle: float, start: tuple[float, float], border: int
) -> Pixels:
    """An h x w window of a picture from the place `start` (x, y) on, turned and scaled, continued at its borders."""
    if angle == 0:  # the usual case, ten times faster
        rows = continued(int(start[1]), max(2, round(h / zoom)), source.shape[0], border)
        cols = continued(int(start[0]), max(2, round(w / zoom)), source.shape[1], border)
        return np.asarray(
            cv2.resize(source.take(rows, 0).take(cols, 1), (w, h), interpolation=cv2.INTER_LINEAR), np.uint8
        )
    c, s = np.cos(angle) / zoom, np.sin(angle) / zoom
    matrix = np.array([[c, s, start[0]], [-s, c, start[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(source, matrix, (w, h), flags=flags, borderMode=border), np.uint8)


def continued(start: int, count: int, side: int, border: int) -> NDArray[np.int64]:
    """`count` indices from `start` on into an axis of `side`, that goes round or back and forth."""
    at = np.arange(start, start + count)
    if border == cv2.BORDER_WRAP:
        return at % side
    at %= 2 * side - 2
    return np.minimum(at, 2 * side - 2 - at)


def windows(rng: Rng, photo: Pixels, count: int = 24) -> list[Pixels]:
    """Random squares of a photograph, 64 pixels to half its shorter side."""
    rows, cols = photo.shape[:2]
    out = []
    for _ in range(count):
        side = int(min(rows, cols, between(rng, 64, max(65, min(rows, cols) / 2))))
        y, x = int(rng.integers(rows - side + 1)), int(rng.integers(cols - side + 1))
        out.append(np.ascontiguousarray(photo[y : y + side, x : x + side]))
    return out


def evenness(window: Pixels) -> float:
    """1 for a texture that is the same all over, 0 for two flat halves: how much of the variance lies in blocks of a
    quarter of the side, not between them."""
    blocks = cv2.resize(window, (4, 4), interpolation=cv2.INTER_AREA).astype(np.float64)
    return float(1 - blocks.var((0, 1)).sum() / (window.var((0, 1)).sum() + 1e-6))


def varied(rng: Rng, material: Material, textures: Textures, amount: float) -> Material:
    """A neighbour of this material: another individual of the kind, or the same thing's other side."""
    mixed = material.base + amount * (textures.colour(rng) - material.base)
    base = np.clip(mixed * np.exp(rng.normal(0, 0.5 * amount)), 0.02, 0.98)
    return replace(material, base=base, tint=max(material.tint, min(1.0, 2 * amount)))
