"""Train the built-in model from scratch on a CPU: `python -m maskmill.training.nano --out DIR [--photos GLOB]`.

What it took to learn at all within two core-hours (each was needed in trials; SAM's own focal:dice 20:1 from scratch
collapses to empty masks): class-balanced cross-entropy faded to focal loss, beside dice; a pairwise same-object loss on
the encoder's tokens, dropped at export; the initial state of `nano_model.initialise`; most steps at half the image
side, the last at the full one. As in SAM, the best of the three masks is trained, the score learns each mask's IoU,
and a second click in the error region goes in with the first answer as mask prompt (appendix A).

The run may be killed at any time: the same command resumes from DIR/checkpoint.pt. DIR/log.jsonl has a line per 50
steps, DIR/nano.safetensors the current export (moving average of the weights, float16, official names).
"""

import argparse
import glob
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from maskmill.errors import UserError
from maskmill.sam.build import build_sam, load_config
from maskmill.sam.sam import Sam
from maskmill.training import nano_loss
from maskmill.training.nano_model import decode, embed_prompts, encode, initialise
from maskmill.training.photos import Photo, read_tar, resized
from maskmill.training.pool import Packed, View, fill_pool, pack_photos, read_pool, view_stream


@dataclass(frozen=True)
class Phase:
    """Until this share of the time: inputs of `size` pixels, `images` a step."""

    until: float
    size: int
    images: int


@dataclass(frozen=True)
class TrainConfig:
    """The recipe. `photo_share` and `region_share` are the shares of views from photographs, with human masks and with
    regions of the image alone; the rest is drawn scenes."""

    minutes: float = 90.0
    phases: tuple[Phase, ...] = (Phase(0.6, 256, 8), Phase(1.0, 384, 8))
    prompts: int = 12
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 150
    decay_from: float = 0.6  # share of the time after which the rate falls linearly to zero
    fade: int = 1000  # steps from balanced cross-entropy to focal loss
    second: float = 0.35  # share of steps with a second click
    average: float = 0.998
    photo_share: float = 0.4
    region_share: float = 0.1
    chunks: int = 80
    scene_size: int = 384
    seed: int = 0
    muon: bool = True


class Views(IterableDataset[View]):
    """Endless random views of size x size, from photographs and drawn scenes by share."""

    def __init__(
        self, cfg: TrainConfig, scenes: list[Packed], human: list[Packed], regions: list[Packed], size: int, seed: int
    ) -> None:
        self.cfg, self.scenes, self.human, self.regions = cfg, scenes, human, regions
        self.size, self.seed = size, seed

    def draw(self, rng: np.random.Generator) -> Packed:
        u, source = rng.random(), self.scenes
        if u < self.cfg.photo_share and self.human:
            source = self.human
        elif u < self.cfg.photo_share + self.cfg.region_share and self.regions:
            source = self.regions
        return source[int(rng.integers(len(source)))]

    def __iter__(self) -> Iterator[View]:
        cv2.setNumThreads(1)
        rng = np.random.default_rng(self.seed)
        while True:
            yield view_stream(rng, self.draw, self.size, self.cfg.prompts)


