"""Module by module, seeded random weights: the official classes against maskmill's."""

import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskmill import load_model
from maskmill.sam.build import build_sam, load_config
from maskmill.sam.sam import ModelConfig
from tests.parity.official import official_sam, prompt_encoder_module, sam_model_registry
from tests.parity.pair import Pair, random_pair

TOLERANCE = 1e-9  # float64
PROMPTS = ["one point", "points", "labels", "boxes", "masks", "points+boxes", "points+masks", "all", "nothing"]


def vit_b_cut_short() -> ModelConfig:
    """ViT-B at full size, its first three blocks: two windowed, one global. The other nine are their repetition.

    tests/parity/full.py runs all twelve; the state dict below says which of them are global.
    """
    cfg = load_config("vit_b")
    return replace(cfg, image_encoder=replace(cfg.image_encoder, depth=3, global_attn_indexes=(2,)))


ARCHITECTURES = {"nano": lambda: load_config("nano"), "vit_b": vit_b_cut_short}


class InFloat64(types.ModuleType):
    """torch, as a module that names float32 sees it when everything is to run in float64."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The official prompt encoder casts coordinates to torch.float; in float64 it must cast to float64."""
    monkeypatch.setattr(prompt_encoder_module, "torch", InFloat64("torch"))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Random float64 weights, made once for each architecture."""
    made = random_pair(ARCHITECTURES[request.param](), seed=1)
    return Pair(made.official.double(), made.ours.double())


def noise(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def prompts(kind: str, pair: Pair, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of a prompt encoder for three objects."""
    generator = torch.Generator().manual_seed(2)
    size = pair.ours.img_size
    coords = (torch.rand(3, 5, 2, generator=generator, dtype=torch.float64) * size).to(dtype)
    labels = torch.tensor([[1, 0, -1, 1, 0], [0, 0, 1, -1, -1], [1, 1, 1, 1, 1]], dtype=torch.int)
    boxes = torch.tensor([[3.5, 7, 90, 80], [0, 0, size, size], [10, 10, 10, 10]], dtype=dtype)
    masks = noise(3, 3, 1, *pair.ours.prompt_encoder.mask_input_size, dtype=dtype) * 5
    points = {
        "one point": (coords[:, :1], torch.ones(3, 1, dtype=torch.int)),
        "points": (coords, torch.ones(3, 5, dtype=torch.int)),
        "labels": (coords, labels),
        "points+boxes": (coords, labels),
        "points+masks": (coords, labels),
        "all": (coords, labels),
    }
    return {
        "points": points.get(kind),
        "boxes": boxes if kind in ("boxes", "points+boxes", "all") else None,
        "masks": masks if kind in ("masks", "points+masks", "all") else None,
    }


