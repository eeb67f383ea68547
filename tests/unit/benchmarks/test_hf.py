"""transformers' pipeline gives the official masks from the same weights, so a comparison of speed is fair."""

import numpy as np
import pytest
import torch

from benchmarks import hf
from benchmarks.agreement import Thresholds, agree
from benchmarks.gpu_subject import tiny_config
from benchmarks.pictures import picture
from benchmarks.shaped import shaped_model
from tests.parity.official import SamAutomaticMaskGenerator, official_sam


def test_every_name_is_renamed() -> None:
    """Not one official name is left where transformers has another; two never become one."""
    state = official_sam(tiny_config("vit_b")).state_dict()
    renamed = hf.hf_weights(state)
    assert len(renamed) == len(state) + 1
    assert not [name for name in renamed if "image_encoder" in name or "upscaling" in name]


@pytest.mark.skipif(bool(hf.missing_for_transformers()), reason="transformers is not installed")
def test_the_same_masks() -> None:
    cfg, image = tiny_config("vit_b"), picture(0, 90, 135)
    model, _ = shaped_model(cfg, image)
    settings = {"points_per_side": 6, "points_per_batch": 12}
    theirs = SamAutomaticMaskGenerator(model, output_mode="coco_rle", **settings).generate(image)
    records = hf.transformers(cfg, model.state_dict(), torch.device("cpu"))(np.ascontiguousarray(image), settings)
    assert agree(theirs, records, Thresholds()).unexcused == 0
    assert len(theirs) == len(records) > 0
