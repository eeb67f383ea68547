"""The last layers of shaped weights, fitted on one image, and what masks of a model look like (see shaped.py)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.official import Sam, SamPredictor

RADII = (0.1, 0.07, 0.1, 0.15)  # of the blobs of the four mask tokens, as shares of the image's long side
PASS_IOU = 0.37  # share of all masks
PASS_STABILITY = 0.66  # share of those that pass IoU
ROUGH = 0.6  # noise in the fitted layers, which gives blobs ragged edges, holes and islands
SPREAD = 0.1  # standard deviation of the predicted IoU
POINTS = 64  # prompts that the last layers are fitted on
MOST_ACTIVE = 0.04  # where the masks have 256 x 256 cells; a contour takes a larger share of fewer cells


@dataclass(frozen=True)
class Look:
    """What the masks of a model look like. Shares in [0, 1]."""

    active: float  # low-resolution cells that one of the contours t-1, t, t+1 crosses, of the masks that pass IoU
    contour: float  # the same for the contour t alone
    pass_iou: float  # of all masks
    prompts: int
    side: int  # cells

    @property
    def like_masks(self) -> bool:
        return 0 < self.active * self.side / 256 <= MOST_ACTIVE


def embed(model: Sam, image: np.ndarray) -> SamPredictor:
    """The official predictor, the image encoded."""
    predictor = SamPredictor(model)
    predictor.set_image(image)
    return predictor


def fit(model: Sam, embedded: SamPredictor, iou: float, stability: float, generator: torch.Generator) -> None:
    """The last layers, from what the layers before give for one image and POINTS seeded points."""
    seen = Seen(model, embedded, spread_points(generator))
    decoder = model.mask_decoder
    fit_iou_head(decoder.iou_prediction_head.layers[-1], seen.iou_hidden, iou, generator)
    features = torch.cat([f.flatten(2).transpose(1, 2) for f in seen.features])  # prompts x cells x channels
    distance = cell_distance(model, seen.points, math.isqrt(features.shape[1]))
    for token, radius in enumerate(RADII):
        weight = fit_blob(features, distance, radius)
        weight = weight + ROUGH * (features @ weight).std() * rough_direction(features, generator)
        sharpness, slope, offset = sharpness_of(seen.hyper_hidden[token])
        scale = stable_scale((features @ weight * sharpness[:, None])[::4], stability)
        last = decoder.output_hypernetworks_mlps[token].layers[-1]
        last.weight.copy_(scale * torch.outer(weight, slope))
        last.bias.copy_(scale * weight * offset)


class Seen:
    """What stands before the last layers: `features` (chunks of prompts x channels x grid), the heads' hidden units."""

    def __init__(self, model: Sam, predictor: SamPredictor, points: Tensor) -> None:
        decoder = model.mask_decoder
        self.features: list[Tensor] = []
        self.low_res: list[Tensor] = []
        self.scores: list[Tensor] = []
        hidden: dict[nn.Module, list[Tensor]] = {}
        heads = [decoder.iou_prediction_head, *decoder.output_hypernetworks_mlps]
        hooks = [
            decoder.output_upscaling.register_forward_hook(lambda m, a, o: self.features.append(o[:, :, ::4, ::4]))
        ]
        for head in heads:
            keep = hidden.setdefault(head, [])
            hooks.append(head.layers[-1].register_forward_pre_hook(lambda m, a, keep=keep: keep.append(a[0])))
        scale = torch.tensor(predictor.input_size[::-1], device=model.device)
        self.points = points.to(model.device) * scale  # of [0, 1] -> input pixels
        dense_pe = model.prompt_encoder.get_dense_pe()
        for some in torch.split(self.points, 16):
            labels = torch.ones(len(some), 1, dtype=torch.int, device=model.device)
            sparse, dense = model.prompt_encoder(points=(some[:, None], labels), boxes=None, masks=None)
            masks, scores = decoder(predictor.features, dense_pe, sparse, dense, multimask_output=True)
            self.low_res.append(masks)
            self.scores.append(scores)
        for hook in hooks:
            hook.remove()
        self.iou_hidden, *self.hyper_hidden = [torch.cat(hidden[head]) for head in heads]