def gap(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; the shapes and types must agree."""
    assert a.shape == b.shape and a.dtype == b.dtype
    return (a - b).abs().max().item() if a.numel() else 0.0


def test_weights_leave_nothing_out(pair: Pair) -> None:
    """No parameter is zero or constant, as rel_pos, pos_embed and the norms are after the official constructor."""
    for name, p in pair.official.named_parameters():
        assert p.abs().sum() > 0 and (p.numel() == 1 or p.std() > 0), name


@torch.no_grad()
def test_image_encoder_float64(pair: Pair) -> None:
    x = noise(4, 1, 3, pair.ours.img_size, pair.ours.img_size)
    theirs = pair.official.image_encoder(x)
    assert gap(theirs, pair.ours.image_encoder(x)) <= TOLERANCE
    assert theirs.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("kind", PROMPTS)
def test_prompt_encoder_float64(kind: str, pair: Pair, float64: None) -> None:
    args = prompts(kind, pair, torch.float64)
    for theirs, ours in zip(pair.official.prompt_encoder(**args), pair.ours.prompt_encoder(**args), strict=True):
        assert theirs.dtype == torch.float64 or theirs.numel() == 0
        assert gap(theirs.double(), ours.double()) <= TOLERANCE


@torch.no_grad()
def test_dense_positions_float64(pair: Pair, float64: None) -> None:
    assert gap(pair.official.prompt_encoder.get_dense_pe(), pair.ours.prompt_encoder.get_dense_pe()) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("multimask", [True, False])
def test_mask_decoder_float64(multimask: bool, pair: Pair) -> None:
    """Two prompts of seven tokens over one embedding: masks and predicted IoU."""
    model = pair.ours
    dim, (h, w) = model.prompt_encoder.embed_dim, model.prompt_encoder.image_embedding_size
    args = (noise(5, 1, dim, h, w), noise(6, 1, dim, h, w), noise(7, 2, 7, dim), noise(8, 2, dim, h, w), multimask)
    theirs, ours = pair.official.mask_decoder(*args), pair.ours.mask_decoder(*args)
    assert ours[0].shape == (2, 3 if multimask else 1, 4 * h, 4 * w)
    assert gap(theirs[0], ours[0]) <= TOLERANCE
    assert gap(theirs[1], ours[1]) <= TOLERANCE


@pytest.fixture(scope="module")
def nano32() -> Pair:
    return random_pair(load_config("nano"), seed=9)


@torch.no_grad()
def test_image_encoder_float32(nano32: Pair) -> None:
    """Other sums, so other last bits: the embedding is of size 1."""
    x = noise(10, 1, 3, nano32.ours.img_size, nano32.ours.img_size, dtype=torch.float32)
    assert gap(nano32.official.image_encoder(x), nano32.ours.image_encoder(x)) <= 1e-4


@torch.no_grad()
@pytest.mark.parametrize("coords", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", PROMPTS)
def test_prompt_encoder_float32_same_bits(kind: str, coords: torch.dtype, nano32: Pair) -> None:
    """Untouched official code. The generator's points come in float64: shift and division run there, then the cast."""
    args = prompts(kind, nano32, coords)
    args["masks"] = args["masks"] if args["masks"] is None else args["masks"].float()
    for theirs, ours in zip(nano32.official.prompt_encoder(**args), nano32.ours.prompt_encoder(**args), strict=True):
        assert ours.dtype == torch.float32 and torch.equal(theirs, ours)


@torch.no_grad()
def test_a_padding_point_is_appended_unless_there_is_a_box(nano32: Pair) -> None:
    """Quirk (1.2): one point makes two tokens, the second "not a point" and nothing else; with a box it makes one."""
    encoder = nano32.ours.prompt_encoder
    args = prompts("one point", nano32, torch.float32)
    sparse, _ = encoder(**args)
    assert sparse.shape[1] == 2 and torch.equal(sparse[0, 1], encoder.not_a_point_embed.weight[0])
    boxes = prompts("boxes", nano32, torch.float32)["boxes"]
    assert encoder(points=args["points"], boxes=boxes, masks=None)[0].shape[1] == 1 + 2


@torch.no_grad()
def test_mask_decoder_float32(nano32: Pair) -> None:
    """Four prompts of seven tokens, with a dense map for each and with one for all: logits are of size 0.1."""
    dim, grid = nano32.ours.prompt_encoder.embed_dim, nano32.ours.prompt_encoder.image_embedding_size
    shapes = [(1, dim, *grid), (1, dim, *grid), (4, 7, dim), (4, dim, *grid)]
    args = [noise(i, *shape, dtype=torch.float32) for i, shape in enumerate(shapes)]
    for dense in (args[3], args[3][:1].expand(4, -1, -1, -1)):
        both = [pair.mask_decoder(*args[:3], dense, True) for pair in (nano32.official, nano32.ours)]
        assert all(gap(theirs, ours) <= 1e-5 for theirs, ours in zip(*both, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("sides", [(1, 1), (1, 0.67), (0.2, 1)])
def test_preprocess_and_postprocess_same_bits(sides: tuple[float, float], nano32: Pair) -> None:
    """Normalisation comes before the zero padding; masks go 4h x 4w -> square -> cut -> image in two bilinear steps."""
    size = (int(sides[0] * nano32.ours.img_size), int(sides[1] * nano32.ours.img_size))
    x = (noise(11, 3, *size).abs() * 80).clamp(0, 255).to(torch.uint8)
    assert torch.equal(nano32.official.preprocess(x), nano32.ours.preprocess(x))
    low_res = noise(12, 2, 3, *nano32.ours.prompt_encoder.mask_input_size, dtype=torch.float32)
    theirs = nano32.official.postprocess_masks(low_res, size, (333, 217))
    assert torch.equal(theirs, nano32.ours.postprocess_masks(low_res, size, (333, 217)))


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_state_dict_has_exactly_the_official_keys(name: str) -> None:
    """Names, order and shapes, against the official builders."""
    with torch.device("meta"):
        official, ours = sam_model_registry[name](), build_sam(load_config(name))
    shapes = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (official, ours)]
    assert shapes[0] == shapes[1]


def test_published_pth_loads_as_it_is(tmp_path: Path) -> None:
    """A file written by torch.save from the official ViT-B gives the same tensors by load_model."""
    official = official_sam(load_config("vit_b"))
    path = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save(official.state_dict(), path)
    ours = load_model("vit_b", checkpoint=path, device="cpu").state_dict()
    path.unlink()
    want = official.state_dict()
    assert ours.keys() == want.keys()
    assert all(torch.equal(ours[k], want[k]) for k in want)


def test_nano_loads_into_the_official_classes(nano: Pair) -> None:
    """Strictly: `nano_pair` did it; here every tensor is compared."""
    ours, theirs = nano.ours.state_dict(), nano.official.state_dict()
    assert ours.keys() == theirs.keys() and len(ours) > 100
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
