"""Procedural scenes with exact masks: stuff regions, occluding objects, parts inside wholes, crowds of small blobs.

Everything is drawn in float32 RGB in [0, 1] on square canvases, back to front; a later object hides earlier ones, and
the masks are the visible pixels. Flat saturated shapes teach colour matching and little else, so the colours come
mostly from photographs (`Textures`), with shading, cast shadows, soft edges, blur, noise and JPEG artefacts on top.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Rng = np.random.Generator

SMALLEST = 36  # pixels: a smaller visible piece is no target


@dataclass(frozen=True)
class Sample:
    """`image` H x W x 3 uint8 RGB; `masks` K x H x W bool, overlapping where parts lie inside wholes."""

    image: NDArray[np.uint8]
    masks: Mask


class Textures:
    """Random patches cut from photographs (H x W x 3 uint8 RGB), recoloured; or noise where none are given."""

    def __init__(self, photos: Sequence[NDArray[np.uint8]]) -> None:
        self.photos = list(photos)

    def patch(self, rng: Rng, h: int, w: int) -> Image:
        """h x w x 3 float32 in [0, 1]."""
        if self.photos and rng.random() < 0.7:
            return recolour(rng, self._cut(rng, h, w))
        return noise_texture(rng, h, w)

    def _cut(self, rng: Rng, h: int, w: int) -> Image:
        photo = self.photos[int(rng.integers(len(self.photos)))]
        rows, cols = photo.shape[:2]
        zoom = float(np.exp(rng.uniform(np.log(0.35), np.log(2.0))))  # patch pixels per photo pixel
        ch, cw = min(rows, max(8, int(h / zoom))), min(cols, max(8, int(w / zoom)))
        y, x = int(rng.integers(rows - ch + 1)), int(rng.integers(cols - cw + 1))
        patch = cv2.resize(photo[y : y + ch, x : x + cw], (w, h), interpolation=cv2.INTER_AREA)
        return np.asarray(patch, np.float32) / np.float32(255)


def recolour(rng: Rng, patch: Image) -> Image:
    """The patch under another light: contrast, brightness, tint, sometimes other channels or its negative."""
    if rng.random() < 0.3:
        patch = patch[..., rng.permutation(3)]
    if rng.random() < 0.1:
        patch = 1 - patch
    grey = patch.mean(-1, keepdims=True)
    patch = grey + (patch - grey) * rng.uniform(0.2, 1.5)
    mean = patch.mean((0, 1))
    target = np.clip(mean + rng.normal(0, 0.15, 3) + rng.normal(0, 0.2), 0.03, 0.97)
    out = target + (patch - mean) * rng.uniform(0.25, 1.2)
    return np.clip(out, 0, 1).astype(np.float32)


def noise_field(rng: Rng, h: int, w: int, beta: float) -> Image:
    """h x w smooth noise of spectrum about 1/f^beta: octaves of upsampled white noise, zero mean, unit deviation."""
    field = np.zeros((h, w), np.float32)
    cells = 2
    while cells <= max(h, w):
        octave = rng.standard_normal((min(cells, h), min(cells, w))).astype(np.float32)
        field += cells ** (-beta / 2) * cv2.resize(octave, (w, h), interpolation=cv2.INTER_CUBIC)
        cells *= 2
    return (field - field.mean()) / (field.std() + 1e-6)


def noise_texture(rng: Rng, h: int, w: int) -> Image:
    """Coloured noise around one colour, with a grating at times: h x w x 3 float32 in [0, 1]."""
    base = rng.random(3) * rng.uniform(0.3, 1) + rng.uniform(0, 0.3)
    z = noise_field(rng, h, w, rng.uniform(0.6, 2.6))[..., None]
    out = base + z * rng.normal(0, 0.09, 3)
    if rng.random() < 0.25:
        yy, xx = np.mgrid[0:h, 0:w].astype(np.float32)
        angle, freq = rng.uniform(0, np.pi), rng.uniform(0.05, 0.9)
        wave = np.sin(freq * (xx * np.cos(angle) + yy * np.sin(angle)) + z[..., 0] * rng.uniform(0, 1.5))
        out = out + wave[..., None] * rng.normal(0, 0.12, 3)
    return np.clip(out, 0, 1).astype(np.float32)


def outline(rng: Rng, size: int, radius: float) -> Mask:
    """One random shape of about this radius, somewhere on a size x size canvas."""
    mask = np.zeros((size, size), np.uint8)
    cx, cy = rng.uniform(0, size, 2)
    kind = int(rng.integers(6))
    stretch, turn = rng.uniform(0.3, 1), rng.uniform(0, 2 * np.pi)
    if kind == 0:
        axes = (max(2, int(radius)), max(2, int(radius * stretch)))
        cv2.ellipse(mask, (int(cx), int(cy)), axes, float(np.degrees(turn)), 0, 360, 1, -1)
        return mask > 0
    if kind == 1:
        corners = cv2.boxPoints(((cx, cy), (2 * radius, 2 * radius * stretch), float(np.degrees(turn))))
        cv2.fillPoly(mask, [corners.astype(np.int32)], 1)
        return mask > 0
    if kind == 2:  # a limb: a thick bent line
        steps = np.array([cx, cy]) + rng.normal(0, radius * 0.6, (4, 2)).cumsum(0)
        cv2.polylines(mask, [steps.astype(np.int32)], False, 1, max(3, int(radius * rng.uniform(0.15, 0.5))))
        return mask > 0
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    if kind == 3:  # polygon
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 10))))
        reach = radius * rng.uniform(0.5, 1, len(angles))
    else:  # smooth blob
        reach = np.full(96, radius * 0.75)
        for wave in range(2, 9):
            reach += radius * rng.normal(0, 0.35 / wave) * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
        reach = np.maximum(reach, radius * 0.15)
    x, y = reach * np.cos(angles), reach * np.sin(angles) * stretch
    points = np.stack([cx + x * np.cos(turn) - y * np.sin(turn), cy + x * np.sin(turn) + y * np.cos(turn)], 1)
    cv2.fillPoly(mask, [points.astype(np.int32)], 1)
    return mask > 0


def split(rng: Rng, mask: Mask) -> list[Mask]:
    """Parts of a whole: the mask cut along the level line of a smooth field, or a smaller shape on it."""
    ys, xs = np.nonzero(mask)
    if len(ys) < 8 * SMALLEST:
        return []
    if rng.random() < 0.5:
        h, w = mask.shape
        yy, xx = np.mgrid[0:h, 0:w].astype(np.float32)
        angle, i = rng.uniform(0, 2 * np.pi), int(rng.integers(len(ys)))
        plane = (xx - xs[i]) * np.cos(angle) + (yy - ys[i]) * np.sin(angle)
        plane += noise_field(rng, h, w, 3.0) * rng.uniform(0, 0.25) * np.sqrt(len(ys))
        return [mask & (plane > 0)]
    parts = []
    for _ in range(int(rng.integers(1, 4))):
        i = int(rng.integers(len(ys)))
        shape = outline(rng, mask.shape[0], np.sqrt(len(ys)) * rng.uniform(0.1, 0.35))
        sy, sx = np.nonzero(shape)
        if len(sy):
            shift = (int(ys[i] - sy.mean()), int(xs[i] - sx.mean()))
            parts.append(mask & np.roll(shape, shift, (0, 1)))
    return parts


class Canvas:
    """A picture under construction: `image` S x S x 3 float32, `masks` the visible pixels of every target so far."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.masks: list[Mask] = []
        self.size = image.shape[0]

    def paint(self, rng: Rng, mask: Mask, colours: Callable[[int, int], Image], hide: bool = True) -> None:
        """Blend `colours(h, w)` into the mask's box with a soft edge, shading and perhaps a cast shadow.

        `hide=False` paints a part: the whole underneath keeps its pixels.
        """
        ys, xs = np.nonzero(mask)
        if len(ys) < SMALLEST:
            return
        pad = 6
        y0, y1 = max(0, ys.min() - pad), min(self.size, ys.max() + pad + 1)
        x0, x1 = max(0, xs.min() - pad), min(self.size, xs.max() + pad + 1)
        local = mask[y0:y1, x0:x1].astype(np.float32)
        h, w = local.shape
        colour = shade(rng, colours(h, w), local) if rng.random() < 0.6 else colours(h, w)
        alpha = cv2.GaussianBlur(local, (0, 0), rng.uniform(0.3, 1.1))[..., None]
        under = self.image[y0:y1, x0:x1]
        if hide and rng.random() < 0.35:
            dy, dx = rng.integers(-pad, pad + 1, 2)
            shadow = cv2.GaussianBlur(np.roll(local, (dy, dx), (0, 1)), (0, 0), rng.uniform(1, 4))
            under = under * (1 - rng.uniform(0.1, 0.6) * shadow[..., None])
        self.image[y0:y1, x0:x1] = under * (1 - alpha) + colour * alpha
        if hide:
            for other in self.masks:
                other[y0:y1, x0:x1] &= ~mask[y0:y1, x0:x1]
        self.masks.append(mask.copy())

    def finish(self, rng: Rng) -> Sample:
        """The camera: light falling off, blur, gamma, noise, JPEG. Targets that vanished are dropped."""
        image = self.image
        if rng.random() < 0.5:
            light = noise_field(rng, 8, 8, 2.5) * rng.uniform(0.02, 0.15)
            image = image * (1 + cv2.resize(light, (self.size, self.size), interpolation=cv2.INTER_CUBIC)[..., None])
        if rng.random() < 0.4:
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.5)), np.float32)
        image = np.clip(image, 0, 1) ** rng.uniform(0.7, 1.4) * rng.uniform(0.7, 1.1)
        if rng.random() < 0.5:
            image = image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, 0.05))
        out = (np.clip(image, 0, 1) * 255).astype(np.uint8)
        if rng.random() < 0.5:
            _, jpeg = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 95))])
            out = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8)
        kept = [m for m in self.masks if m.sum() >= SMALLEST]
        masks = np.stack(kept) if kept else np.zeros((0, self.size, self.size), bool)
        return Sample(out, masks)


