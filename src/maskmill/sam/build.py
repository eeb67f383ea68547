"""Models by name, and their weights (segment-anything, build_sam.py; published files as they are)."""

import hashlib
import io
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from maskmill.config import PRECISIONS, from_tree, read_yaml
from maskmill.errors import UserError
from maskmill.sam.image_encoder import ImageEncoderConfig
from maskmill.sam.input_size import sized_as
from maskmill.sam.mask_decoder import MaskDecoderConfig
from maskmill.sam.precision import cast
from maskmill.sam.sam import ModelConfig, Sam

WEIGHTS = files("maskmill") / "sam" / "weights"


@dataclass(frozen=True)
class PromptEncoderConfig:
    mask_in_chans: int


@dataclass(frozen=True)
class Architecture:
    """The part of a file of configs/model that says what is built."""

    image_encoder: ImageEncoderConfig
    prompt_encoder: PromptEncoderConfig
    mask_decoder: MaskDecoderConfig


def load_config(name: str) -> ModelConfig:
    """The architecture of model `name`. UserError: no such model, or a file that does not describe one."""
    tree = read_yaml("model", name)
    parts = {f.name: tree[f.name] for f in fields(Architecture) if f.name in tree}
    try:
        made = from_tree(Architecture, parts)
    except UserError as e:
        raise UserError(f"model {name!r}: {e}") from e
    return ModelConfig(
        name=name,
        image_encoder=made.image_encoder,
        mask_decoder=made.mask_decoder,
        mask_in_chans=made.prompt_encoder.mask_in_chans,
        checkpoint=tree.get("checkpoint", ""),
    )


def build_sam(cfg: ModelConfig) -> Sam:
    """A model with fresh random weights."""
    return Sam(cfg)


def load_model(
    name: str = "nano",
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    precision: str = "float32",
) -> Sam:
    """A model ready for inference (eval mode).

    Args:
        name: a file of configs/model; `nano` has its weights in the package, the others need `checkpoint`.
        checkpoint: Meta's published .pth, or a .safetensors with the same names.
        device: default: the first CUDA GPU, else the CPU.
        precision: float32, bfloat16 or float16; precision.py says what stays float32.
    Raises: UserError, in one line, for an unknown name or precision, or a missing, truncated or foreign file.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}: known values: {', '.join(PRECISIONS)}")
    cfg = load_config(name)
    data = read_checkpoint(cfg, checkpoint)
    state = parse_weights(data, checkpoint or cfg.checkpoint)
    model = build_sam(sized_as(cfg, state))
    check_weights(model, state, str(checkpoint or cfg.checkpoint))
    model.load_state_dict(state)
    return cast(model.eval(), precision).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def checkpoint_sha256(name: str, checkpoint: str | Path | None = None) -> str:
    """The sha256 of the weight file: the model's identity in a build. Refuses what `load_model` would refuse."""
    cfg = load_config(name)
    data = read_checkpoint(cfg, checkpoint)
    state = parse_weights(data, checkpoint or cfg.checkpoint)
    with torch.device("meta"):
        model = build_sam(sized_as(cfg, state))
    check_weights(model, state, str(checkpoint or cfg.checkpoint))
    return hashlib.sha256(data).hexdigest()


def read_checkpoint(cfg: ModelConfig, checkpoint: str | Path | None) -> bytes:
    """The bytes of the weight file: the given one, or the one in the package."""
    if checkpoint is None:
        packed = WEIGHTS / cfg.checkpoint
        if packed.is_file():
            return packed.read_bytes()
        raise UserError(
            f"model {cfg.name!r} needs its published weights: pass --checkpoint {cfg.checkpoint} "
            f"(`maskmill models` says where to get it)"
        )
    path = Path(checkpoint)
    if not path.is_file():
        raise UserError(f"checkpoint {str(path)!r} is not a file: expected weights of {cfg.name!r} ({cfg.checkpoint})")
    return path.read_bytes()


def parse_weights(data: bytes, path: str | Path) -> dict[str, Any]:
    """The state dict in a .pth (weights only: no code is run) or a .safetensors file."""
    try:
        if str(path).endswith(".safetensors"):
            return load_safetensors(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged pickle can raise anything: IndexError, TypeError, ...
        reason = str(e).strip().splitlines()[0][:120] if str(e).strip() else type(e).__name__
        raise UserError(
            f"checkpoint {str(path)!r} cannot be read ({reason}): expected a whole .pth state dict or .safetensors file"
        ) from e
    if isinstance(state, dict) and isinstance(state.get("model"), dict):  # as training scripts save it
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"checkpoint {str(path)!r} holds {type(state).__name__}, not a state dict of tensors")
    return state


def check_weights(model: Sam, state: dict[str, Any], path: str) -> None:
    """Refuse a state dict unless every name and shape is the model's."""
    want = model.state_dict()
    missing, foreign = sorted(want.keys() - state.keys()), sorted(state.keys() - want.keys())
    shapes = [k for k in want.keys() & state.keys() if want[k].shape != state[k].shape]
    if missing or foreign:
        what = f"{len(missing)} parameters are missing" if missing else f"{len(foreign)} are unknown"
        raise UserError(
            f"checkpoint {path!r} is not a {model.name!r} model: {what} (first: {(missing or foreign)[0]}); "
            f"expected {len(want)} parameters with the official names"
        )
    if shapes:
        k = min(shapes)
        raise UserError(
            f"checkpoint {path!r} is not a {model.name!r} model: {k} is {tuple(state[k].shape)}, "
            f"expected {tuple(want[k].shape)}; is it another size (vit_b, vit_l, vit_h)?"
        )
