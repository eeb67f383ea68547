"""Models by name, and what is said of a weight file that does not fit."""

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from maskmill import load_model
from maskmill.config import read_yaml
from maskmill.errors import UserError
from maskmill.sam.build import build_sam, checkpoint_sha256, load_config, parse_weights


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random nano weights."""
    torch.manual_seed(5)
    return build_sam(load_config("nano")).state_dict()


@pytest.fixture(scope="module")
def pth(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "nano.pth"
    torch.save(state, path)
    return path


def refused(path: Path, *words: str, name: str = "nano") -> None:
    """One line that names the file and has these words."""
    with pytest.raises(UserError) as e:
        load_model(name, checkpoint=path, device="cpu")
    assert "\n" not in str(e.value)
    for word in (str(path), *words):
        assert word in str(e.value)


@pytest.mark.parametrize(("name", "near"), [("vitb", "vit_b"), ("vit-h", "vit_h"), ("nanno", "nano")])
def test_unknown_model_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"^unknown model '{name}': did you mean '{near}'\\?$"):
        load_model(name)


def test_unknown_model_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"known names: .*nano.*vit_b.*vit_h.*vit_l"):
        load_model("zzzz")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_encoder": None}, "'image_encoder' is missing"),
        ({"prompt_encoder": {}}, "'prompt_encoder.mask_in_chans' is missing"),
        ({"image_encoder": {"dept": 3}}, "'image_encoder.dept': did you mean 'depth'"),
        ({"mask_decoder": {"transformer": {"depth": "two"}}}, "'mask_decoder.transformer.depth' is 'two'"),
    ],
)
def test_a_model_file_that_describes_none(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    """One line that names the file and the key."""
    path = tmp_path / "other.yaml"
    tree = read_yaml("model", "nano") | change
    path.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value is not None}))
    with pytest.raises(UserError) as e:
        load_config(str(path))
    assert str(path) in str(e.value) and words in str(e.value) and "\n" not in str(e.value)


def test_unknown_precision_is_refused_before_loading() -> None:
    with pytest.raises(UserError, match="precision is 'fp16': known values: float32, bfloat16, float16"):
        load_model("nano", checkpoint="nowhere.pth", precision="fp16")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_both_formats_load(suffix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    """In eval mode, float32, with every tensor as it was; the checkpoint's sha256 is the file's."""
    path = tmp_path / f"w{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    model = load_model("nano", checkpoint=path, device="cpu")
    assert not model.training and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert checkpoint_sha256("nano", path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_nano_is_in_the_package() -> None:
    assert load_model("nano", device="cpu").name == "nano"
    assert len(checkpoint_sha256("nano")) == 64


def test_half_precision_weights_become_float32(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({k: v.half() for k, v in state.items()}, tmp_path / "half.safetensors")
    model = load_model("nano", checkpoint=tmp_path / "half.safetensors", device="cpu")
    assert all(torch.equal(v, state[k].half().float()) for k, v in model.state_dict().items())


def test_published_weights_must_be_given() -> None:
    with pytest.raises(UserError, match=r"'vit_b' needs .* --checkpoint sam_vit_b_01ec64\.pth"):
        load_model("vit_b")


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.pth", "is not a file")
    refused(tmp_path, "is not a file")


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -1000])
def test_truncated_pth(keep: int, pth: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.pth").write_bytes(pth.read_bytes()[:keep])
    refused(tmp_path / "cut.pth", "cannot be read", "whole .pth")


@pytest.mark.parametrize("keep", [0, 7, 100, 5000, -1000])
def test_truncated_safetensors(keep: int, state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:keep])
    refused(tmp_path / "cut.safetensors", "cannot be read")


@pytest.mark.parametrize(
    "data", [b"<!DOCTYPE html><html>404</html>", b"version https://git-lfs", b"\x80\x02.", b"\0" * 99]
)
def test_no_weights_at_all(data: bytes, tmp_path: Path) -> None:
    """A web page, a Git LFS pointer, an empty pickle, zeros."""
    (tmp_path / "page.pth").write_bytes(data)
    refused(tmp_path / "page.pth", "cannot be read")


class Trap:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self) -> Any:
        return (open, ("/tmp/maskmill-must-not-exist", "w"))


def test_no_code_is_run(tmp_path: Path) -> None:
    torch.save({"a": Trap()}, tmp_path / "trap.pth")
    refused(tmp_path / "trap.pth", "cannot be read")
    assert not Path("/tmp/maskmill-must-not-exist").exists()


@pytest.mark.parametrize("what", [[1, 2], {"model": {"a": 1}, "step": 3}])
def test_another_kind_of_file(what: Any, tmp_path: Path) -> None:
    """A training checkpoint holds more than a state dict."""
    torch.save(what, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", "not a state dict")


def test_foreign_names(tmp_path: Path) -> None:
    torch.save({"backbone.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    refused(tmp_path / "resnet.pth", "not a 'nano' model", "missing", "official names")


def test_one_name_too_many(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({**state, "extra.bias": torch.zeros(3)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "1 are unknown", "extra.bias")


def test_one_name_missing(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({k: v for k, v in state.items() if k != "mask_decoder.iou_token.weight"}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "1 parameters are missing", "mask_decoder.iou_token.weight")


def test_another_size(state: dict[str, Tensor], tmp_path: Path) -> None:
    """All names fit, shapes do not."""
    key = "image_encoder.patch_embed.proj.weight"
    torch.save({**state, key: torch.zeros(1024, 3, 16, 16)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", key, "(1024, 3, 16, 16)", "another size")


def test_nano_weights_are_no_vit_b(pth: Path) -> None:
    refused(pth, "not a 'vit_b' model", "missing", name="vit_b")


def test_damaged_files_are_refused_or_read(pth: Path, tmp_path: Path) -> None:
    """Sixty files with a few bytes overwritten: never another exception."""
    rng, whole = random.Random(0), pth.read_bytes()
    path = tmp_path / "damaged.pth"
    refusals = 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(4):
            at = rng.choice([rng.randrange(2000), len(data) - 1 - rng.randrange(2000), rng.randrange(len(data))])
            data[at] = rng.randrange(256)
        try:
            parse_weights(bytes(data), path)
        except UserError as e:
            assert "\n" not in str(e)
            refusals += 1
    assert refusals > 10
