"""The camera: uneven light, lens, exposure, sensor noise, JPEG. Masks stay as they are."""

import cv2
import numpy as np
from numpy.typing import NDArray

from maskmill.training.scenes.base import Image, Rng, chance
from maskmill.training.scenes.config import SceneConfig
from maskmill.training.scenes.textures import SMOOTH, Textures


def photograph(rng: Rng, cfg: SceneConfig, textures: Textures, image: Image) -> NDArray[np.uint8]:
    """The final S x S x 3 uint8 picture of a painted S x S x 3 float32 one."""
    if chance(rng, cfg.light):
        image = uneven(rng, textures, image)
    if chance(rng, cfg.soft):
        image = lens(rng, image)
    if chance(rng, cfg.motion):
        image = shake(rng, image)
    image = np.clip(image, 0, 1)
    if chance(rng, cfg.tone):
        image = exposure(rng, image)
    if chance(rng, cfg.cast):
        image = np.clip(balance(rng, image), 0, 1)
    if chance(rng, cfg.noise):
        image = image + grain(rng, textures, image)
    pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return jpeg(rng, pixels) if chance(rng, cfg.jpeg) else pixels


def uneven(rng: Rng, textures: Textures, image: Image) -> Image:
    """Light that comes from one side, falls off to the corners, or lies in patches."""
    h, w = image.shape[:2]
    x, y = np.linspace(-1, 1, w, dtype=np.float32)[None], np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    kind = int(rng.integers(3))
    if kind == 0:
        angle = rng.uniform(0, 2 * np.pi)
        field = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    elif kind == 1:
        field = np.float32(0.5) - (x - np.float32(rng.normal(0, 0.4))) ** 2 - (y - np.float32(rng.normal(0, 0.4))) ** 2
    else:  # under trees, behind blinds
        field = textures.field(rng, int(rng.integers(10, SMOOTH)), h, w, rng.uniform(1, 4))
        field = np.tanh(field * np.float32(rng.uniform(0.3, 1.2)))  # harder edges would be things
    return image * np.maximum(1 + np.float32(rng.uniform(0.1, 0.5)) * field, 0.1)[..., None]


def lens(rng: Rng, image: Image) -> Image:
    """A little blur, or an unsharp mask with its halos."""
    blurred = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.3)), np.float32)
    if rng.random() < 0.6:
        return blurred
    return image + np.float32(rng.uniform(0.3, 1.2)) * (image - blurred)


def shake(rng: Rng, image: Image) -> Image:
    """Blur along a line of 3 to 11 pixels."""
    n = int(rng.integers(3, 12))
    kernel = np.zeros((n, n), np.float32)
    angle = rng.uniform(0, np.pi)
    middle, reach = (n - 1) / 2, np.array([np.cos(angle), np.sin(angle)]) * (n - 1) / 2
    a, b = (middle - reach).round().astype(int), (middle + reach).round().astype(int)
    cv2.line(kernel, (int(a[0]), int(a[1])), (int(b[0]), int(b[1])), 1.0)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.float32)


def exposure(rng: Rng, image: Image) -> Image:
    """Gain, gamma and an S curve, in one table."""
    t = np.linspace(0, 1, 256, dtype=np.float32)
    curve = np.clip(t * np.float32(np.exp(rng.normal(0.1, 0.2))), 0, 1) ** np.float32(np.exp(rng.normal(0, 0.25)))
    mix = np.float32(rng.uniform(-0.1, 0.9))
    curve = curve + mix * (curve * curve * (3 - 2 * curve) - curve)
    return np.asarray(cv2.LUT((image * 255 + 0.5).astype(np.uint8), curve.astype(np.float32)), np.float32)


def balance(rng: Rng, image: Image) -> Image:
    """Wrong white balance, less or more colour; sometimes black and white."""
    colour = 0.0 if rng.random() < 0.15 else rng.uniform(0.4, 1.4)
    mix = np.full((3, 3), (1 - colour) / 3) + colour * np.eye(3)
    mix *= np.exp(rng.normal(0, 0.1 if colour else 0.03, (3, 1)))
    return np.asarray(cv2.transform(image, mix.astype(np.float32)), np.float32)


def grain(rng: Rng, textures: Textures, image: Image) -> Image:
    """Sensor noise that grows with the light, or is coarser, as after a raw converter."""
    h, w = image.shape[:2]
    white = textures.white_noise(rng, h, w)
    if rng.random() < 0.4:
        white = 1.8 * np.asarray(cv2.GaussianBlur(white, (0, 0), 0.7), np.float32)
    strength = np.float32(rng.uniform(0.002, 0.05))
    return strength * white * np.sqrt(image + 0.1)


def jpeg(rng: Rng, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encoded and decoded at a quality from 25 to 95."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 96))]
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], quality)
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])
