"""Images for the benchmarks: the parity tests' rendered ones, at any size."""

import functools

import cv2
import numpy as np

from tests.parity.images import render

RENDERED_SIDE = 640  # larger ones are enlarged: rendering takes seconds for each megapixel


@functools.lru_cache(maxsize=8)
def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Textured shapes on a textured ground, with grain: uint8 height x width x 3."""
    scale = min(1.0, RENDERED_SIDE / max(height, width))
    image = render(seed, max(1, round(height * scale)), max(1, round(width * scale)), objects=20)
    if image.shape[:2] == (height, width):
        return image
    large = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    grain = np.random.default_rng(seed).integers(-4, 5, (height, width, 1), dtype=np.int16)
    return np.clip(large + grain, 0, 255).astype(np.uint8)


def pictures(count: int, height: int, width: int) -> list[np.ndarray]:
    """`count` different images: a few pictures, turned over."""
    base = [picture(seed, height, width) for seed in range(min(count, 4))]
    flips = (lambda x: x, lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x[::-1, ::-1])
    made = [np.ascontiguousarray(flips[i // 4 % 4](base[i % 4])) for i in range(count)]
    return [np.roll(image, i // 16 * 97, axis=1) for i, image in enumerate(made)]
