"""The training set of `nano`: a pool of drawn scenes on disk, photographs, and random views of both.

Scenes cost tens of milliseconds each, too dear to draw at every step on a CPU, so a few thousand are drawn once and
seen through random crops, flips and colours. Photographs are seen the same way.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from maskmill.training.augment import colour_jitter
from maskmill.training.data import deaf
from maskmill.training.photos import Photo, free_pictures, paste_scene, superpixels
from maskmill.training.scenes import Rng, Sample, SceneConfig, Textures, draw_scene

CHUNK = 40  # scenes in one file
MOST = 32  # masks kept of one scene
PASTED = 0.4  # share of scenes made of pasted photographs, if there are any
CROWDS = SceneConfig(landscape=0, room=0, closeup=0, pile=0, crowd=0.3, tiling=0.1, cells=0.6)


@dataclass(frozen=True)
class Packed:
    """A sample whose masks (K x H x W) are packed to bits along the last axis."""

    image: NDArray[np.uint8]
    bits: NDArray[np.uint8]

    def mask(self, index: int) -> NDArray[np.uint8]:
        """H x W uint8, 0 or 1."""
        return np.unpackbits(self.bits[index], axis=-1, count=self.image.shape[1])


def draw_chunk(
    seed: int, size: int, photos: Sequence[Photo], textures: Textures, path: Path, config: SceneConfig
) -> None:
    """Draw CHUNK scenes of the given side into one file; where there are photographs, PASTED of them are pasted."""
    rng = np.random.default_rng(seed)
    scenes: list[Sample] = []
    while len(scenes) < CHUNK:
        if photos and rng.random() < PASTED:
            sample = paste_scene(rng, photos, textures, size)
        else:
            sample = draw_scene(rng, config, textures, size)
        if len(sample.masks):
            keep = rng.permutation(len(sample.masks))[:MOST]
            scenes.append(Sample(sample.image, sample.masks[keep], sample.parents[keep]))
    bits = np.concatenate([np.packbits(s.masks, axis=-1) for s in scenes])
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, images=np.stack([s.image for s in scenes]), bits=bits, counts=[len(s.masks) for s in scenes])
    partial.replace(path)


def fill_pool(
    folder: Path,
    chunks: int,
    size: int,
    photos: Sequence[Photo],
    workers: int,
    scenes: SceneConfig,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Draw what is missing of `chunks` files in `folder`, until `stopped` says so; the next call goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    missing = [i for i in range(chunks) if not (folder / f"{i:04d}.npz").exists()]
    if not missing:
        return
    textures = Textures(free_pictures() + [p.image for p in photos])
    jobs = [(i, size, photos, textures, folder / f"{i:04d}.npz", scenes) for i in missing]
    if workers <= 1:
        for job in jobs:
            if not stopped():
                draw_chunk(*job)
        return
    global _JOBS
    _JOBS = jobs  # inherited by the forked workers: photographs are not pickled
    with ProcessPoolExecutor(workers, get_context("fork"), deaf, (0,)) as pool:
        for drawn in as_completed([pool.submit(_run_job, n) for n in range(len(jobs))]):
            drawn.result()
            if stopped():
                pool.shutdown(cancel_futures=True)
                return


_JOBS: list[tuple[int, int, Sequence[Photo], Textures, Path, SceneConfig]] = []


def _run_job(index: int) -> None:
    draw_chunk(*_JOBS[index])


def read_pool(folder: Path) -> list[Packed]:
    """Every scene drawn so far."""
    scenes: list[Packed] = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as chunk:
            images, bits, ends = chunk["images"], chunk["bits"], np.cumsum(chunk["counts"])
        starts = np.concatenate([[0], ends[:-1]])
        scenes += [Packed(image, bits[a:b]) for image, a, b in zip(images, starts, ends, strict=True)]
    return scenes


def pack_photos(photos: Sequence[Photo], folder: Path) -> tuple[list[Packed], list[Packed]]:
    """The photographs with their human masks, and again with regions of the image alone at four scales.

    The regions take a second a photograph; `folder` keeps them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    human = [Packed(p.image, np.packbits(p.masks, axis=-1)) for p in photos]
    alone = []
    for photo in photos:
        path = folder / f"{hashlib.sha256(photo.image.tobytes()).hexdigest()[:16]}.npy"  # keys may be doubled, or paths
        if not path.exists():
            regions = np.concatenate([superpixels(photo, scale) for scale in (50, 150, 500, 1500)])
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, np.packbits(regions, axis=-1))
            partial.replace(path)
        alone.append(Packed(photo.image, np.load(path)))
    return human, [p for p in alone if len(p.bits)]


