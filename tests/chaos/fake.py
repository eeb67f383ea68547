"""A segmenter without a model: masks that follow from the pixels alone, and images that misbehave on demand.

So scheduling, ledger and storage are tested alone, and rows can be compared byte for byte. The colour of the pixel at
(0, 0) says what an image does to its process.
"""

import ctypes
import hashlib
import os
import signal
import time
from pathlib import Path

import numpy as np
from PIL import Image

from maskmill.masks.table import MaskTable
from maskmill.pipeline.unit import Job
from tests.unit.tables import table

SEGMENTER = "tests.chaos.fake:FakeSegmenter"
CALM, RAISE, EMPTY, SEGFAULT, EXIT, HANG, KILL_ACTOR, SEGFAULT_ONCE, NOT_AFTER_OTHERS = range(9)


class FakeSegmenter:
    """A file `seconds` beside the build, or MASKMILL_FAKE_SECONDS, says how long each image takes (the environment of a
    driver does not reach Ray's workers). MASKMILL_FAKE_MEMORY: a folder for what must be remembered."""

    def __init__(self, job: Job) -> None:
        beside = Path(job.build).parent / "seconds"
        said = beside.read_text() if beside.exists() else os.environ.get("MASKMILL_FAKE_SECONDS", "0")
        self.seconds = float(said)
        self.images = 0

    def __call__(self, image: np.ndarray, image_id: int) -> tuple[MaskTable, MaskTable]:
        """H x W x 3 uint8 -> three candidates, two masks."""
        time.sleep(self.seconds)
        how = int(image[0, 0, 0]) if tuple(image[0, 0, 1:]) == (1, 2) else CALM
        if how == NOT_AFTER_OTHERS and self.images:  # dies of what its neighbours left in the process
            ctypes.string_at(0)
        misbehave(how)
        self.images += 1
        masks = fake_masks(image, 0 if tuple(image[0, 0]) == (EMPTY, 1, 2) else 3)
        return masks, masks.take(np.arange(len(masks))[:2])


def misbehave(how: int) -> None:
    """What the colour asks for."""
    if how == RAISE:
        raise RuntimeError("this image raises")
    if how == SEGFAULT:
        ctypes.string_at(0)
    if how == EXIT:
        os._exit(3)
    if how == HANG:
        time.sleep(3600)
    if how == KILL_ACTOR:  # as if the whole container died
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600)
    if how == SEGFAULT_ONCE:
        memory = Path(os.environ["MASKMILL_FAKE_MEMORY"]) / "once"
        if not memory.exists():
            memory.touch()
            ctypes.string_at(0)


def fake_masks(image: np.ndarray, count: int) -> MaskTable:
    """Rectangles whose places follow from the hash of the pixels."""
    h, w = image.shape[:2]
    digest = hashlib.sha256(image.tobytes()).digest()
    xs, ys = [digest[i] % (w // 2) for i in range(count)], [digest[i + 8] % (h // 2) for i in range(count)]
    boxes = [(x, y, x + w // 2 - 1, y + h // 2 - 1) for x, y in zip(xs, ys, strict=True)]
    return table(boxes, height=h, width=w)


def save(path: Path, seed: int, how: int = CALM, size: tuple[int, int] = (32, 24)) -> None:
    """A small PNG of noise that does `how`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[0, 0] = (how, 1, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