def collate(views: list[View]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images I x 3 x S x S, masks I x P x S/4 x S/4, points I x P x 2, boxes I x P x 4."""
    stacked = [np.stack([getattr(v, name) for v in views]) for name in ("image", "masks", "points", "boxes")]
    image, masks, points, boxes = (torch.from_numpy(a) for a in stacked)
    return image, masks, points, boxes


class Trainer:
    """Model, auxiliary head, optimisers, moving average, counters: what a checkpoint holds."""

    def __init__(self, cfg: TrainConfig) -> None:
        torch.manual_seed(cfg.seed)
        self.cfg = cfg
        self.model: Sam = build_sam(load_config("nano"))
        width = self.model.prompt_encoder.embed_dim
        self.similarity = nn.Conv2d(width, 32, 1)
        self.similarity_bias = nn.Parameter(torch.zeros(1))
        self.step, self.elapsed = 0, 0.0
        self.generator = torch.Generator().manual_seed(cfg.seed)

    def prepare(self, first: Tensor | None) -> None:
        """Initial weights from the first images (None: they will be loaded), then optimisers and average."""
        if first is not None:
            initialise(self.model, first, self.generator)
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, p in self.model.named_parameters():
            hidden = p.ndim == 2 and ("blocks" in name or "transformer" in name) and "rel_pos" not in name
            (matrices if hidden and self.cfg.muon else rest).append(p)
        rest += [*self.similarity.parameters(), self.similarity_bias]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=self.cfg.lr, betas=(0.9, 0.98), weight_decay=self.cfg.weight_decay)
        ]
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr=self.cfg.lr, weight_decay=self.cfg.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self.optimisers.append(muon)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def rate(self) -> float:
        """The learning rate now: warm-up, constant, linear to zero."""
        share = self.elapsed / (60 * self.cfg.minutes)
        falling = max(0.01, (1 - share) / (1 - self.cfg.decay_from)) if share > self.cfg.decay_from else 1.0
        return self.cfg.lr * min(1.0, (self.step + 1) / self.cfg.warmup) * falling

    def train_step(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> dict[str, float]:
        """One update; the step's figures."""
        with torch.autocast("cpu", torch.bfloat16):
            loss, figures = self.loss(batch)
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.rate()
            optimiser.step()
        self.step += 1
        keep = min(self.cfg.average, 1 - 1 / (1 + self.step / 10))
        with torch.no_grad():
            state = self.model.state_dict()
            torch._foreach_lerp_(list(self.average.values()), [state[k] for k in self.average], 1 - keep)
        return figures

    def loss(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """First prompt (click or box), the best of three masks; then, in a share of steps, a second click."""
        image, target, points, boxes = batch
        side, (n, p) = image.shape[-1], target.shape[:2]
        balanced = max(0.1, 1 - 0.9 * self.step / self.cfg.fade)
        embedding = encode(self.model, image)
        same = nano_loss.same_object(self.similarity(embedding).float(), self.similarity_bias, target, self.generator)
        boxed = torch.rand(n, p, generator=self.generator) < 0.15
        noise = 1 + 0.05 * torch.randn(boxes.shape, generator=self.generator)
        middle = (boxes[..., :2] + boxes[..., 2:]).repeat(1, 1, 2) / 2
        corners = (middle + (boxes - middle) * noise).clamp(0, side).view(n, p, 2, 2)
        clicks = torch.stack([points, torch.zeros_like(points)], 2)
        coords = torch.where(boxed[..., None, None], corners, clicks)
        codes = torch.where(boxed[..., None], torch.tensor([2, 3]), torch.tensor([1, -1]))
        sparse = embed_prompts(self.model, coords.flatten(0, 1), codes.flatten(0, 1), side).view(n, p, 2, -1)
        logits, score = decode(self.model, embedding, sparse, None)
        each, iou = nano_loss.mask_loss(logits, target, balanced)
        # a box is unambiguous: there the single-answer mask learns too
        single = (each[..., 0] * boxed).sum() / boxed.sum().clamp(min=1)
        three, best = each[..., 1:], each[..., 1:].min(-1).values
        error = (score - iou) ** 2
        loss = best.mean() + 0.05 * three.mean() + 0.2 * single + error[..., 1:].mean() + same
        chosen = iou[..., 1:].gather(-1, score[..., 1:].argmax(-1, keepdim=True)).mean()
        figures = {"same": same.item(), "best": iou[..., 1:].amax(-1).mean().item(), "chosen": chosen.item()}
        if torch.rand(1, generator=self.generator).item() < self.cfg.second:
            again, iou2 = self.second_click(embedding, coords, codes, logits, score, target, side, balanced)
            loss = loss + 0.5 * again
            figures["second"] = iou2
        figures["loss"] = loss.item()
        return loss, figures

    def second_click(
        self, embedding: Tensor, coords: Tensor, codes: Tensor, logits: Tensor, score: Tensor, target: Tensor,
        side: int, balanced: float,
    ) -> tuple[Tensor, float]:  # fmt: skip
        """A click in the error of the most confident answer, with that answer as mask prompt; one mask is asked for."""
        n, p, _, h, w = logits.shape
        with torch.no_grad():
            pick = 1 + score[..., 1:].argmax(-1)
            previous = logits.gather(2, pick[..., None, None, None].expand(-1, -1, 1, h, w))
            xy, label = nano_loss.error_click(previous[:, :, 0] > 0, target > 0.5, self.generator)
            # points come first, boxes last; a click prompt ends with the padding point
            second = torch.stack([coords[:, :, 0], xy, coords[:, :, 1]], 2)
            kinds = torch.stack([codes[..., 0], label, codes[..., 1]], 2)
            boxed = codes[..., 0] == 2
            second = torch.where(boxed[..., None, None], second[:, :, [1, 0, 2]], second)
            kinds = torch.where(boxed[..., None], kinds[..., [1, 0, 2]], kinds)
        sparse = embed_prompts(self.model, second.flatten(0, 1), kinds.flatten(0, 1), side).view(n, p, 3, -1)
        with_mask = torch.rand(1, generator=self.generator).item() < 0.8
        answer, score2 = decode(self.model, embedding, sparse, previous.flatten(0, 1) if with_mask else None)
        each, iou = nano_loss.mask_loss(answer[:, :, :1], target, balanced)
        return each.mean() + ((score2[..., :1] - iou) ** 2).mean(), iou.mean().item()

    def save(self, out: Path) -> None:
        """Checkpoint and export, each by rename: a kill leaves the old or the new file, never half of one."""
        state = {
            "model": self.model.state_dict(),
            "similarity": self.similarity.state_dict(),
            "similarity_bias": self.similarity_bias.data,
            "average": self.average,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "generator": self.generator.get_state(),
            "step": self.step,
            "elapsed": self.elapsed,
        }
        torch.save(state, out / "checkpoint.partial")
        os.replace(out / "checkpoint.partial", out / "checkpoint.pt")
        half = {k: v.half().contiguous() for k, v in self.average.items()}
        save_file(half, out / "nano.partial")
        (out / "nano.partial").chmod(0o644)
        os.replace(out / "nano.partial", out / "nano.safetensors")

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.similarity.load_state_dict(state["similarity"])
        self.similarity_bias.data = state["similarity_bias"]
        self.average = state["average"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"])
        self.step, self.elapsed = state["step"], state["elapsed"]


def train(cfg: TrainConfig, out: Path, photos: list[Photo]) -> None:
    """Train for `cfg.minutes` of its own running time, resuming what `out` holds."""
    out.mkdir(parents=True, exist_ok=True)
    fill_pool(out / "pool", cfg.chunks, cfg.scene_size, photos, os.cpu_count() or 1)
    scenes = read_pool(out / "pool")
    human, regions = pack_photos(photos, out / "regions")
    trainer = Trainer(cfg)
    resumed = (out / "checkpoint.pt").exists()

    def batches(phase: Phase) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        seed = cfg.seed + 1 + int(time.time())  # a resumed run must not see the same views again
        views = Views(cfg, scenes, human, regions, phase.size, seed)
        return iter(DataLoader(views, batch_size=phase.images, collate_fn=collate, num_workers=1, prefetch_factor=4))

    first = None
    if not resumed:
        stream = batches(cfg.phases[0])
        first = torch.cat([next(stream)[0] for _ in range(24)])
        del stream
    trainer.prepare(first)
    if resumed:
        trainer.load(out / "checkpoint.pt")
    window: list[dict[str, float]] = []
    saved = time.monotonic()
    for phase in cfg.phases:
        end = phase.until * cfg.minutes * 60
        if trainer.elapsed >= end:
            continue
        stream, last = batches(phase), time.monotonic()
        while trainer.elapsed < end:
            window.append(trainer.train_step(next(stream)))
            now = time.monotonic()
            trainer.elapsed, last = trainer.elapsed + now - last, now
            if trainer.step % 50 == 0:
                log(out, trainer, phase, window)
                window = []
            if now - saved > 120:
                trainer.save(out)
                saved = now
        del stream
    trainer.save(out)


def log(out: Path, trainer: Trainer, phase: Phase, window: list[dict[str, float]]) -> None:
    """One JSON line: step, seconds, input side, rate, and the means of the window's figures."""
    line: dict[str, float] = {"step": trainer.step, "seconds": round(trainer.elapsed), "size": phase.size}
    line["rate"] = round(trainer.rate(), 6)
    for name in sorted({k for f in window for k in f}):
        line[name] = round(float(np.mean([f[name] for f in window if name in f])), 4)
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m maskmill.training.nano", description="Train the built-in model.")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, log, export; resumed if there")
    parser.add_argument("--photos", default="", help="glob of WebDataset tars with masks (default: drawn scenes alone)")
    parser.add_argument("--minutes", type=float, default=TrainConfig.minutes)
    parser.add_argument("--chunks", type=int, default=TrainConfig.chunks, help="files of 40 scenes in the pool")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=TrainConfig.lr)
    parser.add_argument("--adamw", action="store_true", help="AdamW for every parameter, no Muon")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tars = sorted(glob.glob(args.photos))
    if args.photos and not tars:
        raise UserError(f"--photos {args.photos!r} matches no file: expected WebDataset tars of photos and masks")
    photos = [resized(photo, 512) for tar in tars for photo in read_tar(tar)]
    cfg = TrainConfig(minutes=args.minutes, chunks=args.chunks, lr=args.lr, muon=not args.adamw)
    train(cfg, args.out, photos)


if __name__ == "__main__":
    main()
