"""Half precision: what it may change, and what stays float32."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.agreement import Agreement, Thresholds, agree
from maskmill import MaskGenerator, Predictor, load_model
from maskmill.config import GenerateConfig
from maskmill.errors import UserError
from maskmill.generate.candidates import find_candidates
from maskmill.sam.image_encoder import attention_by_onehots, attention_in_parts
from maskmill.sam.sam import Sam
from tests.parity.images import render
from tests.parity.pair import nano_thresholds

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
ROWS = 6  # prompts of a decoder call here


@pytest.fixture(scope="module")
def plain() -> Sam:
    return load_model("nano", device="cpu")


@pytest.fixture(scope="module", params=HALF)
def half(request: pytest.FixtureRequest) -> Sam:
    return load_model("nano", device="cpu", precision=request.param)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def prompts(model: Sam) -> Tensor:
    """Tokens of a few points: ROWS x 2 x C."""
    coords = torch.from_numpy(np.random.default_rng(0).uniform(0, 448, (ROWS, 1, 2)))
    sparse, _ = model.prompt_encoder((coords, torch.ones(ROWS, 1, dtype=torch.int)), None, None)
    return sparse


def coarse(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether nothing would be lost if it were cast to the half dtype."""
    return torch.equal(x, x.to(dtype).to(x.dtype))


def test_float32_is_left_alone(plain: Sam) -> None:
    assert plain.precision == "float32" and all(p.dtype == torch.float32 for p in plain.parameters())
    again = load_model("nano", device="cpu", precision="float32")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in plain.state_dict().items())


def test_what_is_cast(half: Sam, plain: Sam) -> None:
    """The big products and nothing else; weights that stay are not rounded."""
    dtype = HALF[half.precision]
    assert half.state_dict().keys() == plain.state_dict().keys()
    types = {name: p.dtype for name, p in half.named_parameters()}
    assert types["image_encoder.blocks.0.mlp.lin1.weight"] == dtype
    assert types["image_encoder.blocks.0.norm1.weight"] == types["image_encoder.pos_embed"] == torch.float32
    assert types["mask_decoder.transformer.layers.0.mlp.lin1.weight"] == torch.float16
    for name, value in half.state_dict().items():
        if value.dtype == torch.float32:
            assert torch.equal(value, plain.state_dict()[name])
    cast = sum(p.numel() for p in half.parameters() if p.dtype != torch.float32)
    assert 0.9 < cast / sum(p.numel() for p in half.parameters()) < 1


def test_coordinates_are_float32(half: Sam, plain: Sam) -> None:
    assert torch.equal(prompts(half), prompts(plain))
    assert torch.equal(half.prompt_encoder.get_dense_pe(), plain.prompt_encoder.get_dense_pe())


def test_blocks_pass_on_float32(half: Sam) -> None:
    """What runs through the encoder, and what leaves it, is never rounded to half."""
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda m, i, out: seen.append(out)) for block in half.image_encoder.blocks]
    embedding, _ = half.encode(render(1, 60, 80))
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(hooks)
    assert all(x.dtype == torch.float32 and not coarse(x, HALF[half.precision]) for x in (*seen, embedding))


def test_scores_and_logits_are_float32(half: Sam) -> None:
    """They have digits that no half number has, and are what float32 heads make of the transformer's answers."""
    decoder, seen = half.mask_decoder, []
    hook = decoder.iou_prediction_head.register_forward_hook(lambda m, i, out: seen.append((i[0], out)))
    shared = half.share(half.encode(render(1, 60, 80))[0])
    logits, iou = decoder.predict(shared, prompts(half), slice(1, None))
    hook.remove()
    assert logits.dtype == iou.dtype == torch.float32
    for dtype in HALF.values():
        assert not coarse(logits, dtype) and not coarse(iou, dtype)
    [(tokens, scores)] = seen
    x = tokens.float()
    layers = list(load_model("nano", device="cpu").mask_decoder.iou_prediction_head.layers)
    for layer in layers[:-1]:
        x = F.relu(layer(x))
    assert tokens.dtype == torch.float16 and torch.equal(layers[-1](x), scores)


def test_masks_agree_with_float32(half: Sam, plain: Sam) -> None:
    """Few masks change much. Small images: a pixel is a larger share of a mask than in a photograph."""
    args: dict[str, Any] = {"points_per_side": 8, "output_mode": "coco_rle", **nano_thresholds()}
    total = Agreement()
    for seed, size in enumerate(((240, 320), (300, 300))):
        image = render(seed, *size)
        before, after = (MaskGenerator(model, **args).generate(image) for model in (plain, half))
        total.add(agree(before, after, Thresholds(**nano_thresholds())))
    assert min(total.first, total.second) >= 25 and total.share >= 0.9
    assert total.identical < total.matched  # else nothing was rounded


def test_a_predictor_takes_it(half: Sam, plain: Sam) -> None:
    """Points, and a mask of before, whose image tokens are the prompt's own."""
    image, masks = render(1, 60, 80), []
    for model in (plain, half):
        predictor = Predictor(model)
        predictor.set_image(image)
        point = np.array([[40.0, 30.0]]), np.array([1])
        _, iou, low_res = predictor.predict(*point)
        assert iou.dtype == low_res.dtype == np.float32
        best = low_res[iou.argmax()][None]
        masks.append(predictor.predict(*point, mask_input=best, multimask_output=False)[0][0])
    both, either = (masks[0] & masks[1]).sum(), (masks[0] | masks[1]).sum()
    assert both / either > 0.9


def test_the_config_must_say_the_same(half: Sam) -> None:
    """Else a build would record a precision that it does not have."""
    image = render(1, 60, 80)
    with pytest.raises(UserError, match=f"'float32', but the model's weights are {half.precision}"):
        find_candidates(half, image, GenerateConfig(points_per_side=1))
    assert MaskGenerator(half).generate_config.precision == half.precision


@pytest.mark.parametrize(("window", "width"), [(14, 64), (14, 80), (8, 32), (64, 80)])
def test_widths_for_a_gpu(window: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's memory-efficient kernel takes half precision only where the last dimension is a multiple of 8."""
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, window**2, width, generator=made) for _ in range(3))
    rel = [torch.randn(2, window**2, window, generator=made) for _ in range(2)]
    seen: list[int] = []
    original = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        seen.extend(x.shape[-1] for x in (q, k, v))
        return original(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    got = attention_by_onehots(q, k, v, *rel)
    monkeypatch.undo()
    assert [n % 8 for n in seen] == [0, 0, 0] and seen[2] == width
    assert torch.allclose(got, attention_in_parts(q, k, v, *rel), atol=1e-4)
