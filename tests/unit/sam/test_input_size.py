"""The same weights for an input of another size."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from maskmill.sam.build import checkpoint_sha256, load_model
from maskmill.sam.input_size import resized


def test_the_embedding_is_that_of_the_first_model_at_that_size() -> None:
    model = load_model("nano", device="cpu")
    other = resized(model, 320)
    x = torch.randn(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(other.image_encoder(x), model.image_encoder(x))
    assert other.img_size == 320 and model.img_size != 320 and not other.training


def test_weights_say_their_size(tmp_path: Path) -> None:
    """So a model that was trained at another size is loaded as any other: by its name and its file."""
    other = resized(load_model("nano", device="cpu"), 320)
    path = str(tmp_path / "finer.safetensors")
    save_file(other.state_dict(), path)
    model = load_model("nano", path, device="cpu")
    assert model.img_size == 320 and len(checkpoint_sha256("nano", path)) == 64
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
    assert model.prompt_encoder.image_embedding_size == (20, 20)
