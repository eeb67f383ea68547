import numpy as np
import pytest
import torch
from torch import Tensor

from maskmill.sam.build import load_config, load_model
from maskmill.training.config import LossConfig, PromptsConfig
from maskmill.training.iterate import boxes_of, error_clicks, first_prompts, interact, plan_iterations, uniform_cells

SIDE = load_config("nano").image_encoder.img_size
TOKENS, CELLS = SIDE // 16, SIDE // 4


def masks() -> Tensor:
    out = torch.zeros(4, 90, 120, dtype=torch.bool)
    out[0, 10:40, 20:60] = True
    out[1, 50:80, 5:30] = True
    out[2, 20:30, 70:110] = True
    out[3, 60:85, 60:100] = True
    return out


def test_eleven_iterations_two_of_them_empty() -> None:
    rng = np.random.default_rng(0)
    plans = [plan_iterations(PromptsConfig(), rng) for _ in range(300)]
    assert all(len(p) == 10 and sum(p) == 8 and not p[-1] for p in plans)  # and the first: 11
    assert {p[:-1].index(False) for p in plans} == set(range(8))
    assert plan_iterations(PromptsConfig(clicks=2, empty=False), rng) == [True, True]


def test_uniform_cells_are_uniform() -> None:
    region = torch.zeros(1, 3, 4, dtype=torch.bool)
    region[0, 1, 2] = region[0, 2, 0] = region[0, 2, 3] = True
    u = (torch.arange(900) + 0.5) / 900
    x, y = uniform_cells(region.expand(900, -1, -1), u)
    cells, counts = torch.stack([x, y], 1).unique(dim=0, return_counts=True)
    assert cells.tolist() == [[0, 2], [2, 1], [3, 2]] and counts.tolist() == [300] * 3


def test_first_prompts_are_points_in_the_masks_or_their_boxes() -> None:
    rng = np.random.default_rng(0)
    half = 0
    for _ in range(50):
        prompts, order = first_prompts(masks(), PromptsConfig(box_noise=0), rng)
        ordered, n = masks()[order], len(prompts.points)
        half += n
        assert sorted(order.tolist()) == [0, 1, 2, 3] and len(prompts.boxes) == 4 - n
        for mask, (x, y) in zip(ordered, prompts.points[:, 0].tolist(), strict=False):
            assert mask[int(y), int(x)]
        assert torch.equal(prompts.boxes, boxes_of(ordered).float()[n:])
    assert 70 < half < 130
    assert boxes_of(masks()).tolist()[0] == [20, 10, 59, 39]


def test_a_share_of_the_first_points_is_in_the_middle() -> None:
    """The middles by hand, as many as asked for; boxes, order and the other points are those of a share of 0."""
    middles = {0: range(34, 46), 1: (17,), 2: range(74, 106), 3: range(72, 88)}  # x of the deepest rows
    rows = {0: (24, 25), 1: range(62, 68), 2: (24, 25), 3: (72,)}
    cfg = PromptsConfig(middle_share=0.5)
    points = central = 0
    for seed in range(100):
        plain, order = first_prompts(masks(), PromptsConfig(), np.random.default_rng(seed))
        prompts, same = first_prompts(masks(), cfg, np.random.default_rng(seed))
        assert torch.equal(order, same) and torch.equal(plain.boxes, prompts.boxes)
        for i, before, (x, y) in zip(
            order.tolist(), plain.points[:, 0].tolist(), prompts.points[:, 0].tolist(), strict=False
        ):
            points += 1
            if [x, y] != before:
                central += 1
                assert x in middles[i] and y in rows[i], (i, x, y)
    assert 0.4 * points < central < 0.6 * points
    every, order = first_prompts(masks(), PromptsConfig(middle_share=1.0, box_share=0.0), np.random.default_rng(0))
    assert all(
        x in middles[i] and y in rows[i] for i, (x, y) in zip(order.tolist(), every.points[:, 0].tolist(), strict=True)
    )


