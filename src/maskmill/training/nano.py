"""Train the built-in model from scratch, on a CPU or a GPU: `maskmill train nano --data 'PHOTOS/*.tar' --out DIR`.

What makes it learn within an hour or two on two cores (SAM's own focal:dice 20:1 from scratch collapses to empty
masks, and so does plain cross-entropy with dice): class-balanced cross-entropy faded to focal loss, beside dice; a
pairwise same-object loss on the encoder's tokens, dropped at export; the first state of `nano_model.initialise`; half
of the time at a smaller image side. As in SAM, only the best of the three masks is trained in earnest, the score
learns each mask's IoU, and further clicks in the error region come with the answer before as mask prompt (appendix A).

The run may be killed at any time: the same command resumes from DIR/checkpoint.pt. DIR/metrics.jsonl has a line per 50
steps, DIR/nano.safetensors the current export (moving average of the weights, float16, official names). The schedule
is one of running time, so two runs are alike, not equal. On a busy machine set OMP_WAIT_POLICY=PASSIVE: threads that
spin at barriers made steps several times slower.
"""

import glob
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from maskmill.errors import UserError
from maskmill.storage.files import at, write_bytes
from maskmill.training.data import deaf
from maskmill.training.fit import kept_lines
from maskmill.training.nano_trainer import NanoConfig, Phase, Trainer
from maskmill.training.photos import Photo, read_tar, resized
from maskmill.training.pool import CHUNK, CROWDS, Packed, View, fill_pool, pack_photos, read_pool, view_stream
from maskmill.training.scenes import SceneConfig


class Views(IterableDataset[View]):
    """Endless random views of a phase's size; each source has its share of them."""

    def __init__(self, sources: list[tuple[float, list[Packed]]], phase: Phase, prompts: int, seed: int) -> None:
        usable = [(share, scenes) for share, scenes in sources if scenes]
        self.shares = np.array([share for share, _ in usable]) / sum(share for share, _ in usable)
        self.scenes = [scenes for _, scenes in usable]
        self.phase, self.prompts, self.seed = phase, prompts, seed

    def draw(self, rng: np.random.Generator) -> Packed:
        scenes = self.scenes[int(rng.choice(len(self.scenes), p=self.shares))]
        return scenes[int(rng.integers(len(scenes)))]

    def __iter__(self) -> Iterator[View]:
        cv2.setNumThreads(1)
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            yield view_stream(rng, self.draw, self.phase.size, self.prompts, self.phase.crops)


def collate(views: list[View]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images I x 3 x S x S, masks I x P x S/4 x S/4, points I x P x 2, boxes I x P x 4."""
    stacked = [np.stack([getattr(v, name) for v in views]) for name in ("image", "masks", "points", "boxes")]
    image, masks, points, boxes = (torch.from_numpy(a) for a in stacked)
    return image, masks, points, boxes


def never() -> bool:
    return False


def train(
    cfg: NanoConfig, out: Path, photos: list[Photo], quiet: bool = False, stopped: Callable[[], bool] = never
) -> bool:
    """Train for `cfg.minutes` of its own running time, resuming what `out` holds, to the end (True) or until `stopped`
    says so between two steps (False)."""
    torch.set_num_threads(cfg.threads)
    out.mkdir(parents=True, exist_ok=True)
    if not quiet:
        print(f"drawing {CHUNK * (cfg.chunks + cfg.crowd_chunks)} scenes into {out}, those that are not there yet")
    fill_pool(out / "pool", cfg.chunks, cfg.scene_size, photos, os.cpu_count() or 1, SceneConfig(), stopped)
    fill_pool(out / "crowds", cfg.crowd_chunks, cfg.scene_size, [], os.cpu_count() or 1, CROWDS, stopped)
    if stopped():
        return False
    human, regions = pack_photos(photos, out / "regions")
    rest = 1 - cfg.photo_share - cfg.region_share - cfg.crowd_share
    sources = [
        (cfg.photo_share, human),
        (cfg.region_share, regions),
        (cfg.crowd_share, read_pool(out / "crowds")),
        (rest, read_pool(out / "pool")),
    ]
    trainer = Trainer(cfg)
    resumed = (out / "checkpoint.pt").exists()

    def batches(phase: Phase) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        seed = cfg.seed + 1 + int(time.time())  # a resumed run must not see the same views again
        views = Views(sources, phase, cfg.prompts, seed)
        loader = DataLoader(
            views,
            batch_size=phase.images,
            collate_fn=collate,
            num_workers=cfg.workers,
            prefetch_factor=4,
            worker_init_fn=deaf,
            pin_memory=trainer.device.type == "cuda",
        )
        return iter(loader)

    first = None
    if not resumed:
        stream = batches(cfg.phases[0])
        first = torch.cat([next(stream)[0] for _ in range(24)])
        del stream
    trainer.prepare(first)
    if resumed:
        trainer.load(out / "checkpoint.pt")
        lines = kept_lines(at(out), trainer.step)
        write_bytes(at(out / "metrics.jsonl"), "".join(f"{line}\n" for line in lines).encode())
    window: list[dict[str, float]] = []
    saved = time.monotonic()
    for phase in cfg.phases:
        end = phase.until * cfg.minutes * 60
        if trainer.elapsed >= end:
            continue
        stream, last = batches(phase), time.monotonic()
        while trainer.elapsed < end and not stopped():
            window.append(trainer.train_step(next(stream)))
            now = time.monotonic()
            trainer.elapsed, last = trainer.elapsed + now - last, now
            if trainer.step % 50 == 0:
                log(out, trainer, phase, window, quiet)
                window = []
            if now - saved > 120:
                trainer.save(out)
                saved = now
        del stream
    trainer.save(out)
    return trainer.elapsed >= cfg.minutes * 60


def log(out: Path, trainer: Trainer, phase: Phase, window: list[dict[str, float]], quiet: bool) -> None:
    """One JSON line: step, seconds, input side, rate, and the means of the window's figures."""
    line: dict[str, float] = {"step": trainer.step, "seconds": round(trainer.elapsed), "size": phase.size}
    line["rate"] = round(trainer.rate(), 6)
    for name in sorted({k for f in window for k in f}):
        line[name] = round(float(np.mean([f[name] for f in window if name in f])), 4)
    path = out / "metrics.jsonl"
    before = path.read_bytes() if path.exists() else b""
    write_bytes(at(path), before + json.dumps(line).encode() + b"\n", synced=False)
    if not quiet:
        left = max(0.0, trainer.cfg.minutes - trainer.elapsed / 60)
        print(f"step {trainer.step}  IoU {line['best']:.3f} best, {line['chosen']:.3f} chosen  {left:.0f} min left")


def read_photos(patterns: Sequence[str]) -> list[Photo]:
    """The photographs of all tars that match, long side 512; none without a pattern: drawn scenes alone."""
    tars: list[str] = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern))
        if not found:
            raise UserError(f"--data {pattern!r} matches no file: expected WebDataset tars of photos and masks")
        tars += found
    return [resized(photo, 512) for tar in tars for photo in read_tar(tar)]
