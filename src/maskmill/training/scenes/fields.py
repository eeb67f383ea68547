"""Grey patterns that tile: noise with the spectrum of natural images, and the regular things people make.

The amplitude spectrum of natural images falls about as 1/f, the power as 1/f^2 (Field 1987); exponents between 0.8 and
3 give everything from gravel to clouds. Every field is S x S float32 with zero mean and unit deviation.
"""

import cv2
import numpy as np

from maskmill.training.scenes.base import Image, Rng

SIDE = 256


def unit(field: Image) -> Image:
    """Zero mean, unit deviation."""
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), np.float32)


def noise(rng: Rng, beta: float, stretch: float = 1.0) -> Image:
    """Noise of power 1/f^beta, `stretch` times longer than wide: fur, grass, wood, brushed metal."""
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    f = np.hypot(fy, fx * stretch)
    f[0, 0] = np.inf
    phases = rng.standard_normal((2, *f.shape))
    return unit(np.fft.irfft2((phases[0] + 1j * phases[1]) * f ** (-beta / 2), s=(SIDE, SIDE)).astype(np.float32))


def ridges(rng: Rng) -> Image:
    """Veins, cracks, wrinkles: the zero lines of smooth noise."""
    return unit(-np.sqrt(np.abs(noise(rng, rng.uniform(2, 3), rng.uniform(1, 3)))))


def spots(rng: Rng) -> Image:
    """Noise pushed to two values: hide, camouflage cloth, rust."""
    edge = rng.uniform(2, 10)
    return unit(np.tanh(edge * (noise(rng, rng.uniform(2, 3)) - rng.uniform(-0.7, 0.7))))


def stripes(rng: Rng) -> Image:
    """A wavy grating, sharp or soft, sometimes crossed with a second one to a plaid."""
    grid = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) * np.float32(2 * np.pi / SIDE)
    bend = noise(rng, 3.0) * rng.uniform(0, 1.5)
    wave = np.sin(grid[1] * rng.integers(4, 40) + bend)
    if rng.random() < 0.3:
        wave = wave + np.sin(grid[0] * rng.integers(4, 40) + bend)
    return unit(np.tanh(wave * rng.uniform(0.5, 6)))


def patches(rng: Rng) -> Image:
    """Cells of a jittered grid, each of its own grey, with darker or lighter seams: pebbles, scales, patchwork."""
    n = int(rng.integers(6, 28))
    step = SIDE / n
    places = (np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1) + rng.uniform(0.1, 0.9, (n, n, 2))) * step
    xy = (places.reshape(-1, 2).astype(int)) % SIDE
    seeds = np.ones((SIDE, SIDE), np.uint8)
    seeds[xy[:, 1], xy[:, 0]] = 0
    tiled = np.tile(seeds, (3, 3))[SIDE // 2 : -SIDE // 2, SIDE // 2 : -SIDE // 2]  # a margin, so that it wraps
    depth, label = cv2.distanceTransformWithLabels(tiled, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    inner = slice(SIDE // 2, SIDE // 2 + SIDE)
    greys = rng.normal(0, rng.uniform(0, 1), int(label.max()) + 1)
    round_part = np.asarray(depth, np.float32) / step * rng.uniform(-3, 3)
    return unit(np.roll((round_part + greys[label])[inner, inner], (SIDE // 2, SIDE // 2), (0, 1)).astype(np.float32))


def bricks(rng: Rng) -> Image:
    """Rows of bricks with mortar lines."""
    rows, cols = int(rng.integers(6, 24)), int(rng.integers(3, 12))
    high, wide = SIDE // rows, SIDE // cols
    field = np.zeros((SIDE, SIDE), np.float32)
    for r in range(rows):
        for c in range(cols):
            x, y = c * wide + (r % 2) * wide // 2, r * high
            tone = float(rng.normal(1.5, 0.4))
            cv2.rectangle(field, (x + 1, y + 1), (x + wide - 2, y + high - 2), tone, -1)
    return unit(field + 0.2 * noise(rng, 1.5))


def letters(rng: Rng) -> Image:
    """Rows of letters, as on a page or a poster."""
    field = np.zeros((SIDE, SIDE), np.uint8)
    y = 0
    while y < SIDE:
        size = rng.uniform(0.3, 1.4)
        y += int(size * 30)
        text = "".join(chr(int(c)) for c in rng.integers(65, 123, 40))
        font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX]))
        cv2.putText(field, text, (0, y), font, size, 255, int(rng.integers(1, 3)), cv2.LINE_AA)
    return unit(field.astype(np.float32))


def make_bank(seed: int) -> list[Image]:
    """About fifty fields, mostly natural noise; the same for the same seed. Takes half a second."""
    rng = np.random.default_rng(seed)
    bank = [noise(rng, beta) for beta in np.linspace(0.6, 4.2, 16)]
    bank += [noise(rng, rng.uniform(0.8, 2.4), rng.uniform(2, 12)) for _ in range(10)]
    for make, count in ((ridges, 4), (spots, 5), (stripes, 6), (patches, 6), (bricks, 2), (letters, 2)):
        bank += [make(rng) for _ in range(count)]
    return bank
