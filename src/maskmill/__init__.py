"""maskmill: a data engine for segmentation masks. SAM's automatic masks over sharded image sets, written to Parquet."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskmill.generate.generator import MaskGenerator
    from maskmill.sam.build import load_model
    from maskmill.sam.predictor import Predictor
    from maskmill.storage.build import Build

__version__ = "0.1.0"
__all__ = ["Build", "MaskGenerator", "Predictor", "load_model"]

# Imported on first use, so that `maskmill status` does not wait for torch.
_HOME = {
    "Build": "maskmill.storage.build",
    "MaskGenerator": "maskmill.generate.generator",
    "Predictor": "maskmill.sam.predictor",
    "load_model": "maskmill.sam.build",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'maskmill' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
