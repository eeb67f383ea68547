from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskmill.training.config import LossConfig
from maskmill.training.losses import dice_loss, focal_loss, learners, on_grid, prompt_losses, target_grid, true_iou

CFG = LossConfig()
RNG = np.random.default_rng(0)


def focal_by_hand(x: np.ndarray, y: np.ndarray, alpha: float, gamma: float) -> float:
    total = 0.0
    for logit, t in zip(x.ravel(), y.ravel(), strict=True):
        p = 1 / (1 + np.exp(-float(logit)))
        pt, a = (p, alpha) if t else (1 - p, 1 - alpha)
        total += -a * (1 - pt) ** gamma * np.log(pt)
    return total / x.size


def test_focal_loss_is_lins_formula() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 3, (6, 7)), rng.random((6, 7)) < 0.3
    got = focal_loss(torch.tensor(x), torch.tensor(y).double(), 0.25, 2.0)
    assert np.isclose(got.item(), focal_by_hand(x, y, 0.25, 2.0))
    half = focal_loss(torch.zeros(1, 4, 4), torch.ones(1, 4, 4), 0.25, 2.0)
    assert np.isclose(half.item(), 0.25 * 0.25 * np.log(2))


def test_dice_loss_by_hand() -> None:
    y = torch.zeros(1, 4, 4)
    y[0, :2] = 1  # 8 pixels
    assert np.isclose(dice_loss(torch.zeros(1, 4, 4), y).item(), 1 - (2 * 4 + 1) / (8 + 8 + 1))
    assert dice_loss(y * 80 - 40, y).item() < 1e-6
    assert np.isclose(dice_loss(40 - y * 80, y).item(), 1 - 1 / 17)


def test_iou_by_hand() -> None:
    y = torch.tensor([[[1.0, 1.0, 0.0, 0.6]]])
    x = torch.tensor([[[1.0, -1.0, 2.0, 0.1]]])
    assert true_iou(x, y).item() == 0.5


def test_only_the_best_of_three_masks_learns_but_every_score_does() -> None:
    torch.manual_seed(0)
    target = (torch.rand(5, 8, 8) > 0.5).float()
    logits = torch.randn(5, 3, 8, 8, requires_grad=True)
    scores = torch.rand(5, 3, requires_grad=True)
    losses = prompt_losses(logits, logits.detach(), scores, target, CFG, RNG)
    losses.total.backward()
    each = [
        [20 * focal_by_hand(m.detach().numpy(), y.numpy(), 0.25, 2.0) + dice_loss(m[None], y[None]).item() for m in p]
        for p, y in zip(logits, target, strict=True)
    ]
    square = float(((scores.detach() - true_iou(logits, target[:, None].expand_as(logits))) ** 2).mean())
    assert np.isclose(losses.total.item(), np.min(each, 1).mean() + square, atol=1e-5)
    assert logits.grad is not None and scores.grad is not None
    learns = logits.grad.flatten(2).abs().sum(-1) > 0
    assert learns.sum(1).tolist() == [1] * 5 and learns.int().argmax(1).tolist() == np.argmin(each, 1).tolist()
    assert (scores.grad != 0).all()


def test_relaxed_lets_any_mask_learn_by_chance() -> None:
    each = torch.tensor([[0.3, 0.1, 0.2]]).expand(9000, 3)
    which = learners(each, 0.6, np.random.default_rng(0))
    shares = (which.bincount(minlength=3) / 9000).tolist()
    assert np.allclose(shares, [0.2, 0.4 + 0.2, 0.2], atol=0.02)
    always = learners(each, LossConfig(relaxed=1).relaxed, np.random.default_rng(0))
    assert np.allclose(always.bincount(minlength=3) / 9000, 1 / 3, atol=0.02)
    state = RNG.bit_generator.state
    assert learners(each[:2], 0.0, RNG).tolist() == [1, 1] and learners(each[:2, :1], 0.6, RNG).tolist() == [0, 0]
    assert RNG.bit_generator.state == state  # runs without it keep their chance


def test_logits_that_were_enlarged_after_training_are_compared_as_they_were() -> None:
    torch.manual_seed(0)
    target, logits, scores = (torch.rand(5, 8, 8) > 0.5).float(), torch.randn(5, 3, 8, 8), torch.rand(5, 3)
    plain = prompt_losses(logits, logits, scores, target, CFG, RNG)
    enlarged = prompt_losses(4 * logits, 4 * logits, scores, target, replace(CFG, logit_scale=0.25), RNG)
    assert plain.total == enlarged.total and torch.equal(plain.iou, enlarged.iou)
    assert plain.total != prompt_losses(4 * logits, 4 * logits, scores, target, CFG, RNG).total


@pytest.mark.parametrize("stride", [4, 2, 1])
def test_the_gradient_of_the_best_mask_alone_is_that_of_the_minimum(stride: int) -> None:
    torch.manual_seed(0)
    cfg = replace(CFG, stride=stride, logit_scale=0.5)
    target = target_grid(torch.rand(6, 29, 21) > 0.6, stride)
    scores = torch.rand(6, 3)
    low = torch.randn(6, 3, 8, 8, requires_grad=True)
    losses = prompt_losses(low, on_grid(low.detach(), stride, target), scores, target, cfg, RNG)
    (made,) = torch.autograd.grad(losses.total, low)

    fine = 0.5 * on_grid(low, stride, target)
    y = target[:, None].expand_as(fine)
    each = 20 * focal_loss(fine, y, 0.25, 2.0) + dice_loss(fine, y)
    total = each.min(1).values.mean() + ((scores - true_iou(fine, y)) ** 2).mean()
    (plain,) = torch.autograd.grad(total, low)
    assert torch.allclose(losses.total, total, rtol=1e-6) and torch.allclose(made, plain, rtol=1e-5, atol=1e-8)
    assert len(set(each.argmin(1).tolist())) > 1  # not always the same one


def test_grids_leave_out_the_padding() -> None:
    masks = torch.zeros(1, 10, 13, dtype=torch.bool)
    masks[0, :4, 4:8] = True
    masks[0, 9, 12] = True
    grid = target_grid(masks, 4)
    assert grid.shape == (1, 3, 4) and grid[0, 0, 1] == 1 and grid[0, 2, 3] == 1 / 16 and grid.sum() == 1 + 1 / 16
    assert torch.equal(target_grid(masks, 1), masks.float())
    low = torch.randn(1, 3, 8, 8)  # an input of 32 pixels
    assert torch.equal(on_grid(low, 4, grid), low[..., :3, :4])
    fine = F.interpolate(low, (32, 32), mode="bilinear", align_corners=False)
    assert torch.allclose(on_grid(low, 1, masks), fine[..., :10, :13])
