"""Full resolution on CPU against the official two interpolations: counts, stability, box, area and runs, to the bit."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskmill.config import GenerateConfig
from maskmill.generate import fullres
from maskmill.generate.fullres import full_resolution, score_masks
from maskmill.generate.grids import Crop
from maskmill.masks.rle import decode
from maskmill.masks.table import MaskTable
from maskmill.sam.sam import Sam
from tests.parity.official import Sam as OfficialSam

CFG = GenerateConfig(floor_pred_iou=0.0, floor_stability=0.0, crop_edge_tolerance=0.0)


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """torch picks its kernel by the number of threads, and the kernels round in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def noise(seed: int, masks: int, side: int, blur: float, scale: float, shift: float) -> Tensor:
    """Gaussian noise, smoothed: float32 masks x side x side."""
    x = np.random.default_rng(seed).normal(size=(masks, side, side)).astype(np.float32)
    if blur:
        x = np.stack([cv2.GaussianBlur(m, (0, 0), blur) for m in x]).reshape(x.shape)
    return torch.from_numpy((x / max(x.std(), 1e-6) * scale + shift).astype(np.float32))


def whole(height: int, width: int) -> Crop:
    return Crop(0, 0, (0, 0, width, height), np.zeros((1, 2)), 0)


def by_official(low: Tensor, img_size: int, crop: Crop, height: int, width: int, cfg: GenerateConfig) -> MaskTable:
    """postprocess_masks of segment-anything on masks three by three, as its generator calls it."""
    model: Any = SimpleNamespace(image_encoder=SimpleNamespace(img_size=img_size))
    size = Sam.input_size(SimpleNamespace(img_size=img_size), crop.height, crop.width)  # type: ignore[arg-type]
    full = OfficialSam.postprocess_masks(model, low.unflatten(0, (-1, 3)), size, (crop.height, crop.width))
    return score_masks(full.flatten(0, 1), torch.zeros(len(low)), torch.arange(len(low)), crop, height, width, cfg)


def by_ours(low: Tensor, img_size: int, crop: Crop, height: int, width: int, cfg: GenerateConfig) -> MaskTable:
    model: Any = SimpleNamespace(img_size=img_size)
    size = Sam.input_size(model, crop.height, crop.width)
    scored = low, torch.zeros(len(low)), torch.arange(len(low))
    crop = replace(crop, points=np.zeros((len(low), 2)))
    return MaskTable.concat(height, width, list(full_resolution(model, scored, crop, size, height, width, cfg)))


def same(low: Tensor, img_size: int, crop: Crop, height: int, width: int, cfg: GenerateConfig) -> MaskTable:
    """Both ways, compared; returns ours."""
    theirs = by_official(low, img_size, replace(crop, points=np.zeros((len(low), 2))), height, width, cfg)
    ours = by_ours(low, img_size, crop, height, width, cfg)
    for name, column in theirs.columns().items():
        if name != "masks":
            mine: Any = getattr(ours, name)
            assert mine.dtype == column.dtype and np.array_equal(mine, column), name  # type: ignore[union-attr]
    assert [ours.counts(i) for i in range(len(ours))] == [theirs.counts(i) for i in range(len(theirs))]
    return ours


sizes = st.one_of(st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.integers(1, 400)] * 2))


@settings(max_examples=120, deadline=None)
@given(st.data(), sizes, st.integers(1, 16), st.integers(0, 2**32 - 1))
def test_equal_to_the_bit(data: st.DataObject, size: tuple[int, int], grid: int, seed: int) -> None:
    """Any size up and down, any crop, smooth and rough logits, with and without exact ties."""
    blur, scale = data.draw(st.sampled_from([0.0, 1.0, 3.0])), data.draw(st.sampled_from([1e-4, 0.5, 3.0, 200.0, 1e7]))
    low = noise(seed, 6, 4 * grid, blur, scale, data.draw(st.sampled_from([-4.0, -1.0, 0.0, 3.0, 20.0])))
    if data.draw(st.booleans()):
        low = low.round()  # logits that lie on a threshold, and cells that do from end to end
    x, y, right, below = (data.draw(st.sampled_from([0, 0, 7])) for _ in range(4))
    crop = Crop(0, 0, (x, y, x + size[1], y + size[0]), np.zeros((1, 2)), 0)
    offset, floor = data.draw(st.sampled_from([0.0, 0.5, 1.0])), data.draw(st.sampled_from([0.0, 0.5, 0.9]))
    cfg = replace(CFG, stability_score_offset=offset, floor_stability=floor)
    same(low, 16 * grid, crop, y + size[0] + below, x + size[1] + right, cfg)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch runs without FMA: fullres.py")
@settings(max_examples=8, deadline=None)
@given(st.sampled_from([(90, 130), (31, 50), (200, 20), (64, 64), (150, 400)]), st.integers(0, 2**32 - 1))
def test_last_bit_of_a_logit(size: tuple[int, int], seed: int) -> None:
    """A threshold laid on one pixel's logit: one bit more in ours, and it is counted. Both steps, torch's own bits."""
    low, crop = noise(seed, 3, 24, 2.0, 4.0, 0.0), whole(*size)
    model: Any = SimpleNamespace(image_encoder=SimpleNamespace(img_size=96))
    full = OfficialSam.postprocess_masks(model, low[None], Sam.input_size(SimpleNamespace(img_size=96), *size), size)  # type: ignore[arg-type]
    logits = full[full > 0].numpy()
    for value in np.random.default_rng(seed).choice(logits, 40):
        same(low, 96, crop, *size, replace(CFG, stability_score_offset=float(value)))


