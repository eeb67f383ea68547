"""The official `segment-anything` package as oracle.

The package imports torchvision, which has no CPU build everywhere. Where it is missing, a few lines stand in for the
four functions that are used; they follow torchvision's own CPU code and share nothing with maskmill's.
"""

import importlib.util
import sys
import types
from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn

from maskmill.sam.sam import ModelConfig


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """torchvision/csrc/ops/cpu/nms_kernel.cpp, line by line."""
    x1, y1, x2, y2 = boxes.unbind(1)
    areas = (x2 - x1) * (y2 - y1)
    order = scores.sort(stable=True, descending=True)[1].tolist()
    suppressed = torch.zeros(len(boxes), dtype=torch.bool)
    keep = []
    for place, i in enumerate(order):
        if suppressed[i]:
            continue
        keep.append(i)
        rest = torch.tensor(order[place + 1 :], dtype=torch.long)
        w = (torch.minimum(x2[i], x2[rest]) - torch.maximum(x1[i], x1[rest])).clamp(min=0)
        h = (torch.minimum(y2[i], y2[rest]) - torch.maximum(y1[i], y1[rest])).clamp(min=0)
        inter = w * h
        suppressed[rest[(inter / (areas[i] + areas[rest] - inter)).double() > iou_threshold]] = True
    return torch.tensor(keep, dtype=torch.long)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """torchvision/ops/boxes.py, the coordinate trick."""
    if boxes.numel() == 0:
        return torch.empty((0,), dtype=torch.int64)
    offsets = idxs.to(boxes) * (boxes.max() + torch.tensor(1).to(boxes))
    return nms(boxes + offsets[:, None], scores, iou_threshold)


def box_area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def module(name: str, **members: object) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__dict__.update(members)
    return made


STAND_IN = [
    module("torchvision"),
    module("torchvision.ops"),
    module("torchvision.ops.boxes", batched_nms=batched_nms, box_area=box_area),
    module("torchvision.transforms"),
    module(
        "torchvision.transforms.functional",
        to_pil_image=Image.fromarray,
        resize=lambda image, size: image.resize((size[1], size[0]), Image.Resampling.BILINEAR),
    ),
]
missing = importlib.util.find_spec("torchvision") is None
if missing:
    sys.modules.update((m.__name__, m) for m in STAND_IN)

import segment_anything.modeling.prompt_encoder as prompt_encoder_module  # noqa: E402
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry  # noqa: E402
from segment_anything.modeling import (  # noqa: E402
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.utils import amg  # noqa: E402
from segment_anything.utils.transforms import ResizeLongestSide  # noqa: E402

if missing:  # other packages look for it, too
    for stand_in in STAND_IN:
        del sys.modules[stand_in.__name__]

__all__ = [
    "ResizeLongestSide",
    "Sam",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "amg",
    "nms",
    "official_sam",
    "prompt_encoder_module",
    "sam_model_registry",
    "shape_weights",
]


def official_sam(cfg: ModelConfig) -> Sam:
    """The official classes with the arguments of `cfg`, as build_sam.py puts them together."""
    enc, dec = cfg.image_encoder, cfg.mask_decoder
    grid = enc.img_size // enc.patch_size
    model = Sam(
        image_encoder=ImageEncoderViT(
            img_size=enc.img_size,
            patch_size=enc.patch_size,
            embed_dim=enc.embed_dim,
            depth=enc.depth,
            num_heads=enc.num_heads,
            mlp_ratio=enc.mlp_ratio,
            out_chans=enc.out_chans,
            qkv_bias=enc.qkv_bias,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=enc.use_rel_pos,
            window_size=enc.window_size,
            global_attn_indexes=enc.global_attn_indexes,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=enc.out_chans,
            image_embedding_size=(grid, grid),
            input_image_size=(enc.img_size, enc.img_size),
            mask_in_chans=cfg.mask_in_chans,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=dec.num_multimask_outputs,
            transformer=TwoWayTransformer(
                depth=dec.transformer.depth,
                embedding_dim=enc.out_chans,
                mlp_dim=dec.transformer.mlp_dim,
                num_heads=dec.transformer.num_heads,
            ),
            transformer_dim=enc.out_chans,
            iou_head_depth=dec.iou_head_depth,
            iou_head_hidden_dim=dec.iou_head_hidden_dim,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    return model.eval()


def shape_weights(model: nn.Module, seed: int) -> None:
    """Seeded random weights in which nothing is zero, so that every parameter shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.abs().sum() == 0 or p.std(unbiased=False) == 0:
                p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p) * 0.1)
