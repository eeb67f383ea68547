"""One training step of `nano`, and everything that a checkpoint holds."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from maskmill.config import at_least, from_tree, to_tree
from maskmill.errors import UserError
from maskmill.sam.build import build_sam, load_config
from maskmill.sam.sam import Sam
from maskmill.storage.files import at, write_bytes
from maskmill.training import nano_loss
from maskmill.training.fit import refuse_changes
from maskmill.training.nano_model import decode, embed_prompts, initialise, scale_logits
from maskmill.training.precision import fast_bfloat16
from maskmill.training.trainer import Diverged


@dataclass(frozen=True)
class Phase:
    """Until this share of the time: inputs of `size` pixels, `images` a step, `crops` of them parts of pictures.

    Parts show things larger than whole pictures do, so a model that has seen many expects them large in use too
    (Touvron et al., Fixing the train-test resolution discrepancy, 2019): the last phase has fewer.
    """

    until: float
    size: int
    images: int
    crops: float = 0.65

    def __post_init__(self) -> None:
        if not 0 <= self.crops <= 1:
            raise UserError(f"phases.crops is {self.crops:g}: it must lie in [0, 1]")


@dataclass(frozen=True)
class NanoConfig:
    """The recipe. `photo_share` and `region_share` are the shares of views from photographs, with human masks and with
    regions of the image alone, `crowd_share` of crowds of small things; the rest is drawn scenes of every kind."""

    minutes: float = 90.0
    phases: tuple[Phase, ...] = (Phase(0.2, 256, 8), Phase(0.8, 384, 6), Phase(1.0, 448, 6, 0.3))
    prompts: int = 12
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 150
    decay_from: float = 0.6  # share of the time after which the rate falls linearly to zero
    fade: int = 1000  # steps from balanced cross-entropy to focal loss
    more: float = 0.35  # share of steps with further clicks
    clicks: int = 4  # of which there are up to so many
    average: float = 0.998
    photo_share: float = 0.36
    region_share: float = 0.30
    crowd_share: float = 0.14
    chunks: int = 80
    crowd_chunks: int = 20
    scene_size: int = 384
    logit_scale: float = 4.0  # at export
    seed: int = 0
    muon: bool = True
    device: str | None = None  # a GPU, if there is one
    threads: int = 2
    workers: int = 1  # processes that make views: a GPU wants all cores that there are

    def __post_init__(self) -> None:
        at_least("nano", self, {"workers": 1, "threads": 1})


class Trainer:
    """Model, auxiliary head, optimisers, moving average, counters: what a checkpoint holds."""

    def __init__(self, cfg: NanoConfig) -> None:
        if cfg.muon and not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"muon=true needs PyTorch 2.9 or newer, this is {torch.__version__}: update it, or --set muon=false"
            )
        torch.manual_seed(cfg.seed)
        self.cfg = cfg
        self.device = torch.device(cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"))
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
        self.model.to(self.device)
        self.similarity.to(self.device)
        self.similarity_bias.data = self.similarity_bias.data.to(self.device)
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
        """One update; the step's figures. Diverged, with the weights of the step before."""
        image, target, points, boxes = (x.to(self.device, non_blocking=True) for x in batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            loss, figures = self.loss(image, target, points, boxes)
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
        if not math.isfinite(norm):
            raise Diverged(f"the gradient is {norm} at step {self.step + 1}: lower lr")
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

    def loss(self, image: Tensor, target: Tensor, points: Tensor, boxes: Tensor) -> tuple[Tensor, dict[str, float]]:
        """First prompt (click or box), the best of three masks; then, in a share of steps, more clicks."""
        side, (n, p) = image.shape[-1], target.shape[:2]
        balanced = max(0.1, 1 - 0.9 * self.step / self.cfg.fade)
        embedding = self.model.image_encoder(image)
        same = nano_loss.same_object(self.similarity(embedding).float(), self.similarity_bias, target, self.generator)
        boxed = torch.rand(n, p, generator=self.generator).to(self.device) < 0.15
        noise = 1 + 0.05 * torch.randn(boxes.shape, generator=self.generator).to(self.device)
        middle = (boxes[..., :2] + boxes[..., 2:]).repeat(1, 1, 2) / 2
        corners = (middle + (boxes - middle) * noise).clamp(0, side).view(n, p, 2, 2)
        clicks = torch.stack([points, torch.zeros_like(points)], 2)
        coords = torch.where(boxed[..., None, None], corners, clicks)
        kinds = torch.tensor([[2, 3], [1, -1]], device=self.device)
        codes = torch.where(boxed[..., None], kinds[0], kinds[1])
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
        if torch.rand(1, generator=self.generator).item() < self.cfg.more:
            again, last = self.more_clicks(embedding, coords, codes, logits, score, target, side, balanced)
            loss = loss + 0.5 * again
            figures["last"] = last
        figures["loss"] = loss.item()
        return loss, figures

    def more_clicks(
        self, embedding: Tensor, coords: Tensor, codes: Tensor, logits: Tensor, score: Tensor, target: Tensor,
        side: int, balanced: float,
    ) -> tuple[Tensor, float]:  # fmt: skip
        """Clicks in the error of the answer before, which comes along as mask prompt; one mask is asked for.

        Each answer is a step of its own: no gradient goes through the one before. Returns the mean loss and the IoU
        after the last click.
        """
        n, p, _, h, w = logits.shape
        pick = 1 + score[..., 1:].argmax(-1)
        answer = logits.gather(2, pick[..., None, None, None].expand(-1, -1, 1, h, w))
        with_mask = torch.rand(1, generator=self.generator).item() < 0.8
        losses: list[Tensor] = []
        iou = torch.zeros(())
        for _ in range(int(torch.randint(1, self.cfg.clicks + 1, (1,), generator=self.generator))):
            previous = answer.detach()
            xy, label = nano_loss.error_click(previous[:, :, 0] > 0, target > 0.5, self.generator)
            coords = torch.cat([coords, xy[:, :, None]], 2)  # prompt tokens are a set: their order means nothing
            codes = torch.cat([codes, label[..., None]], 2)
            sparse = embed_prompts(self.model, coords.flatten(0, 1), codes.flatten(0, 1), side).view(
                n, p, coords.shape[2], -1
            )
            four, scores = decode(self.model, embedding, sparse, previous.flatten(0, 1) if with_mask else None)
            answer = four[:, :, :1]
            each, iou = nano_loss.mask_loss(answer, target, balanced)
            losses.append(each.mean() + ((scores[..., :1] - iou) ** 2).mean())
        return torch.stack(losses).mean(), iou.mean().item()

    def save(self, out: Path) -> None:
        """Checkpoint and export, each by rename: a kill leaves the old or the new file, never half of one."""
        state = {
            "config": recipe(self.cfg),
            "model": self.model.state_dict(),
            "similarity": self.similarity.state_dict(),
            "similarity_bias": self.similarity_bias.data,
            "average": self.average,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "generator": self.generator.get_state(),
            "step": self.step,
            "elapsed": self.elapsed,
        }
        whole = io.BytesIO()
        torch.save(state, whole)
        write_bytes(at(out / "checkpoint.pt"), whole.getvalue())
        sharp = scale_logits(self.average, self.cfg.logit_scale)
        half = {k: v.half().cpu().contiguous() for k, v in sharp.items()}
        write_bytes(at(out / "nano.safetensors"), save_safetensors(half))

    def load(self, path: Path) -> None:
        """The inverse of `save`. UserError if it was begun with another recipe."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        if "config" in state:  # earlier versions did not write it down
            refuse_changes(at(path.parent), recipe(from_tree(NanoConfig, state["config"])), recipe(self.cfg))
        self.model.load_state_dict(state["model"])
        self.similarity.load_state_dict(state["similarity"])
        self.similarity_bias.data = state["similarity_bias"]
        self.average = state["average"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        self.step, self.elapsed = state["step"], state["elapsed"]


def recipe(cfg: NanoConfig) -> dict[str, Any]:
    """What may not change within a run. More `minutes` make it longer."""
    tree = to_tree(cfg)
    for name in ("minutes", "device", "threads", "workers"):
        del tree[name]
    return tree