def test_error_clicks_lie_in_the_error() -> None:
    target = torch.zeros(3, 10, 10, dtype=torch.bool)
    target[:, 2:6, 2:6] = True
    answer = target.clone()
    answer[0] = False
    answer[1, 2:6, 6:8] = True
    for seed in range(20):
        xy, label = error_clicks(answer, target, 4, np.random.default_rng(seed))
        assert label.tolist() == [1, 0, 1]  # nothing is wrong with the third: the click confirms it
        low, high = (
            torch.tensor([[8.0, 8], [24, 8], [8, 8]]) - 0.5,
            torch.tensor([[24.0, 24], [32, 24], [24, 24]]) - 0.5,
        )
        assert (xy >= low).all() and (xy <= high).all()


@pytest.mark.parametrize("box_share", [0.0, 0.5, 1.0])
def test_the_interaction_as_the_model_sees_it(box_share: float) -> None:
    """Three answers once, then one; a click more each time, but for two; the logits before come back in."""
    model = load_model("nano", device="cpu")
    seen: list[tuple[int, bool, bool]] = []
    dense: list[Tensor] = []
    encoder, decoder = model.prompt_encoder.forward, model.mask_decoder.forward

    def encode(points: object, boxes: object, given: Tensor | None) -> tuple[Tensor, Tensor]:
        if given is not None:
            dense.append(given)
        return encoder(points, boxes, given)  # type: ignore[arg-type]

    def decode(e: Tensor, pe: Tensor, sparse: Tensor, d: Tensor, multimask_output: bool) -> tuple[Tensor, Tensor]:
        seen.append((sparse.shape[1], multimask_output, bool(dense)))
        return decoder(e, pe, sparse, d, multimask_output)

    model.prompt_encoder.forward = encode  # type: ignore[method-assign]
    model.mask_decoder.forward = decode  # type: ignore[method-assign]
    cfg = PromptsConfig(box_share=box_share)
    with torch.no_grad():
        embedding = torch.randn(1, 128, TOKENS, TOKENS)
        rounds = list(interact(model, embedding, masks(), cfg, LossConfig(), np.random.default_rng(3)))
    assert len(rounds) == len(seen) == 11 and rounds[0].iou.shape == (4, 3) and rounds[1].iou.shape == (4, 1)
    assert [m for _, m, _ in seen] == [True] + [False] * 10
    assert [given for _, _, given in seen] == [False] + [True] * 10
    tokens = [n for n, _, _ in seen]
    assert tokens[0] == 2 and tokens[-1] == 10 and sorted(np.diff(tokens)) == [0, 0] + [1] * 8
    assert all(len(d) <= 4 and d.shape[1:] == (1, CELLS, CELLS) and not d.requires_grad for d in dense)


def test_gradient_flows_through_every_parameter() -> None:
    torch.manual_seed(0)
    model = load_model("nano", device="cpu")
    pixels = torch.randn(1, 3, SIDE, SIDE)
    leaf = model.image_encoder(pixels)
    # so many that each of the three masks is the best one of some
    sizes = torch.zeros(12, CELLS, CELLS, dtype=torch.bool)
    for i, mask in enumerate(sizes):
        mask[48 - 4 * i - 2 : 48 + 4 * i + 2, 48 - 4 * i - 2 : 48 + 4 * i + 2] = True
    once = PromptsConfig(clicks=0, empty=False)
    total = torch.zeros(())
    frayed = sizes & (torch.rand(CELLS, CELLS) > 0.5)
    for cfg, some in ((PromptsConfig(clicks=2), masks()), (once, sizes), (once, frayed)):
        for losses in interact(model, leaf, some, cfg, LossConfig(), np.random.default_rng(0)):
            total = total + losses.total
    total.backward()  # type: ignore[no-untyped-call]
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_iteration_by_iteration_gives_the_same_gradient() -> None:
    torch.manual_seed(0)
    model = load_model("nano", device="cpu")
    pixels = torch.randn(1, 3, SIDE, SIDE)

    def gradients(apart: bool) -> list[Tensor]:
        model.zero_grad()
        embedding = model.image_encoder(pixels)
        leaf = embedding.detach().requires_grad_() if apart else embedding
        rounds = interact(model, leaf, masks()[:2], PromptsConfig(clicks=2), LossConfig(), np.random.default_rng(0))
        if apart:
            for losses in rounds:
                losses.total.backward()  # type: ignore[no-untyped-call]
            embedding.backward(leaf.grad)
        else:
            torch.stack([losses.total for losses in rounds]).sum().backward()  # type: ignore[no-untyped-call]
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for a, b in zip(gradients(True), gradients(False), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6 + 1e-4 * float(b.abs().max()))
