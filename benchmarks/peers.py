"""The generators that are measured side by side, each from the same weight file and with the same settings.

Settings are MaskGenerator's keyword arguments. Records are the official generator's with output_mode="coco_rle".
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import hf
from maskmill import MaskGenerator, load_model
from maskmill.config import GenerateConfig
from maskmill.filters.apply import apply_filter
from maskmill.generate.candidates import find_candidates
from maskmill.generate.grids import crop_plan
from maskmill.sam.build import load_config
from maskmill.sam.sam import Sam
from tests.parity import official as oracle

Record = dict[str, Any]
Generate = Callable[[np.ndarray, dict[str, Any]], list[Record]]


def official(name: str, weights: Path, device: str) -> Generate:
    """SamAutomaticMaskGenerator of segment-anything."""
    model = oracle.official_sam(load_config(name))
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.to(device)

    def generate(image: np.ndarray, settings: dict[str, Any]) -> list[Record]:
        generator = oracle.SamAutomaticMaskGenerator(model, output_mode="coco_rle", **settings)
        records: list[Record] = generator.generate(image)
        return records

    return generate


def ours(model: Sam) -> Generate:
    """maskmill's MaskGenerator."""
    return lambda image, settings: MaskGenerator(model, output_mode="coco_rle", **settings).generate(image)


def keep_candidates(model: Sam, image: np.ndarray, settings: dict[str, Any], floor: tuple[float, float]) -> list[int]:
    """What a build does: every candidate above the floor (predicted IoU, stability), coded, then the filter.

    Returns: candidates, those above the filter's stability too, masks, and prompts with a candidate.
    """
    generator = MaskGenerator(model, **settings)
    cfg: GenerateConfig = replace(generator.generate_config, floor_pred_iou=floor[0], floor_stability=floor[1])
    candidates = find_candidates(model, image, cfg)
    for i in range(len(candidates)):
        candidates.counts(i)
    height, width = image.shape[:2]
    masks = apply_filter(candidates, generator.filter_config, len(crop_plan(height, width, cfg)))
    stable = int((candidates.stability_score >= np.float32(settings["stability_score_thresh"])).sum())
    return [len(candidates), stable, len(masks), len(np.unique(candidates.mask_id // 3))]


def transformers(name: str, weights: Path, device: str) -> Generate:
    """transformers' SamModel in its mask-generation pipeline."""
    return hf.transformers(load_config(name), torch.load(weights, map_location="cpu", weights_only=True), device)


def load(peer: str, name: str, weights: Path, device: str) -> tuple[Generate, Sam | None]:
    """A peer by name, ready; and the model, if it is ours."""
    if peer == "maskmill":
        model = load_model(name, checkpoint=weights, device=device)
        return ours(model), model
    return {"official": official, "transformers": transformers}[peer](name, weights, device), None
