"""One light for a scene: shading of round and flat things, shadows that they cast, uneven light over the picture."""

from dataclasses import dataclass

import cv2
import numpy as np

from maskmill.training.scenes.base import Image, Rng, blurred


@dataclass(frozen=True)
class Light:
    """`x`, `y`: towards the light in the picture's plane (unit length); `height` of it above the plane in [0, 1];
    `ambient` share of light from everywhere."""

    x: float
    y: float
    height: float
    ambient: float


def random_light(rng: Rng) -> Light:
    """Mostly from above."""
    angle = rng.normal(-np.pi / 2, 0.8)
    return Light(float(np.cos(angle)), float(np.sin(angle)), float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.3, 0.8)))


def shading(rng: Rng, light: Light, alpha: Image) -> Image:
    """h x w factors around 1 for a round body of this silhouette: Lambert's law on its distance transform.

    The height over the outline is that of a tube or ball as wide as the silhouette: sqrt(d (2R - d)).
    """
    h, w = alpha.shape
    step = 2 if h * w > 10000 else 1  # smooth: half the resolution is enough
    inside = (alpha[::step, ::step] > 0.5).astype(np.uint8)
    depth: Image = np.asarray(cv2.distanceTransform(np.pad(inside, 1), cv2.DIST_L2, 3)[1:-1, 1:-1], np.float32)
    radius = float(depth.max()) + 1e-3
    bulge = np.float32(radius * rng.uniform(0.3, 1))  # below 1: a flat top with round edges
    depth = np.minimum(depth, bulge)
    arch: Image = np.sqrt(np.maximum(depth * (2 * bulge - depth), 0))
    height: Image = np.asarray(cv2.GaussianBlur(arch, (0, 0), max(0.6, 0.15 * radius)), np.float32)
    dx: Image = np.asarray(cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=0.125), np.float32)
    dy: Image = np.asarray(cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=0.125), np.float32)
    side = np.float32(np.sqrt(1 - light.height**2))
    facing = (light.height - side * (dx * light.x + dy * light.y)) / np.sqrt(1 + dx * dx + dy * dy)
    factor = light.ambient + (1 - light.ambient) * np.maximum(facing, 0) / max(light.height, 0.4)
    return np.asarray(cv2.resize(factor, (w, h), interpolation=cv2.INTER_LINEAR), np.float32)


def highlight(rng: Rng, light: Light, factor: Image) -> Image:
    """h x w of added white where a glossy body of this shading faces the light."""
    top = np.float32(factor.max())
    return np.float32(rng.uniform(0.1, 0.6)) * np.clip((factor - 0.9 * top) / (0.1 * top + 1e-6), 0, 1) ** 3


def slope(rng: Rng, h: int, w: int, strength: float) -> Image:
    """h x w factors around 1: light that grows to one side."""
    angle = rng.uniform(0, 2 * np.pi)
    x = np.linspace(-0.5, 0.5, w, dtype=np.float32) * np.float32(strength * np.cos(angle))
    y = np.linspace(-0.5, 0.5, h, dtype=np.float32) * np.float32(strength * np.sin(angle))
    return 1 + x[None] + y[:, None]


def cast_shadow(rng: Rng, light: Light, image: Image, alpha: Image, lying: bool) -> None:
    """Darken the picture beside a silhouette (both H x W of the same window), in place.

    `lying`: the thing stands on a ground that is seen from the side, and its shadow lies flat at its foot.
    """
    h, w = alpha.shape
    reach = 0.06 * (h + w)
    if lying:
        rows = np.flatnonzero(alpha.max(1) > 0.5)
        if len(rows) == 0:
            return
        foot, flat = float(rows[-1]), float(rng.uniform(0.08, 0.4))
        lean = -light.x * float(rng.uniform(0.3, 1.5)) * flat
        matrix = np.array([[1, lean, -lean * foot], [0, flat, foot * (1 - flat)]])
    else:
        far = float(rng.uniform(0.1, 0.8)) * reach
        matrix = np.array([[1, 0, -light.x * far], [0, 1, -light.y * far]])
    shadow = np.asarray(cv2.warpAffine(alpha, matrix, (w, h)), np.float32)
    shadow = blurred(shadow, max(0.7, float(rng.uniform(0.03, 0.3)) * reach))
    image *= 1 - np.float32(rng.uniform(0.2, 0.75)) * shadow[..., None]
