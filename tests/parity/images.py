"""Images for the comparisons: rendered ones of every awkward size, and scikit-image's photographs where installed."""

import importlib.util

import cv2
import numpy as np

SIZES = {  # name: (height, width)
    "small": (240, 320),
    "wide": (200, 600),
    "tall": (560, 210),
    "odd": (333, 517),
    "grey": (300, 300),
    "large": (400, 600),
    "tiny": (97, 131),
    "square": (512, 512),
}
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth two-colour ground with a grating and grain: float32 H x W x 3 in 0-255."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    a, b = rng.uniform(20, 235, (2, 3)).astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 40)
    wave = 0.5 + 0.5 * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    ramp = (x / width + y / height) / 2
    mix = (0.25 * wave + 0.5 * ramp)[..., None]
    return (a * (1 - mix) + b * mix + rng.normal(0, 4, (height, width, 3))).astype(np.float32)


def shape(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One filled ellipse, box or star: bool H x W. Some lie over the image's edge."""
    canvas = np.zeros((height, width), np.uint8)
    centre = rng.uniform((0, 0), (width, height))
    size = rng.uniform(0.06, 0.3) * min(height, width) + 4
    kind = rng.integers(3)
    if kind == 0:
        axes = (int(size), int(size * rng.uniform(0.4, 1)))
        cv2.ellipse(canvas, (int(centre[0]), int(centre[1])), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    else:
        corners = 4 if kind == 1 else int(rng.integers(5, 10))
        turn = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0, np.pi)
        radius = size * (np.ones(corners) if kind == 1 else rng.uniform(0.5, 1.2, corners))
        outline = centre + np.stack([np.cos(turn), np.sin(turn)], 1) * radius[:, None]
        cv2.fillPoly(canvas, [outline.astype(np.int32)], 1)
    return canvas.astype(bool)


def render(seed: int, height: int, width: int, objects: int = 14) -> np.ndarray:
    """Textured shapes on a textured ground: uint8 H x W x 3."""
    rng = np.random.default_rng(seed)
    image = texture(rng, height, width)
    for _ in range(objects):
        where = shape(rng, height, width)
        image[where] = texture(rng, height, width)[where]
    return np.clip(image, 0, 255).astype(np.uint8)


def rendered() -> dict[str, np.ndarray]:
    """Eight images, from 97 x 131 to 512 x 512, wide, tall, odd, and one without colour."""
    images = {name: render(i, *size) for i, (name, size) in enumerate(SIZES.items())}
    images["grey"] = np.repeat(images["grey"].mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    return images


def photos() -> dict[str, np.ndarray]:
    """Photographs inside scikit-image's wheel, or none."""
    if importlib.util.find_spec("skimage") is None:
        return {}
    import skimage.data

    return {name: np.ascontiguousarray(getattr(skimage.data, name)()) for name in PHOTOS}
