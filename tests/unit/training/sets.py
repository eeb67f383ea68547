"""A tiny model and tiny annotated sets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskmill.config import from_tree, merge
from maskmill.masks.rle import encode
from maskmill.training.config import TrainConfig

TINY = """
image_encoder: {img_size: 64, patch_size: 16, embed_dim: 32, depth: 2, num_heads: 2, mlp_ratio: 2, out_chans: 32,
  qkv_bias: true, use_rel_pos: true, window_size: 2, global_attn_indexes: [1]}
prompt_encoder: {mask_in_chans: 8}
mask_decoder: {num_multimask_outputs: 3, iou_head_depth: 2, iou_head_hidden_dim: 32,
  transformer: {depth: 2, mlp_dim: 64, num_heads: 4}}
"""


def tiny_model(folder: Path) -> str:
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


def scene(seed: int, height: int = 60, width: int = 80) -> tuple[np.ndarray, list[np.ndarray]]:
    """Three boxes of strong colours on grey, and their masks."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 90, np.uint8) + rng.integers(0, 12, (height, width, 1), np.uint8)
    masks = []
    for i, (x, y) in enumerate(((4, 6), (44, 10), (20, 36))):
        x, y = x + int(rng.integers(0, 8)), y + int(rng.integers(0, 4))
        w, h = int(rng.integers(12, 26)), int(rng.integers(10, 18))
        mask = np.zeros((height, width), bool)
        mask[y : y + h, x : x + w] = True
        image[mask] = np.roll([230, 60, 40], i)
        masks.append(mask)
    return image, masks


def annotation(mask: np.ndarray, number: int) -> dict[str, Any]:
    return {"id": number, "segmentation": {"size": list(mask.shape), "counts": encode(mask)}}


def write_set(folder: Path, count: int, masks: bool = True) -> Path:
    """An SA-1B-style folder of `count` scenes."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        image, found = scene(n)
        Image.fromarray(image).save(folder / f"sa_{n}.png")
        records = [annotation(m, i) for i, m in enumerate(found)] if masks else []
        (folder / f"sa_{n}.json").write_text(json.dumps({"annotations": records}))
    return folder


def training_config(tmp_path: Path, count: int = 3, **changes: Any) -> TrainConfig:
    folder = tmp_path / f"set{count}"
    tree = {
        "model": {"name": tiny_model(tmp_path), "fresh": True, "drop_path": 0.2},
        "data": {"sources": [{"path": str(folder if folder.exists() else write_set(folder, count))}]},
        "prompts": {"clicks": 2},
        "optim": {"lr": 1e-3, "steps": 6, "warmup": 2, "milestones": [5], "images": 2},
        "run": {"device": "cpu", "log_every": 1, "save_every": 2},
    }
    return from_tree(TrainConfig, merge(tree, changes))
