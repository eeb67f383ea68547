"""transformers' SamModel and its mask-generation pipeline, from weights with the official names."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco

from maskmill.sam.sam import ModelConfig
from tests.parity.official import STAND_IN

Record = dict[str, Any]
Generate = Callable[[np.ndarray, dict[str, Any]], list[Record]]

HF_NAMES = (  # official part of a name -> transformers' part, in this order
    ("image_encoder.", "vision_encoder."),
    ("patch_embed.proj.", "patch_embed.projection."),
    ("vision_encoder.blocks.", "vision_encoder.layers."),
    (".norm_final_attn.", ".layer_norm_final_attn."),
    (".norm", ".layer_norm"),
    ("neck.0.", "neck.conv1."),
    ("neck.1.", "neck.layer_norm1."),
    ("neck.2.", "neck.conv2."),
    ("neck.3.", "neck.layer_norm2."),
    ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    ("point_embeddings.", "point_embed."),
    ("mask_downscaling.0.", "mask_embed.conv1."),
    ("mask_downscaling.1.", "mask_embed.layer_norm1."),
    ("mask_downscaling.3.", "mask_embed.conv2."),
    ("mask_downscaling.4.", "mask_embed.layer_norm2."),
    ("mask_downscaling.6.", "mask_embed.conv3."),
    ("output_upscaling.0.", "upscale_conv1."),
    ("output_upscaling.1.", "upscale_layer_norm."),
    ("output_upscaling.3.", "upscale_conv2."),
)


def transformers(cfg: ModelConfig, state: dict[str, torch.Tensor], device: str | torch.device) -> Generate:
    """The mask-generation pipeline. It has no crops that work, no small regions, one NMS and `>` for stability."""
    why = missing_for_transformers()
    assert not why, why
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import SamModel, pipeline  # type: ignore[import-not-found]

    model = SamModel(hf_config(cfg)).eval()
    model.load_state_dict(hf_weights(state), strict=True)
    processor = hf_processor(cfg.image_encoder.img_size)
    segment = pipeline("mask-generation", model=model, image_processor=processor, device=torch.device(device))
    lend_torchvision()

    def generate(image: np.ndarray, settings: dict[str, Any]) -> list[Record]:
        assert not settings.get("min_mask_region_area") and not settings.get("crop_n_layers"), (
            "the pipeline has neither"
        )
        out = segment(
            Image.fromarray(image),
            points_per_batch=settings.get("points_per_batch", 64),
            points_per_crop=settings.get("points_per_side", 32),
            pred_iou_thresh=settings.get("pred_iou_thresh", 0.88),
            stability_score_thresh=settings.get("stability_score_thresh", 0.95),
            crops_nms_thresh=settings.get("box_nms_thresh", 0.7),
            output_rle_mask=True,
            output_bboxes_mask=True,
        )
        columns = zip(out["rle_mask"], out["bounding_boxes"].tolist(), out["scores"].tolist(), strict=True)
        return [hf_record(*row) for row in columns]

    return generate


def missing_for_transformers() -> str:
    """Why the pipeline cannot run here, or nothing."""
    return "" if importlib.util.find_spec("transformers") else "transformers is not installed"


def lend_torchvision() -> None:
    """The pipeline's last step asks for torchvision, for its NMS; where there is none, the tests' stand-in has one.

    After transformers is imported, which would look for torchvision's transforms, too.
    """
    from transformers.utils import import_utils  # type: ignore[import-not-found]

    if importlib.util.find_spec("torchvision") is None:
        sys.modules.update((m.__name__, m) for m in STAND_IN)
        sys.modules["torchvision"].__spec__ = ModuleSpec("torchvision", None)
        import_utils.is_torchvision_available.cache_clear()


def hf_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Official names -> transformers' names."""
    out = {}
    depth = len([name for name in state if name.startswith("mask_decoder.iou_prediction_head.")]) // 2
    for name, value in state.items():
        for old, new in HF_NAMES:
            name = name.replace(old, new)
        if name.startswith("mask_decoder.") and ("hypernetworks_mlps" in name or "iou_prediction_head" in name):
            name = hf_head_name(name, depth)
        out[name] = value
    out["shared_image_embedding.positional_embedding"] = out["prompt_encoder.shared_embedding.positional_embedding"]
    return out


def hf_head_name(name: str, depth: int) -> str:
    """The layers of the decoder's small networks: the first and the last have names of their own."""
    head, _, layer = name.partition(".layers.")
    number, _, kind = layer.partition(".")
    place = {0: "proj_in", depth - 1: "proj_out"}.get(int(number), f"layers.{int(number) - 1}")
    return f"{head}.{place}.{kind}"


def hf_config(cfg: ModelConfig) -> Any:
    """The architecture as transformers writes it."""
    from transformers import SamConfig

    enc, dec = cfg.image_encoder, cfg.mask_decoder
    vision = {
        "hidden_size": enc.embed_dim,
        "output_channels": enc.out_chans,
        "num_hidden_layers": enc.depth,
        "num_attention_heads": enc.num_heads,
        "image_size": enc.img_size,
        "patch_size": enc.patch_size,
        "mlp_dim": int(enc.embed_dim * enc.mlp_ratio),
        "qkv_bias": enc.qkv_bias,
        "use_rel_pos": enc.use_rel_pos,
        "window_size": enc.window_size,
        "global_attn_indexes": list(enc.global_attn_indexes),
        "num_pos_feats": enc.out_chans // 2,
    }
    prompt = {
        "hidden_size": enc.out_chans,
        "image_size": enc.img_size,
        "patch_size": enc.patch_size,
        "mask_input_channels": cfg.mask_in_chans,
    }
    decoder = {
        "hidden_size": enc.out_chans,
        "mlp_dim": dec.transformer.mlp_dim,
        "num_hidden_layers": dec.transformer.depth,
        "num_attention_heads": dec.transformer.num_heads,
        "num_multimask_outputs": dec.num_multimask_outputs,
        "iou_head_depth": dec.iou_head_depth,
        "iou_head_hidden_dim": dec.iou_head_hidden_dim,
    }
    return SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


def hf_processor(size: int) -> Any:
    """The image processor that resizes with Pillow, as SAM was trained."""
    try:
        processor = importlib.import_module("transformers.models.sam.image_processing_pil_sam").SamImageProcessorPil
    except ImportError:  # transformers 4 has one for Pillow only, by another name
        processor = importlib.import_module("transformers").SamImageProcessor
    return processor(size={"longest_edge": size}, pad_size={"height": size, "width": size})


def hf_record(rle: dict[str, Any], box: list[float], score: float) -> Record:
    """One mask of the pipeline as the official record; what it does not tell is None."""
    height, width = rle["size"]
    segmentation = coco.frPyObjects(rle, height, width)
    return {
        "segmentation": {"size": [height, width], "counts": segmentation["counts"].decode("ascii")},
        "area": int(coco.area(segmentation)),
        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        "predicted_iou": score,
        "stability_score": None,
    }
