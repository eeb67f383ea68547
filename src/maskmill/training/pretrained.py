"""A pre-trained encoder under a fresh mask decoder: SAM begins with an MAE ViT-H (paper, appendix A).

Published MAE weights (He et al., Masked Autoencoders Are Scalable Vision Learners, 2022; facebookresearch/mae) are a
plain ViT's: one row of positions for 224 pixels with a class token before them, and for ViT-H patches of 14 pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmill.errors import UserError
from maskmill.sam.build import parse_weights
from maskmill.sam.image_encoder import ImageEncoderViT
from maskmill.storage.files import at, exists, read_bytes

NAMES = {".mlp.fc1.": ".mlp.lin1.", ".mlp.fc2.": ".mlp.lin2."}  # MAE's -> SAM's
OWN = ("neck.", "detail.")  # parts that no plain ViT has; relative positions too


def load_encoder(encoder: ImageEncoderViT, path: str) -> None:
    """Set an encoder's patch embedding, positions and blocks to those of an MAE checkpoint, in place.

    Positions are interpolated to the encoder's grid, the patch embedding to its patches, so that an even patch is
    embedded as before. Relative positions, which MAE lacks, begin as nothing. The neck stays. UserError, in one line,
    for a file that is none or is of another size.
    """
    state = mae_weights(path)
    want = encoder.state_dict()
    new: dict[str, Tensor] = {}
    for name, old in want.items():
        if name.startswith(OWN):
            new[name] = old
        elif ".rel_pos_" in name:
            new[name] = torch.zeros_like(old)
        elif name not in state:
            raise UserError(
                f"model.encoder {path!r} has no {name!r}: expected an MAE checkpoint of facebookresearch/mae"
            )
        else:
            new[name] = fitted_to(old, state[name], name)
            if new[name].shape != old.shape:
                raise UserError(
                    f"model.encoder {path!r}: {name} is {tuple(state[name].shape)}, expected {tuple(old.shape)}: is it "
                    f"another size (base, large, huge) than the model's?"
                )
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    if len(blocks) != len(encoder.blocks):
        raise UserError(
            f"model.encoder {path!r} has {len(blocks)} blocks, the model {len(encoder.blocks)}: is it another size?"
        )
    encoder.load_state_dict(new)


def mae_weights(path: str) -> dict[str, Tensor]:
    """A checkpoint's tensors by SAM's names; MAE keeps them under `model`. UserError if it cannot be read."""
    found = {}
    for name, value in parse_weights(read_encoder(path), path).items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        found[name] = value
    return found


def read_encoder(path: str) -> bytes:
    """The file. UserError if it is not there."""
    if not exists(at(path)):
        raise UserError(f"model.encoder {path!r} is not a file: expected an MAE checkpoint")
    return read_bytes(at(path))


def fitted_to(own: Tensor, theirs: Tensor, name: str) -> Tensor:
    """Their tensor in the shape of our own where only a grid or a patch differs."""
    if name == "pos_embed" and theirs.ndim == 3:  # 1 x (1 + side * side) x C
        side = int(theirs.shape[1] ** 0.5)  # the class token is left over
        table = theirs[:, theirs.shape[1] - side * side :].reshape(1, side, side, -1)
        return F.interpolate(table.permute(0, 3, 1, 2), own.shape[1:3], mode="bicubic").permute(0, 2, 3, 1)
    if name == "patch_embed.proj.weight" and theirs.shape[2:] != own.shape[2:]:  # C x 3 x patch x patch
        share = theirs.shape[2] * theirs.shape[3] / (own.shape[2] * own.shape[3])
        return F.interpolate(theirs, own.shape[2:], mode="bicubic") * share
    return theirs