@pytest.mark.parametrize(("height", "width"), [(480, 640), (1500, 2250), (2001, 333)])
@pytest.mark.parametrize("scale", [2.0, 10.0])
def test_real_sizes(height: int, width: int, scale: float) -> None:
    low = noise(height, 3, 256, 12.0, scale, -scale)
    got = same(low, 1024, whole(height, width), height, width, CFG)
    assert len(got) == 3 and (got.area > 100).all()


def test_no_full_resolution_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPU nothing is interpolated as a whole; float64 takes the plain path, with the same masks."""
    low = noise(0, 6, 64, 4.0, 6.0, -2.0)
    args = 256, whole(300, 420), 300, 420, CFG
    double = Sam.postprocess_masks
    plain: Any = SimpleNamespace(img_size=256, postprocess_masks=lambda *a: double(plain, *a))
    scored = low.double(), torch.zeros(6), torch.arange(6)
    crop = replace(args[1], points=np.zeros((6, 2)))
    (want,) = full_resolution(plain, scored, crop, (183, 256), 300, 420, CFG)
    monkeypatch.setattr(torch.nn.functional, "interpolate", None)
    got = by_ours(low, *args)
    assert np.abs(got.area - want.area).max() <= 2  # a pixel at a threshold may flip
    assert len(got) == 6 and (got.area > 0).all()
    with pytest.raises(TypeError):
        list(full_resolution(plain, scored, crop, (183, 256), 300, 420, CFG))


def test_unstable_masks_are_given_up() -> None:
    """Whatever the floor, those that reach it are those whose stability does, with the same rows."""
    low = torch.cat([noise(i, 3, 32, 2.0, s, -1.0) for i, s in enumerate([0.5, 1.0, 2.0, 4.0, 8.0, 50.0])])
    crop = whole(200, 300)
    everything = same(low, 128, crop, 200, 300, CFG)
    kept = []
    for floor in sorted({*everything.stability_score.tolist(), 0.5, 0.99}):
        got = same(low, 128, crop, 200, 300, replace(CFG, floor_stability=floor))
        assert got.mask_id.tolist() == np.flatnonzero(everything.stability_score >= np.float32(floor)).tolist()
        kept.append(len(got))
    assert kept[0] > kept[-1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_logits_that_are_no_numbers(value: float) -> None:
    low = noise(5, 6, 24, 2.0, 5.0, 0.0)
    low[0, 3, 4] = low[1, 0, 0] = low[2, 23, 23] = low[3, 8:11, 5] = low[5] = value
    low[4, 6:] = value
    same(low, 96, whole(77, 130), 77, 130, CFG)
    same(low, 24, whole(24, 24), 24, 24, CFG)


def test_margin_of_rounding() -> None:
    """Large logits beside small ones: what they cost in precision never decides a pixel."""
    for seed in range(5):
        low = noise(seed, 6, 24, 1.5, 1.0, 0.0) * 10.0 ** torch.randint(0, 7, (6, 24, 24), generator=torch.Generator())
        same(low, 96, whole(211, 340), 211, 340, CFG)


def test_rows_do_not_depend_on_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 4: alone, in another order, or a few at a time. In torch's own kernel for small images they do."""
    low = noise(9, 21, 32, 2.0, 4.0, -1.0)
    args = 128, whole(40, 50), 40, 50, CFG
    together = by_ours(low, *args)
    for i in range(len(low)):
        alone = by_ours(low[i : i + 1], *args)
        assert alone.counts(0) == together.counts(i) and alone.stability_score[0] == together.stability_score[i]
    monkeypatch.setattr(fullres, "PIXELS_AT_A_TIME", 5 * 128**2)
    piecewise = by_ours(low, *args)
    assert [piecewise.counts(i) for i in range(21)] == [together.counts(i) for i in range(21)]


def test_no_masks() -> None:
    assert list(full_resolution(SimpleNamespace(img_size=64), (torch.zeros(0, 16, 16), torch.zeros(0),  # type: ignore[arg-type]
                torch.zeros(0, dtype=torch.int64)), whole(40, 50), (51, 64), 40, 50, CFG)) == []  # fmt: skip


def test_all_and_nothing() -> None:
    """A full mask is one run; an empty one has the crop's corner as its box."""
    low = torch.stack([torch.full((16, 16), 9.0), torch.full((16, 16), -9.0), torch.full((16, 16), 0.5)])
    got = same(low, 64, whole(40, 50), 40, 50, CFG)
    assert got.box.tolist() == [[0, 0, 49, 39], [0, 0, 0, 0], [0, 0, 49, 39]]
    assert got.stability_score.tolist() == [1.0, 0.0, 0.0]
    assert decode(got.counts(0), 40, 50).all() and not decode(got.counts(1), 40, 50).any()
