"""Training samples by number. Sample n is the same whoever makes it and whenever: a run resumes by counting on."""

import hashlib
import signal
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskmill.errors import UserError
from maskmill.masks.rle import area, decode
from maskmill.sam.resize import fitted, resize
from maskmill.storage.annotated import Annotated, AnnotatedSet, BuildSet, open_annotated
from maskmill.storage.originals import Kept
from maskmill.training.augment import colour_jitter, resized, resized_mask, symmetry, tile, window
from maskmill.training.config import DataConfig, TrainConfig
from maskmill.training.losses import target_grid

ORDER, SAMPLE, PROMPTS = 0, 1, 2  # streams of chance


@dataclass(frozen=True)
class Example:
    """One image as the model takes it: pixels uint8 3 x h x w, masks bool N x h x w (N may be 0)."""

    number: int
    name: str
    pixels: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Broken:
    """A sample that cannot be had: an error that a worker process hands on."""

    words: str


class Samples(Dataset[Example | Broken]):
    """Endless: epoch after epoch, each in an order of its own. side: of the model's input, in pixels.

    It can be pickled: where processes are not forked, those that read samples get a copy.
    """

    def __init__(self, cfg: TrainConfig, side: int) -> None:
        if not cfg.data.sources:
            raise UserError("no training data: give --data PATH, or data.sources in the config")
        self.cfg, self.side = cfg, side
        self.sets: list[AnnotatedSet] = []
        self.entries: list[tuple[int, int]] = []  # set, image
        for n, source in enumerate(cfg.data.sources):
            self.sets.append(open_annotated(source.path, source.images, source.filter))
            count = min(len(self.sets[-1].names), source.limit or len(self.sets[-1].names))
            self.entries += [(n, i) for i in range(count)] * source.repeat
        self.orders: Kept[np.ndarray] = Kept(2)

    @property
    def fingerprint(self) -> str:
        """What is trained on, by name; places may change."""
        names = "\n".join(f"{n}/{self.sets[n].names[i]}" for n, i in self.entries)
        return f"{len(self.entries)} images, {hashlib.sha256(names.encode()).hexdigest()[:16]}"

    @property
    def masks_fingerprint(self) -> str | None:
        """Which masks of builds: a build can be filtered anew under the same names. None where nothing is a build."""
        files = [f for s in self.sets if isinstance(s, BuildSet) for f in s.mask_files]
        return hashlib.sha256("\n".join(files).encode()).hexdigest()[:16] if files else None

    def order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.cfg.seed, ORDER, epoch]).permutation(len(self.entries))

    def __getitem__(self, number: int) -> Example | Broken:
        epoch, place = divmod(number, len(self.entries))
        which, i = self.entries[int(self.orders.get(epoch, lambda: self.order(epoch))[place])]
        try:
            annotated = self.sets[which].read(i)
        except UserError as e:
            return Broken(str(e))
        rng = np.random.default_rng([self.cfg.seed, SAMPLE, number])
        return self.example(number, annotated, rng)

    def example(self, number: int, found: Annotated, rng: np.random.Generator) -> Example:
        """At the model's size, with up to `masks_per_image` of the masks."""
        data, image = self.cfg.data, found.image
        height, width = image.shape[:2]
        corner = (0, 0)
        if data.jitter is not None:
            size, corner = window(height, width, self.side, float(rng.uniform(*data.jitter)), rng)
            pixels = resized(image, size, corner, self.side)
        else:
            size = fitted(height, width, self.side)
            pixels = resize(image, *size)
        masks = self.pick(usable(found, data), (height, width), size, corner, rng)
        if data.tile and max(size) < self.side / 2:
            pixels, masks = tile(pixels, masks, self.side, rng)
        pixels, masks = symmetry(pixels, masks, data.symmetry, rng)
        if data.colour_jitter:
            pixels = np.rint(colour_jitter(pixels.astype(np.float32), rng)).astype(np.uint8)
        masks = masks[self.has_cell(masks)]  # turned, a mask lies otherwise on the grid
        return Example(
            number,
            found.name,
            torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            torch.from_numpy(masks),
        )

    def pick(
        self,
        counts: list[str],
        shape: tuple[int, int],
        size: tuple[int, int],
        corner: tuple[int, int],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Random masks, N x h x w. One that is too small for the loss's grid at this size is passed over."""
        kept: list[np.ndarray] = []
        for i in rng.permutation(len(counts)):
            if len(kept) == self.cfg.data.masks_per_image:
                break
            mask = resized_mask(decode(counts[i], *shape), size, corner, self.side)
            if self.has_cell(mask[None])[0]:
                kept.append(mask)
        inside = [min(n - c, self.side) for n, c in zip(size, corner, strict=True)]
        return np.stack(kept) if kept else np.zeros((0, *inside), bool)

    def has_cell(self, masks: np.ndarray) -> np.ndarray:
        """Which of N x h x w masks have a cell of the loss's grid, so that there is something to learn."""
        grid = target_grid(torch.from_numpy(np.ascontiguousarray(masks)), self.cfg.loss.stride)
        return np.asarray((grid > 0.5).flatten(1).any(1))


def deaf(worker: int) -> None:
    """A process that reads samples: a signal sent to the whole group is for the trainer, which ends its workers."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def usable(found: Annotated, data: DataConfig) -> list[str]:
    """The masks that are no crowd, not empty, and cover at most `max_area_share` of the image (appendix A: 90%)."""
    height, width = found.image.shape[:2]
    most = data.max_area_share * height * width
    return [c for c in found.counts if 0 < area(c, height, width) <= most]
