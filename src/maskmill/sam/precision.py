"""Half precision for inference: which weights are cast, and which stay float32. Training has autocast instead.

- Encoder: the inputs of its matrix products and convolutions are bfloat16 or float16; what runs from block to block,
  norms, positions and the embedding stay float32.
- Decoder: its transformer and upscaling are float16 in both. They need bits, not range: behind norms all is small, and
  a transformer with the 8 bits of bfloat16 alone costs a tenth of the masks (benchmarks/README.md).
- float32: the codes of coordinates (the prompt encoder), the heads that give the predicted IoU and the masks' weights,
  and the product that makes the logits. So interpolation, thresholds and stability are float32 in every precision.

Weights are cast once; autocast would cast at every call.
"""

import torch
from torch import nn

from maskmill.config import PRECISIONS
from maskmill.sam.sam import Sam

FLOAT32 = ("iou_prediction_head", "output_hypernetworks_mlps")  # of the decoder


def cast(model: Sam, precision: str) -> Sam:
    """The same model with its float32 weights cast in place; "float32" leaves it as it is."""
    assert precision in PRECISIONS and model.precision == "float32", (precision, model.precision)
    model.precision = precision
    if precision == "float32":
        return model
    for module in model.image_encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(getattr(torch, precision))
    for name, part in model.mask_decoder.named_children():
        if name not in FLOAT32:
            part.half()
    return model
