"""The decoder's view of single pixels: against the plain decoder, begun as nothing, kept in weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskmill.sam.build import checkpoint_sha256, load_model
from maskmill.sam.input_size import detailed, resized
from maskmill.sam.precision import cast
from maskmill.sam.sam import Sam
from tests.unit.sam import plain

SIDE = 64


def pixels(images: int) -> Tensor:
    return torch.randn(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.fixture
def model() -> Sam:
    """nano in float64 for a small input, as if its detail had been trained."""
    torch.manual_seed(0)
    sam = resized(detailed(load_model("nano", device="cpu")), SIDE).double()
    nn.init.normal_(sam.image_encoder.detail.last.weight, std=0.5)
    return sam


def plain_detail(model: Sam, x: Tensor) -> Tensor:
    """As a map, 4 pixels a cell: B x C/8 x 4h x 4w."""
    d = model.image_encoder.detail
    gelu = torch.nn.functional.gelu
    return d.last(gelu(d.three(gelu(d.norm(d.two(gelu(d.one(x))))))))


@pytest.mark.parametrize(("images", "prompts"), [(1, 5), (3, 8)])
def test_cells_of_the_mask_get_their_own_pixels(images: int, prompts: int, model: Sam) -> None:
    """All masks, and those that pass alone, for prompts of one image and of several."""
    x, decoder = pixels(images), model.mask_decoder
    xy = torch.rand(images * prompts, 1, 2, generator=torch.Generator().manual_seed(6)).double() * SIDE
    with torch.no_grad():
        sparse, _ = model.prompt_encoder((xy, torch.ones(images * prompts, 1)), None, None)
        embedding = model.image_encoder(x)
        shared = model.share(embedding)
        masks, _ = decoder.predict(shared, sparse, slice(1, None))
        passed, _, place = decoder.predict_passing(shared, sparse, 0.0)
        own = [t.repeat_interleave(prompts, 0) for t in (embedding[:, :128], plain_detail(model, x))]
        dense = model.prompt_encoder.no_mask_embed.weight[:, :, None, None]
        want, _ = plain.decode(decoder, own[0], model.prompt_encoder.get_dense_pe(), sparse, dense, own[1])
        without, _ = plain.decode(decoder, own[0], model.prompt_encoder.get_dense_pe(), sparse, dense)
    assert (masks - want[:, 1:]).abs().max() < 1e-10 and len(place) == 3 * len(sparse)
    assert (passed.view(masks.shape) - want[:, 1:]).abs().max() < 1e-10
    assert ((want > 0) != (without > 0)).any(), "it changes masks"


def test_mask_prompts_leave_it_alone(model: Sam) -> None:
    """They are added to the embedding's own channels."""
    x, previous = pixels(1), torch.randn(4, 1, SIDE // 4, SIDE // 4, dtype=torch.float64)
    xy = torch.full((4, 1, 2), 20.0, dtype=torch.float64)
    with torch.no_grad():
        sparse, dense = model.prompt_encoder((xy, torch.ones(4, 1)), None, previous)
        embedding, pe = model.image_encoder(x), model.prompt_encoder.get_dense_pe()
        masks, _ = model.mask_decoder(embedding, pe, sparse, dense, True)
        want, _ = plain.decode(model.mask_decoder, embedding[:, :128], pe, sparse, dense, plain_detail(model, x))
    assert (masks - want[:, 1:]).abs().max() < 1e-10


def test_it_begins_as_nothing() -> None:
    """Not a bit of an answer changes, and what has it already keeps it."""
    first = load_model("nano", device="cpu")
    other = detailed(first)
    assert detailed(other) is other and not other.training
    image = torch.randint(256, (90, 120, 3), generator=torch.Generator().manual_seed(0)).numpy().astype("uint8")
    sparse = first.prompt_encoder((torch.tensor([[[99.0, 200.0]]]), torch.ones(1, 1)), None, None)[0]
    with torch.no_grad():
        a, b = (m.mask_decoder.predict(m.share(m.encode(image)[0]), sparse, slice(0, None)) for m in (first, other))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_weights_say_that_they_have_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = resized(detailed(load_model("nano", device="cpu")), 320)
    path = str(tmp_path / "finer.safetensors")
    save_file(other.state_dict(), path)
    model = load_model("nano", path, device="cpu")
    assert model.cfg.image_encoder.detail and model.img_size == 320 and len(checkpoint_sha256("nano", path)) == 64
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision(precision: str, model: Sam) -> None:
    """The same masks but for a few pixels."""
    whole = model.float()
    half = cast(resized(whole, SIDE), precision)
    xy = torch.rand(8, 1, 2, generator=torch.Generator().manual_seed(6)) * SIDE
    sparse, _ = whole.prompt_encoder((xy, torch.ones(8, 1)), None, None)
    with torch.no_grad():
        x = pixels(1).float()
        a, b = (m.mask_decoder.predict(m.share(m.image_encoder(x)), sparse, slice(1, None))[0] for m in (whole, half))
    assert ((a > 0) == (b > 0)).float().mean() > 0.97
