"""The decoder that shares, folds and gates against the plain one, its gradients, and bits that know no neighbours."""

import pytest
import torch
from torch import Tensor

from maskmill.sam import transformer
from maskmill.sam.build import load_config
from maskmill.sam.mask_decoder import MaskDecoder, MaskDecoderConfig
from maskmill.sam.transformer import SharedImage, TwoWayTransformerConfig
from tests.unit.sam import plain

DIM, GRID = 64, (6, 5)
ALL = slice(0, None)
NOTHING = torch.zeros(1, DIM, 1, 1, dtype=torch.float64)  # a dense prompt


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(decoder: MaskDecoder) -> MaskDecoder:
    """No bias zero, no norm the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in decoder.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return decoder.eval()


@pytest.fixture
def decoder() -> MaskDecoder:
    """Small, three layers deep, float64."""
    torch.manual_seed(0)
    cfg = MaskDecoderConfig(transformer=TwoWayTransformerConfig(depth=3, mlp_dim=128, num_heads=4))
    return shaken(MaskDecoder(cfg, DIM)).double()


@pytest.mark.parametrize(("images", "prompts", "tokens"), [(1, 5, 2), (3, 2, 3), (4, 1, 0), (1, 1, 30)])
def test_predict_is_plain(images: int, prompts: int, tokens: int, decoder: MaskDecoder) -> None:
    """Prompts of one image, of several, one for each (so it is with mask prompts), and more tokens than channels."""
    image, pe = noise(1, images, DIM, *GRID), noise(2, 1, DIM, *GRID)
    sparse = noise(3, images * prompts, tokens, DIM)
    with torch.no_grad():
        masks, iou = decoder.predict(decoder.share(image, NOTHING, pe), sparse, ALL)
        want = plain.decode(decoder, image.repeat_interleave(prompts, 0), pe, sparse, NOTHING)
    assert masks.shape == (images * prompts, 4, 24, 20)
    assert (masks - want[0]).abs().max() < 1e-12 and (iou - want[1]).abs().max() < 1e-12
    assert want[0].std() > 0.01


@pytest.mark.parametrize("chosen", [slice(0, 1), slice(1, None), slice(2, 3)])
def test_a_choice_of_masks(chosen: slice, decoder: MaskDecoder) -> None:
    image, pe, sparse = noise(1, 1, DIM, *GRID), noise(2, 1, DIM, *GRID), noise(3, 4, 2, DIM)
    with torch.no_grad():
        shared = decoder.share(image, NOTHING, pe)
        masks, iou = decoder.predict(shared, sparse, ALL)
        some, some_iou = decoder.predict(shared, sparse, chosen)
    assert torch.allclose(some, masks[:, chosen], atol=1e-12) and torch.equal(some_iou, iou[:, chosen])


@pytest.mark.parametrize("own", [True, False])
def test_forward_takes_official_arguments(own: bool, decoder: MaskDecoder) -> None:
    """A dense map for each prompt, or one that is expanded over them."""
    image, pe, sparse = noise(1, 1, DIM, *GRID), noise(2, 1, DIM, *GRID), noise(3, 4, 2, DIM)
    dense = noise(4, 4, DIM, *GRID) if own else noise(4, 1, DIM, 1, 1).expand(4, -1, *GRID)
    with torch.no_grad():
        want = plain.decode(decoder, image, pe, sparse, dense)
        for multimask, chosen in ((True, slice(1, None)), (False, slice(0, 1))):
            masks, iou = decoder(image, pe, sparse, dense, multimask)
            assert (masks - want[0][:, chosen]).abs().max() < 1e-12 and (iou - want[1][:, chosen]).abs().max() < 1e-12


def test_gradients_are_plain(decoder: MaskDecoder) -> None:
    """Of every parameter, and of the embedding."""
    image, pe, sparse = noise(1, 2, DIM, *GRID).requires_grad_(), noise(2, 1, DIM, *GRID), noise(3, 4, 2, DIM)
    weight = noise(5, 4, 4, 24, 20)
    leaves = [image, *decoder.parameters()]

    def gradients(masks: Tensor, iou: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((masks * weight).sum() + iou.square().sum(), leaves)

    ours = gradients(*decoder.predict(decoder.share(image, NOTHING, pe), sparse, ALL))
    theirs = gradients(*plain.decode(decoder, image.repeat_interleave(2, 0), pe, sparse, NOTHING))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-10 * (1 + b.abs().max())
    # the key's bias adds the same to all scores of a query, which softmax does not feel; all else is learned
    names = ["image", *(name for name, _ in decoder.named_parameters())]
    silent = [name for name, g in zip(names, theirs, strict=True) if g.abs().max() < 1e-10]
    assert silent and all(name.endswith("k_proj.bias") for name in silent)


@pytest.mark.parametrize("pieces", [1, 3, 30, 31])
def test_pieces_change_nothing(pieces: int, decoder: MaskDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    image, pe, sparse = noise(1, 1, DIM, *GRID), noise(2, 1, DIM, *GRID), noise(3, 4, 2, DIM)
    monkeypatch.setattr(transformer, "CPU_PIECES", pieces)
    with torch.no_grad():
        shared = decoder.share(image, NOTHING, pe)
        masks, _ = decoder.predict(shared, sparse, ALL)
    assert len(shared.tokens) == min(pieces, 30)
    assert (masks - plain.decode(decoder, image, pe, sparse, NOTHING)[0]).abs().max() < 1e-12


# ---- only what passes


def test_passing_masks_are_those_of_predict(decoder: MaskDecoder) -> None:
    image, pe, sparse = noise(1, 1, DIM, *GRID), noise(2, 1, DIM, *GRID), noise(3, 9, 2, DIM)
    with torch.no_grad():
        decoder.iou_prediction_head.layers[-1].bias.add_(5)  # type: ignore[operator]  # floors are above zero
        shared = decoder.share(image, NOTHING, pe)
        masks, iou = decoder.predict(shared, sparse, slice(1, None))
        floors = [float(iou.flatten().sort().values[i]) for i in (1, 9, 20)]
        for floor in (*floors, 1e9):
            logits, scores, place = decoder.predict_passing(shared, sparse, floor)
            assert place.tolist() == (iou.flatten() > floor).nonzero()[:, 0].tolist()
            assert torch.equal(scores, iou.flatten()[place]) and logits.is_contiguous()
            assert torch.allclose(logits, masks.flatten(0, 1)[place], atol=1e-12) and logits.shape[1:] == (24, 20)
        assert decoder.predict_passing(shared, sparse, 0.0)[2].tolist() == list(range(27)), "a floor of 0 is off"


def shared_image(name: str) -> tuple[MaskDecoder, SharedImage, Tensor]:
    """A decoder at full size, float32, one image and 24 prompts."""
    cfg = load_config(name)
    dim, side = cfg.image_encoder.out_chans, cfg.image_encoder.img_size // 16
    torch.manual_seed(0)
    decoder = shaken(MaskDecoder(cfg.mask_decoder, dim))
    with torch.inference_mode():
        decoder.iou_prediction_head.layers[-1].bias.add_(5)  # type: ignore[operator]  # floors are above zero
        image, pe = (noise(seed, 1, dim, side, side).float() for seed in (1, 2))
        shared = decoder.share(image, torch.zeros(1, dim, 1, 1), pe)
    return decoder, shared, noise(3, 24, 2, dim).float()


@torch.inference_mode()
@pytest.mark.parametrize("name", ["nano", "vit_b"])
def test_bits_do_not_depend_on_neighbours(name: str) -> None:
    """Promise 4: a prompt has the same bits in every place of a batch, whoever is beside it and whatever passes."""
    decoder, shared, sparse = shared_image(name)
    size = shared.batch_size(64)
    assert size == {"nano": 16, "vit_b": 2}[name]

    def masks(rows: list[int], floor: float) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        found = {}
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            batch += batch[-1:] * (size - len(batch))
            for logits, iou, place in zip(*decoder.predict_passing(shared, sparse[batch], floor), strict=True):
                found[batch[place // 3], int(place % 3)] = (logits, iou)
        return found

    n = 24 if name == "nano" else 6
    everything = masks(list(range(n)), 0.0)
    floor = float(torch.stack([iou for _, iou in everything.values()]).median())
    others = [(list(range(n))[::-1], 0.0), ([5, 0, 3], 0.0), ([2], 0.0), (list(range(n)), floor)]
    for rows, level in others:
        some = masks(rows, level)
        assert 0 < len(some) < 3 * n if level else len(some) == 3 * len(rows)
        for key, (logits, iou) in some.items():
            assert torch.equal(logits, everything[key][0]) and torch.equal(iou, everything[key][1]), key


def test_batch_size_follows_the_cache() -> None:
    """A power of two, never more than asked for, never none."""
    x = torch.zeros(1, 4096, 256)
    shared = SharedImage((64, 64), [x], [x], x, x, [x])
    assert [shared.batch_size(most) for most in (64, 2, 1)] == [2, 2, 1]
    large = SharedImage((64, 64), [x] * 8, [x] * 8, x, x, [x] * 8)
    assert large.batch_size(64) == 1
