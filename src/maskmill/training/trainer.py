"""One training step, and all that a checkpoint holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from maskmill.errors import UserError
from maskmill.sam.build import build_sam, load_config, load_model
from maskmill.sam.input_size import detailed, resized
from maskmill.sam.sam import Sam
from maskmill.training.config import TrainConfig
from maskmill.training.data import PROMPTS, Example
from maskmill.training.embeddings import EmbeddingCache
from maskmill.training.iterate import interact
from maskmill.training.losses import Losses
from maskmill.training.nano_model import initialise
from maskmill.training.precision import resolved
from maskmill.training.pretrained import load_encoder
from maskmill.training.regularise import Regulariser
from maskmill.training.schedule import parameter_groups, rate


class Diverged(RuntimeError):
    """The loss or its gradient is no number. The weights are those of the last good step."""


@dataclass(frozen=True)
class Place:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1


ALONE = Place()


class Trainer:
    """Model, optimiser, and the number of updates done."""

    def __init__(self, cfg: TrainConfig, place: Place = ALONE, cache: EmbeddingCache | None = None) -> None:
        self.cfg, self.place, self.cache = cfg, place, cache
        self.device = torch.device(cfg.run.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.precision = resolved(cfg.run.precision, self.device)
        self.model = start_model(cfg).to(self.device)
        self.frozen = cfg.model.train == "decoder"
        self.model.image_encoder.requires_grad_(not self.frozen)
        self.regulariser = Regulariser(
            self.model, 0.0 if self.frozen else cfg.model.drop_path, cfg.model.decoder_dropout
        )
        depth = len(self.model.image_encoder.blocks)
        groups = parameter_groups(self.model, depth, cfg.optim)
        self.optimiser = torch.optim.AdamW(groups, lr=cfg.optim.lr, betas=cfg.optim.betas)
        self.step = 0

    def fresh(self, pixels: Sequence[Tensor]) -> None:
        """Random weights (`model.fresh`); the patch embedding is fitted to some uint8 3 x h x w images, or comes with
        a pre-trained encoder. UserError."""
        batch = torch.cat([self.input(p) for p in pixels])
        torch.manual_seed(self.cfg.seed)
        initialise(self.model, batch, torch.Generator().manual_seed(self.cfg.seed))
        if self.cfg.model.encoder is not None:
            load_encoder(self.model.image_encoder, self.cfg.model.encoder)

    def input(self, pixels: Tensor) -> Tensor:
        """uint8 3 x h x w -> the encoder's square input, 1 x 3 x S x S."""
        return self.model.preprocess(pixels.to(self.device)[None].float())

    def train_step(self, examples: list[Example]) -> dict[str, float]:
        """One update by this process's share of a step's images; the step's figures. Diverged, with nothing changed."""
        torch.manual_seed(mixed(self.cfg.seed, self.step, self.place.rank))
        self.model.train()
        self.model.image_encoder.train(not self.frozen)
        self.optimiser.zero_grad(set_to_none=True)
        tally = Tally()
        size = self.cfg.run.images_per_pass
        for start in range(0, len(examples), size):
            self.backward([e for e in examples[start : start + size] if len(e.masks)], tally)
        counts = {"images": float(tally.images), "masks": float(tally.prompts)}
        if self.place.world > 1:
            counts = dict(zip(counts, self.add_up(list(counts.values())), strict=True))
        if not counts["images"]:  # no image has a mask: nothing to learn
            self.step += 1
            return tally.figures() | counts | {"lr": 0.0, "norm": 0.0}
        norm = self.finish_gradients()
        lr = rate(self.step, self.cfg.optim)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["scale"]
        self.optimiser.step()
        self.step += 1
        return tally.figures() | counts | {"lr": lr, "norm": norm}

    def backward(self, examples: list[Example], tally: "Tally") -> None:
        """Add the gradient of a few images: the decoder's after each iteration, the encoder's at the end."""
        if not examples:
            return
        whole = self.encode(examples)
        leaf = whole.detach().requires_grad_(not self.frozen)
        for i, example in enumerate(examples):
            rng = np.random.default_rng([self.cfg.seed, PROMPTS, example.number])
            masks = example.masks.to(self.device)
            cfg = self.cfg.prompts
            share = 1 / ((1 + cfg.clicks + 2 * cfg.empty) * self.cfg.optim.images)
            with self.autocast():
                for losses in interact(self.model, leaf[i : i + 1], masks, cfg, self.cfg.loss, rng):
                    (losses.total * share).backward()  # type: ignore[no-untyped-call]
                    tally.add(losses)
            tally.end(example, self.step)
        if not self.frozen:
            whole.backward(leaf.grad)  # type: ignore[no-untyped-call]

    def encode(self, examples: list[Example]) -> Tensor:
        """Embeddings I x C x h x w. A frozen encoder takes images one by one: as many in a batch change the bits."""
        if not self.frozen:
            self.regulariser.begin(len(examples))
            with self.autocast():
                return self.model.image_encoder(torch.cat([self.input(e.pixels) for e in examples])).float()
        return torch.cat([self.frozen_embedding(e.pixels) for e in examples])

    @torch.no_grad()
    def frozen_embedding(self, pixels: Tensor) -> Tensor:
        """1 x C x h x w, kept where there is a cache."""

        def make() -> Tensor:
            with self.autocast():
                return self.model.image_encoder(self.input(pixels)).float()

        return make() if self.cache is None else self.cache.get(pixels, make).to(self.device)

    def autocast(self) -> torch.autocast:
        """Mixed precision. Its cache of cast weights would join the graphs of iterations that are freed one by one."""
        half = self.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=False)

    def add_up(self, counts: list[float]) -> list[float]:
        """Sum the gradients of all processes, and some counts with them.

        A parameter without a gradient in any process keeps none: AdamW would shrink it by its weight decay.
        """
        learning = [p for p in self.model.parameters() if p.requires_grad]
        own = torch.tensor([*counts, *(float(p.grad is not None) for p in learning)], device=self.device)
        flat = torch.cat([own, *((torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learning)])
        dist.all_reduce(flat)
        at = len(own)
        for p, having in zip(learning, flat[len(counts) : at].tolist(), strict=True):
            p.grad = flat[at : at + p.numel()].view_as(p) if having else None
            at += p.numel()
        total: list[float] = flat[: len(counts)].tolist()
        return total

    def finish_gradients(self) -> float:
        """Clip, and return the norm. Diverged."""
        learning = [p for p in self.model.parameters() if p.requires_grad]
        norm = float(nn.utils.clip_grad_norm_(learning, self.cfg.optim.clip or float("inf")))
        if not np.isfinite(norm):
            self.optimiser.zero_grad(set_to_none=True)
            raise Diverged(f"the gradient is {norm} at step {self.step + 1}: lower optim.lr, or set optim.clip")
        return norm

    def check_together(self, out: str) -> None:
        """UserError unless all processes are at the same step: each has read the checkpoint from where it runs."""
        if self.place.world == 1:
            return
        steps = torch.zeros(self.place.world, device=self.device)
        steps[self.place.rank] = self.step
        dist.all_reduce(steps)
        if len(set(steps.tolist())) > 1:
            raise UserError(
                f"--out {out}: some processes find another checkpoint there than others: give a place that all "
                f"machines share"
            )

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on: chance is drawn anew for each step, from its number."""
        return {"step": self.step, "model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = int(state["step"])


class Tally:
    """Sums of a step, for the log."""

    def __init__(self) -> None:
        self.images = self.prompts = 0
        self.sums: dict[str, float] = {}
        self.rounds: list[Losses] = []

    def add(self, losses: Losses) -> None:
        self.rounds.append(losses)

    def end(self, example: Example, step: int) -> None:
        """The iterations of one image are done."""
        total = sum(float(r.total.detach()) for r in self.rounds) / len(self.rounds)
        if not np.isfinite(total):
            raise Diverged(
                f"the loss is {total} at step {step + 1}, image {example.name}: lower optim.lr, or set optim.clip"
            )
        first, last = self.rounds[0], self.rounds[-1]
        values = {
            "loss": total,
            "focal": sum(float(r.focal) for r in self.rounds) / len(self.rounds),
            "dice": sum(float(r.dice) for r in self.rounds) / len(self.rounds),
            "score": sum(float(r.score) for r in self.rounds) / len(self.rounds),
            "iou_first": float(first.chosen),
            "iou_best": float(first.iou.amax(1).mean()),
            "iou_last": float(last.iou.amax(1).mean()),
        }
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.images += 1
        self.prompts += len(first.iou)
        self.rounds = []

    def figures(self) -> dict[str, float]:
        """Means over images. iou_first, iou_best: of the most confident and of the best mask for the first prompt,
        iou_last: after the last."""
        return {name: value / max(1, self.images) for name, value in self.sums.items()}


def start_model(cfg: TrainConfig) -> Sam:
    """The weights that training begins with."""
    if cfg.model.fresh:
        torch.manual_seed(cfg.seed)
        model = build_sam(load_config(cfg.model.name))
    else:
        model = load_model(cfg.model.name, cfg.model.checkpoint, device="cpu")
    if cfg.model.detail:
        torch.manual_seed(cfg.seed)
        model = detailed(model)
    return model if cfg.model.img_size is None else resized(model, cfg.model.img_size)


def mixed(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
