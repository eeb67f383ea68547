"""The simulated interaction (paper, appendix A): 11 iterations of prompt, answer and loss for the masks of one image.

The first prompt is a point or a noised box. Eight more clicks come from the error region of the answer before, whose
logits go in as mask prompt; one iteration at random and the last one bring no new click, so the model learns to mend
its own masks. Iterations share nothing but the image embedding: each can be back-propagated before the next begins, and
memory holds one at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskmill.prompts.clicks import deepest, noised_box
from maskmill.sam.sam import Sam
from maskmill.training.config import LossConfig, PromptsConfig
from maskmill.training.losses import Losses, on_grid, prompt_losses, target_grid


def plan_iterations(cfg: PromptsConfig, rng: np.random.Generator) -> list[bool]:
    """For each iteration after the first, whether it brings a new click."""
    if not cfg.empty:
        return [True] * cfg.clicks
    at = int(rng.integers(0, cfg.clicks)) if cfg.clicks else 0
    return [*[True] * at, False, *[True] * (cfg.clicks - at), False]


def uniform_cells(region: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """A uniform cell of each bool N x h x w region, chosen by `u` in [0, 1) (N): its column and row.

    A region may not be empty.
    """
    running = region.flatten(1).cumsum(1)
    wanted = (u.to(running.device, torch.float64) * running[:, -1]).long() + 1
    cell = torch.searchsorted(running, wanted[:, None])[:, 0]
    width = region.shape[-1]
    return cell % width, cell // width


@dataclass
class Prompts:
    """Prompts of N objects in pixels of the input: the first P begin with a point, the rest with a box."""

    points: Tensor  # P x k x 2
    labels: Tensor  # P x k
    boxes: Tensor  # (N - P) x 4
    more: Tensor  # (N - P) x (k - 1) x 2, clicks that followed the box
    more_labels: Tensor

    def add(self, xy: Tensor, label: Tensor) -> None:
        """One more click for every object: N x 2 and N."""
        n = len(self.points)
        self.points = torch.cat([self.points, xy[:n, None]], 1)
        self.labels = torch.cat([self.labels, label[:n, None]], 1)
        self.more = torch.cat([self.more, xy[n:, None]], 1)
        self.more_labels = torch.cat([self.more_labels, label[n:, None]], 1)

    def embed(self, model: Sam, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sparse N x (k + 1) x C and dense N x C x h x w. Points bring a padding token, boxes two corners: as many."""
        n = len(self.points)
        parts = []
        if n:
            masks = None if previous is None else previous[:n]
            parts.append(model.prompt_encoder((self.points, self.labels), None, masks))
        if len(self.boxes):
            masks = None if previous is None else previous[n:]
            clicks = (self.more, self.more_labels) if self.more.shape[1] else None
            parts.append(model.prompt_encoder(clicks, self.boxes, masks))
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def first_prompts(masks: Tensor, cfg: PromptsConfig, rng: np.random.Generator) -> tuple[Prompts, Tensor]:
    """Points or boxes for bool N x h x w masks, and the order that the objects are in now: points first."""
    boxed = rng.random(len(masks)) < cfg.box_share
    order = np.argsort(boxed, kind="stable")
    n = int((~boxed).sum())
    masks = masks[torch.as_tensor(order, device=masks.device)]
    x, y = uniform_cells(masks, torch.as_tensor(rng.random(len(masks))))
    points = torch.stack([x, y], 1).float()[:, None]
    height, width = masks.shape[-2:]
    drawn = noised_box(boxes_of(masks).cpu().double().numpy(), (height, width), rng, cfg.box_noise, cfg.box_noise_most)
    boxes = torch.as_tensor(drawn, dtype=torch.float32, device=masks.device)
    for i in np.flatnonzero(rng.random(n) < cfg.middle_share) if cfg.middle_share else ():
        points[i, 0] = points.new_tensor(deepest(masks[i].cpu().numpy())[0])
    label = torch.ones(n, 1, dtype=torch.int, device=masks.device)
    rest = len(masks) - n
    prompts = Prompts(points[:n], label, boxes[n:], points.new_zeros(rest, 0, 2), label.new_zeros(rest, 0))
    return prompts, torch.as_tensor(order, device=masks.device)


def boxes_of(masks: Tensor) -> Tensor:
    """bool N x h x w, none empty -> N x 4 XYXY, inclusive."""
    columns, rows = masks.any(1).int(), masks.any(2).int()
    ends = [masks.shape[2] - 1 - columns.flip(1).argmax(1), masks.shape[1] - 1 - rows.flip(1).argmax(1)]
    return torch.stack([columns.argmax(1), rows.argmax(1), *ends], 1)


def error_clicks(answer: Tensor, target: Tensor, stride: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A uniform click in the error of each answer (bool N x rows x columns against target), x, y in pixels, and its
    label. Where an answer has no error, the click confirms the object."""
    wrong = answer ^ target
    region = torch.where(wrong.flatten(1).any(1)[:, None, None], wrong, target)
    u = torch.as_tensor(rng.random((3, len(answer))))
    x, y = uniform_cells(region, u[0])
    label = target[torch.arange(len(target), device=target.device), y, x].int()
    cell = torch.stack([x, y], 1) + u[1:].T.to(x.device) if stride > 1 else torch.stack([x, y], 1) + 0.5
    return (cell * stride - 0.5).float(), label


def interact(
    model: Sam,
    embedding: Tensor,
    masks: Tensor,
    prompts_cfg: PromptsConfig,
    loss_cfg: LossConfig,
    rng: np.random.Generator,
) -> Iterator[Losses]:
    """The losses of all iterations on one image, one by one; back-propagate each before asking for the next.

    Args: embedding 1 x C x h x w; masks bool N x H x W in pixels of the input without its padding, each with a cell of
    the loss's grid. One prompt has three answers, of which the best one learns; more than one have the single answer.
    """
    if not len(masks):
        return
    steps = plan_iterations(prompts_cfg, rng)
    prompts, order = first_prompts(masks, prompts_cfg, rng)
    target = target_grid(masks[order], loss_cfg.stride)
    inside = target > 0.5
    previous: Tensor | None = None
    for i in range(len(steps) + 1):
        with torch.autocast(embedding.device.type, enabled=False):  # half precision would blur places
            sparse, dense = prompts.embed(model, previous)
            pe = model.prompt_encoder.get_dense_pe()
        logits, scores = model.mask_decoder(embedding, pe, sparse, dense, multimask_output=i == 0)
        fine = on_grid(logits.detach().float(), loss_cfg.stride, target)
        yield prompt_losses(logits, fine, scores, target, loss_cfg, rng)
        if i == len(steps):
            return
        best = scores.detach().argmax(1)  # by its own judgement, as at inference
        rows = torch.arange(len(best), device=best.device)
        previous = logits.detach().float()[rows, best][:, None]
        if steps[i]:
            prompts.add(*error_clicks(fine[rows, best] > 0, inside, loss_cfg.stride, rng))
