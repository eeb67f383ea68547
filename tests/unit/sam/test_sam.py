"""Input size, resizing, padding: the arithmetic of ResizeLongestSide and Sam.preprocess."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskmill.sam.build import build_sam, load_config
from maskmill.sam.sam import Sam
from tests.parity.images import render
from tests.parity.official import ResizeLongestSide


@pytest.fixture(scope="module")
def model() -> Sam:
    return build_sam(load_config("nano")).eval()


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000))
def test_input_size_is_official(model: Sam, height: int, width: int) -> None:
    """Quirk (1.3.1): int(x * scale + 0.5); only a side that would round to nothing is one pixel."""
    theirs = ResizeLongestSide.get_preprocess_shape(height, width, model.img_size)
    assert model.input_size(height, width) == (max(1, theirs[0]), max(1, theirs[1]))
    assert max(model.input_size(height, width)) == model.img_size


@pytest.mark.parametrize("size", [(240, 320), (700, 300), (384, 384), (31, 1000)])
def test_resize_is_pillows_antialiased_bilinear(size: tuple[int, int], model: Sam) -> None:
    """Quirk (1.3.1)."""
    image = render(3, *size)
    ours = model.resize(image)
    height, width = model.input_size(*size)
    assert np.array_equal(ours, ResizeLongestSide(model.img_size).apply_image(image))
    assert np.array_equal(ours, np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)))


def test_padding_is_zero_after_normalisation(model: Sam) -> None:
    """Quirk (1.3.1): the pad lies right and below, and is the mean colour, not black."""
    side = model.img_size
    x = model.preprocess(torch.full((1, 3, 100, side), 255, dtype=torch.uint8))
    assert x.shape == (1, 3, side, side) and (x[:, :, 100:] == 0).all() and (x[:, :, :100] > 2).all()


def test_every_image_size_gives_one_embedding(model: Sam) -> None:
    with torch.inference_mode():
        embedding, size = model.encode(render(3, 9, 700))
    assert embedding.shape == (1, 128, *model.prompt_encoder.image_embedding_size)
    assert size == model.input_size(9, 700)


def test_pixel_statistics_are_not_in_the_state_dict(model: Sam) -> None:
    """As in the official model, whose buffers are not persistent."""
    assert not [k for k in model.state_dict() if "pixel" in k]
