"""Embeddings of a frozen encoder, kept on disk: the encoder looks at each image once, whatever the number of epochs.

A file belongs to its pixels, the encoder's weights and its precision, so it can be wrong for none of them; rounds may
share a folder.
"""

import hashlib
import io
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from upath import UPath

from maskmill.sam.sam import Sam
from maskmill.storage.files import read_bytes, write_bytes


def encoder_sha256(model: Sam) -> str:
    """Of the image encoder's weights, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.image_encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class EmbeddingCache:
    """dtype: float32 keeps every bit; float16 halves the space (vit: 2 MB an image) and rounds. precision: in which the
    encoder computes; what another one gave is not taken."""

    def __init__(self, folder: UPath, model: Sam, dtype: str, precision: str = "float32") -> None:
        by = "" if precision == "float32" else f"-by-{precision}"
        self.folder = folder / f"{encoder_sha256(model)[:16]}-{dtype}{by}"
        self.dtype = np.dtype(dtype)
        self.computed = 0

    def get(self, pixels: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """The embedding (1 x C x h x w float32) of uint8 3 x h x w pixels, from the disk or by `make`."""
        digest = hashlib.sha256(str(tuple(pixels.shape)).encode())
        digest.update(pixels.contiguous().numpy().tobytes())
        path = self.folder / f"{digest.hexdigest()[:32]}.npy"
        try:
            data = read_bytes(path)
        except FileNotFoundError:
            data = self.keep(path, make())
        # also the first time it goes through the file's dtype: all epochs see the same numbers
        return torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32))

    def keep(self, path: UPath, embedding: Tensor) -> bytes:
        """Write one file."""
        self.computed += 1
        out = io.BytesIO()
        np.save(out, embedding.detach().float().cpu().numpy().astype(self.dtype), allow_pickle=False)
        write_bytes(path, out.getvalue(), synced=False)
        return out.getvalue()