@dataclass(frozen=True)
class View:
    """What one image gives to one step: image 3 x S x S normalised float32 (zero outside the picture), masks
    P x S/4 x S/4 in [0, 1], points P x 2 (one foreground click each) and boxes P x 4, in pixels of the input."""

    image: NDArray[np.float32]
    masks: NDArray[np.float32]
    points: NDArray[np.float32]
    boxes: NDArray[np.float32]


MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def random_view(rng: Rng, source: Packed, size: int, prompts: int, crops: float) -> View | None:
    """The image, or with a chance of `crops` a random part of it, mirrored, recoloured; `prompts` of its masks.

    None where nothing is left.
    """
    h, w = source.image.shape[:2]
    ch, cw = h, w
    if rng.random() < crops:
        side, aspect = min(h, w) * rng.uniform(0.35, 1), np.exp(rng.uniform(-0.4, 0.4))
        ch, cw = int(min(h, side * aspect)), int(min(w, side / aspect))
    y, x = int(rng.integers(h - ch + 1)), int(rng.integers(w - cw + 1))
    scale = size / max(ch, cw)
    rh, rw = max(4, round(ch * scale / 4) * 4), max(4, round(cw * scale / 4) * 4)
    mirror = slice(None, None, -1 if rng.random() < 0.5 else 1)

    chosen: list[NDArray[np.float32]] = []
    for index in rng.permutation(len(source.bits)):
        cut = source.mask(int(index))[y : y + ch, x : x + cw]
        small = cv2.resize(cut * np.uint8(255), (rw // 4, rh // 4), interpolation=cv2.INTER_AREA)
        inside = int((small > 127).sum())
        if 1 <= inside <= 0.95 * small.size:  # single cells too: half of what people outline is tiny
            chosen.append(np.asarray(small[:, mirror], np.float32) / np.float32(255))
        if len(chosen) == prompts:
            break
    if not chosen:
        return None
    masks = np.zeros((prompts, size // 4, size // 4), np.float32)
    masks[:, : rh // 4, : rw // 4] = [chosen[i % len(chosen)] for i in range(prompts)]

    crop = source.image[y : y + ch, x : x + cw]
    pixels = cv2.resize(crop, (rw, rh), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    image = np.zeros((size, size, 3), np.float32)
    image[:rh, :rw] = (colour_jitter(pixels[:, mirror].astype(np.float32), rng) - MEAN) / STD
    clicks = np.stack([click(rng, m) for m in masks])
    return View(image.transpose(2, 0, 1), masks, clicks, np.stack([box(m) for m in masks]))


def click(rng: Rng, mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """A point (x, y) in input pixels: in half the cases at the deepest place of the mask, else anywhere in it."""
    inside = (mask > 0.5).astype(np.uint8)
    if rng.random() < 0.5:
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
        y, x = np.unravel_index(int((depth + 0.3 * rng.random(depth.shape)).argmax()), depth.shape)
    else:
        cells = np.flatnonzero(inside)
        y, x = np.unravel_index(int(rng.choice(cells)), inside.shape)
    return np.array([4 * (x + rng.random()) - 0.5, 4 * (y + rng.random()) - 0.5], np.float32)


def box(mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """(x0, y0, x1, y1) around the mask, in input pixels."""
    rows, cols = np.flatnonzero((mask > 0.5).any(1)), np.flatnonzero((mask > 0.5).any(0))
    return np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1], np.float32) * 4


def view_stream(rng: Rng, draw: Callable[[Rng], Packed], size: int, prompts: int, crops: float) -> View:
    """The first usable random view of what `draw` gives."""
    while True:
        view = random_view(rng, draw(rng), size, prompts, crops)
        if view is not None:
            return view