def fit_iou_head(last: nn.Linear, hidden: Tensor, threshold: float, generator: torch.Generator) -> None:
    """Scores along the directions in which the hidden units differ most between prompts, PASS_IOU above threshold."""
    axes = torch.linalg.svd(hidden - hidden.mean(0), full_matrices=False).Vh[:4]
    common, own = (torch.randn(n, len(axes), generator=generator).to(axes) for n in (1, len(last.weight)))
    weight = (common + 0.5 * own) @ axes  # a prompt's three masks are good or bad together, more or less
    raw = hidden @ weight.T
    weight = weight * (SPREAD / raw.std(0))[:, None]
    last.weight.copy_(weight)
    last.bias.copy_(threshold - (hidden @ weight.T).quantile(1 - PASS_IOU, dim=0))


def fit_blob(features: Tensor, distance: Tensor, radius: float) -> Tensor:
    """Weighted least squares from channels to a blob of that radius: positive inside, negative outside."""
    target = torch.tanh((radius - distance) / 0.03)
    weight = 1 + 25 * (distance < 1.2 * radius).double()
    x = features.double()
    gram = torch.einsum("pnc,pn,pnd->cd", x, weight, x)
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    side = torch.einsum("pnc,pn,pn->c", x, weight, target.double())
    return torch.linalg.solve(gram + ridge, side).to(features)


def sharpness_of(hidden: Tensor) -> tuple[Tensor, Tensor, float]:
    """How steep each prompt's logits are, 0.15 to 1.85, so stability scores spread; and hidden @ slope + offset."""
    middle = hidden.mean(0)
    slope = torch.linalg.svd(hidden - middle, full_matrices=False).Vh[0]
    slope = slope * (0.85 / ((hidden - middle) @ slope).abs().max())
    offset = 1 - float(middle @ slope)
    return hidden @ slope + offset, slope, offset


def rough_direction(features: Tensor, generator: torch.Generator) -> Tensor:
    """A random weight of the channels whose output has mean 0 and standard deviation about 1."""
    deviation, mean = features.std(dim=(0, 1)), features.mean(dim=(0, 1))
    noise = torch.randn(len(mean), generator=generator).to(features) / math.sqrt(len(mean)) / deviation.clamp(min=1e-6)
    noise[0] = -(noise[1:] @ mean[1:]) / mean[0]  # channel 0 is the constant one
    return noise


def stable_scale(logits: Tensor, stability: float) -> float:
    """The factor on prompts x cells logits at which PASS_STABILITY of the masks are stable; about, by bisection."""
    side = math.isqrt(logits.shape[1])
    blocks = F.interpolate(logits.view(-1, 1, side, side), scale_factor=4, mode="nearest")  # as the decoder's output
    fine = F.interpolate(blocks, scale_factor=4, mode="bilinear", align_corners=False).flatten(1)
    low, high = 0.0, 8.0  # powers of two
    for _ in range(14):
        middle = (low + high) / 2
        inner, outer = ((fine * 2**middle > t).sum(1) for t in (1, -1))
        enough = ((inner >= stability * outer) & (inner > 0)).float().mean() >= PASS_STABILITY
        low, high = (low, middle) if enough else (middle, high)
    return 2.0**high


@torch.inference_mode()
def look(model: Sam, embedded: SamPredictor, iou: float, seed: int = 1) -> Look:
    """The shares on an image, from POINTS seeded prompts of the official `model`."""
    seen = Seen(model, embedded, spread_points(torch.Generator().manual_seed(seed)))
    scores, low_res = torch.cat(seen.scores).flatten(), torch.cat(seen.low_res).flatten(0, 1)
    passed = low_res[scores > iou]
    cells = [torch.stack([passed[:, y : y - 1 or None, x : x - 1 or None] for y in (0, 1) for x in (0, 1)])]
    crossed = [(c > t).any(0) & (c <= t).any(0) for c in cells for t in (-1, 0, 1)]
    both = torch.stack(crossed)
    share = float((scores > iou).float().mean())
    return Look(
        float(both.any(0).float().mean()), float(both[1].float().mean()), share, len(seen.points), passed.shape[-1]
    )


def spread_points(generator: torch.Generator) -> Tensor:
    """POINTS x 2 (x, y) in [0, 1], one anywhere in each cell of a grid."""
    side = math.isqrt(POINTS)
    x, y = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy")
    return (torch.stack([x, y], dim=-1).reshape(-1, 2) + torch.rand(POINTS, 2, generator=generator)) / side


def cell_distance(model: Sam, points: Tensor, side: int) -> Tensor:
    """Prompts x cells: from each point (input pixels) to the cells' centres, as a share of the input's side."""
    centres = (torch.arange(side, device=points.device) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    at = points / model.image_encoder.img_size
    return torch.hypot(x[None] - at[:, 0, None, None], y[None] - at[:, 1, None, None]).flatten(1)