def shade(rng: Rng, colour: Image, local: Image) -> Image:
    """Light from one side: a linear gradient, or the roundness of the shape (its distance transform as height)."""
    h, w = local.shape
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.6)
    if rng.random() < 0.5:
        yy, xx = np.mgrid[0:h, 0:w].astype(np.float32)
        slope = (xx / w - 0.5) * np.cos(angle) + (yy / h - 0.5) * np.sin(angle)
    else:
        depth = cv2.distanceTransform((local > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
        height = cv2.GaussianBlur(np.sqrt(depth / (depth.max() + 1e-6)), (0, 0), 2)
        slope = (height - 0.5) * rng.choice([-1, 1])
    return np.clip(colour * (1 + strength * slope[..., None]), 0, 1).astype(np.float32)


def layered_scene(rng: Rng, textures: Textures, size: int) -> Sample:
    """A few stuff regions, then 3 to 25 objects from large to small, some with parts."""
    canvas = Canvas(textures.patch(rng, size, size))
    canvas.masks.append(np.ones((size, size), bool))
    for _ in range(int(rng.integers(0, 4))):
        field = noise_field(rng, size, size, 3.2)
        yy, xx = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
        angle = rng.uniform(0, 2 * np.pi)
        field += (xx * np.cos(angle) + yy * np.sin(angle)) * rng.uniform(0, 8)
        canvas.paint(rng, field > rng.uniform(0, 1.2), lambda h, w: textures.patch(rng, h, w))
    count = int(rng.integers(3, 26))
    for radius in np.sort(np.exp(rng.uniform(np.log(size * 0.02), np.log(size * 0.4), count)))[::-1]:
        whole = outline(rng, size, float(radius))
        canvas.paint(rng, whole, lambda h, w: textures.patch(rng, h, w))
        if rng.random() < 0.35:
            for part in split(rng, whole):
                canvas.paint(rng, part, lambda h, w: textures.patch(rng, h, w), hide=False)
    return canvas.finish(rng)


def crowd_scene(rng: Rng, textures: Textures, size: int) -> Sample:
    """Many alike, mostly round things on an even ground: coins, fruit, pebbles, cells."""
    ground = rng.uniform(0, 1) ** rng.uniform(0.5, 5) * np.clip(rng.normal(1, 0.12, 3), 0, 1.4)
    step = rng.choice([-1, 1]) * float(np.exp(rng.uniform(np.log(0.05), np.log(0.7))))
    step = abs(step) if ground.mean() < abs(step) else step  # on a dark ground only brighter things show
    thing = np.clip(ground + step * np.clip(rng.normal(1, 0.35, 3), 0.2, 2), 0, 1)
    grain = abs(step) * rng.uniform(0, 0.2)
    image = ground + noise_field(rng, size, size, rng.uniform(1, 3))[..., None] * grain
    if rng.random() < 0.2:
        image = 0.6 * image + 0.4 * textures.patch(rng, size, size)
    canvas = Canvas(np.clip(image, 0, 1).astype(np.float32))
    radius = float(np.exp(rng.uniform(np.log(size * 0.011), np.log(size * 0.08))))
    crowd = int(np.clip(rng.uniform(0.1, 0.7) * size**2 / (4 * radius**2), 5, 90))
    spread, rough = rng.uniform(0, 0.3), rng.uniform(0, 0.1)
    taken = np.zeros((size, size), bool)
    for _ in range(crowd):
        mask = np.zeros((size, size), np.uint8)
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        reach = radius * np.exp(rng.normal(0, spread)) * np.ones(48)
        for wave in range(2, 6):
            reach *= 1 + rng.normal(0, rough) * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
        turn, flat = rng.uniform(0, np.pi), rng.uniform(0.6, 1)
        x, y = reach * np.cos(angles), reach * np.sin(angles) * flat
        cx, cy = rng.uniform(0, size, 2)
        points = np.stack([cx + x * np.cos(turn) - y * np.sin(turn), cy + x * np.sin(turn) + y * np.cos(turn)], 1)
        cv2.fillPoly(mask, [points.astype(np.int32)], 1)
        if rng.random() < 0.8 and (taken & (mask > 0)).any():
            continue  # most neighbours touch at most
        taken |= mask > 0
        tone = np.clip(thing + step * (rng.normal(0, 0.25) + rng.normal(0, 0.08, 3)), 0, 1)

        def colours(h: int, w: int, tone: NDArray[np.float64] = tone) -> Image:
            z = noise_field(rng, h, w, 1.5)[..., None] * grain
            return np.clip(tone + z, 0, 1).astype(np.float32)

        canvas.paint(rng, mask > 0, colours)
    return canvas.finish(rng)
