"""The whole generator on a CUDA device: against itself on CPU, and the official generator on the same device."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity.images import rendered

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"points_per_side": 16, "points_per_batch": 128},
    "ragged": {"points_per_side": 10, "points_per_batch": 64},
    "SA-1B": {
        "points_per_side": 16,
        "points_per_batch": 256,
        "crop_n_layers": 2,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 100,
    },
}
AT_LEAST = 16  # masks in all: a comparison of nothing proves nothing


@pytest.fixture(autouse=True)
def plain_float32() -> Iterator[None]:
    """No TF32 in matrix products and convolutions: torch allows it in convolutions unless told otherwise."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        assert not torch.backends.cuda.matmul.allow_tf32
        yield


@pytest.mark.parametrize("setting", SETTINGS)
def test_same_masks(setting: str) -> None:
    """nano's weights, eight images: every mask of one side is a mask of the others; excuses lie within 1e-5."""
    pytest.importorskip("segment_anything")
    from benchmarks.agreement import Agreement, Thresholds, agree
    from maskmill import MaskGenerator
    from tests.parity.official import SamAutomaticMaskGenerator
    from tests.parity.pair import nano_pair, nano_thresholds

    pair = nano_pair()
    args = {"output_mode": "coco_rle", **nano_thresholds(), **SETTINGS[setting]}
    thresholds = Thresholds(**nano_thresholds())
    on_device = copy.deepcopy(pair.ours).cuda()
    generators = {
        "official": SamAutomaticMaskGenerator(pair.official.cuda(), **args),
        "CPU": MaskGenerator(pair.ours, **args),
    }
    total = {name: Agreement() for name in generators}
    for name, image in rendered().items():
        mine = MaskGenerator(on_device, **args).generate(image)
        for peer, generator in generators.items():
            total[peer].add(agree(generator.generate(image), mine, thresholds, name, (peer, "CUDA")))
    for peer, agreement in total.items():
        print(f"{setting}: {agreement.line(peer, 'CUDA')}")
        assert agreement.unexcused == 0, agreement.misses
        assert agreement.matched >= AT_LEAST


def test_neighbours_do_not_matter() -> None:
    """Promise 4: the same rows again, after other images, and from threads that share the device."""
    from concurrent.futures import ThreadPoolExecutor

    from maskmill import load_model
    from maskmill.config import GenerateConfig
    from maskmill.generate.candidates import find_candidates

    model = load_model("nano", device="cuda")
    cfg = GenerateConfig(points_per_side=16, points_per_batch=256, floor_pred_iou=0.25, floor_stability=0.6)
    images = list(rendered().values())
    alone = [find_candidates(model, image, cfg) for image in images]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda image: find_candidates(model, image, cfg), images[::-1]))[::-1]
    for a, b in zip(alone, together, strict=True):
        assert len(a) > 0 and np.array_equal(a.mask_id, b.mask_id)
        assert [a.counts(i) for i in range(len(a))] == [b.counts(i) for i in range(len(b))]
        assert np.array_equal(a.predicted_iou, b.predicted_iou)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device here")
def test_a_second_device() -> None:
    """A model that is not on the current device finds what its twin there finds."""
    from maskmill import load_model
    from maskmill.config import GenerateConfig
    from maskmill.generate.candidates import find_candidates

    cfg = GenerateConfig(points_per_side=16, points_per_batch=256, floor_pred_iou=0.25, floor_stability=0.6)
    one, two = (find_candidates(load_model("nano", device=f"cuda:{i}"), rendered()["odd"], cfg) for i in (0, 1))
    assert len(one) > 0 and np.array_equal(one.mask_id, two.mask_id)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision(precision: str) -> None:
    """Nearly the masks of float32 on the same device."""
    from benchmarks.agreement import Agreement, Thresholds, agree
    from maskmill import MaskGenerator, load_model
    from tests.parity.pair import nano_thresholds

    args: dict[str, Any] = {"points_per_side": 16, "points_per_batch": 256, "output_mode": "coco_rle"}
    plain, half = (load_model("nano", device="cuda", precision=p) for p in ("float32", precision))
    total = Agreement()
    for name, image in rendered().items():
        before, after = (MaskGenerator(m, **args, **nano_thresholds()).generate(image) for m in (plain, half))
        total.add(agree(before, after, Thresholds(**nano_thresholds()), name, ("float32", precision)))
    print(total.line("float32", precision))
    assert total.share >= 0.9 and total.first >= AT_LEAST


def test_waits() -> None:
    """One for each batch of prompts, as tests/unit/generate counts without a device; the last goes by an event."""
    import warnings

    from maskmill import load_model
    from maskmill.config import GenerateConfig
    from maskmill.generate.candidates import find_candidates

    model, image = load_model("nano", device="cuda"), rendered()["odd"]
    cfg = GenerateConfig(points_per_side=16, points_per_batch=64, floor_pred_iou=0.25, floor_stability=0.6)
    find_candidates(model, image, cfg)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            find_candidates(model, image, cfg)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in seen if "synchronizing" in str(w.message)]) == 4, [str(w.message) for w in seen]
