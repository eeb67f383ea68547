"""What a round of the data engine does with a model on a CUDA device: embeds, detects, prompts with boxes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from maskmill.config import GenerateConfig
from maskmill.detect.boxes import Boxes
from maskmill.pipeline.rounds.prepare import boxed_masks
from maskmill.pipeline.rounds.tools import cached_predictor
from maskmill.sam.build import load_model
from maskmill.storage.files import at
from maskmill.training.embeddings import EmbeddingCache
from tests.parity.images import rendered

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def test_boxes_give_the_masks_of_the_cpu(tmp_path: Path) -> None:
    image = next(iter(rendered().values()))
    boxes = Boxes(np.array([[20.0, 20, 90, 80], [60, 30, 150, 110]]), np.array([0.9, 0.8]))
    areas = []
    for device in ("cpu", "cuda"):
        model = load_model("nano", device=device)
        cache = EmbeddingCache(at(str(tmp_path / device)), model, "float32")
        cfg = GenerateConfig(floor_pred_iou=0.0, floor_stability=0.0)
        areas.append(boxed_masks(cached_predictor(model, image, cache), boxes, cfg).area)
    assert len(areas[0]) == len(areas[1]) == 2
    np.testing.assert_allclose(areas[0], areas[1], rtol=0.02)
