"""The Triton kernels in Triton's interpreter, on CPU. test_triton.py runs this file in a process of its own.

The interpreter has no fused multiply-add (it rounds twice). Tests of exact equality give it one.
"""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskmill.config import GenerateConfig
from maskmill.generate import gpu, gpu_image
from maskmill.generate.candidates import find_candidates
from maskmill.generate.gpu import Candidates, Rules, Scored
from maskmill.generate.gpu_tables import CropSize, Tables, make_tables
from maskmill.generate.grids import crop_plan
from maskmill.masks.rle import compress, decode
from maskmill.sam import mask_decoder
from maskmill.sam.build import build_sam, load_config
from maskmill.sam.sam import Sam
from tests.unit.generate import dense, waits

SQUARE, LOW = 32, 8  # of the encoder's input and of the decoder's logits
CPU = torch.device("cpu")
OFF = Rules(threshold=0.0, offset=1.0, floor=0.0, edge_tolerance=-1.0)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """tl.fma rounds once, as on the device."""
    interpreter = import_module("triton.runtime.interpreter")

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        return interpreter.TensorHandle(dense.fma(x.data, y.data, z.data), x.dtype)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", create_fma)
    yield


def crop_size(x0: int, y0: int, x1: int, y1: int) -> CropSize:
    scale = SQUARE / max(y1 - y0, x1 - x0)
    return CropSize((x0, y0, x1, y1), (int((y1 - y0) * scale + 0.5), int((x1 - x0) * scale + 0.5)))


def blobs(n: int, seed: int, steepness: float = 6) -> Tensor:
    """Smooth logits n x LOW x LOW."""
    coarse = torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * steepness
    return F.interpolate(coarse, (LOW, LOW), mode="bicubic")[:, 0].contiguous()


def scored(logits: Tensor, crop_of: list[int] | None = None) -> Scored:
    n = len(logits)
    crops = torch.tensor(crop_of if crop_of is not None else [0] * n, dtype=torch.int32)
    return Scored(logits, torch.ones(n, dtype=torch.bool), torch.rand(n), torch.arange(n) + 100, crops)


def tables_of(image_size: tuple[int, int], *crops: CropSize) -> Tables:
    return make_tables(image_size, crops, LOW, SQUARE, CPU)


def run(masks: Scored, tables: Tables, rules: Rules) -> Candidates:
    return gpu.fetch(gpu.launch(masks, tables, rules))[0]


def assert_dense(got: Candidates, masks: Scored, crops: tuple[CropSize, ...], image_size: tuple[int, int]) -> None:
    """Everything about each candidate is what the dense computation gives."""
    for i, mask_id in enumerate(got.mask_id):
        source = int(mask_id) - 100
        crop = crops[got.crop[i]]
        assert got.crop[i] == masks.crop_of[source] and got.iou[i] == masks.iou[source]
        logits = dense.full_resolution(masks.logits[source].numpy(), crop, SQUARE)
        runs = dense.runs_from(got.edges[got.ends[i] : got.ends[i + 1]], image_size)
        mine = dense.Dense(int(got.inner[i]), int(got.outer[i]), int(got.area[i]), got.box[i].tolist(), runs)
        assert mine == dense.measure(logits, crop, image_size), f"mask {source}"


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("size", [(40, 52), (64, 33), (19, 25)], ids=str)
def test_equal_to_the_bit(size: tuple[int, int]) -> None:
    """Upsampled and downsampled, heights with and without a rest, next to masks that are full or empty."""
    crop = crop_size(0, 0, size[1], size[0])
    logits = torch.cat([blobs(2, size[0]), torch.full((1, LOW, LOW), 9.0), torch.full((1, LOW, LOW), -9.0)])
    masks = scored(logits)
    got = run(masks, tables_of(size, crop), OFF)
    assert got.mask_id.tolist() == [100, 101, 102, 103] and 0 < got.area[0] < size[0] * size[1]
    assert_dense(got, masks, (crop,), size)


@pytest.mark.usefixtures("fused")
def test_mask_ends_with_its_tile() -> None:
    """The left half of an image: its last run ends at the foot of column 31, where column 32 and a tile begin."""
    crop, logits = crop_size(0, 0, 64, 64), torch.full((1, LOW, LOW), -9.0)
    logits[:, :, : LOW // 2] = 9.0
    got = run(scored(logits), tables_of((64, 64), crop), OFF)
    assert got.edges.tolist() == [0, 32 * 64] and got.box.tolist() == [[0, 0, 31, 63]]


@pytest.mark.usefixtures("fused")
def test_crops_of_one_image() -> None:
    """Each mask is measured in its crop and traced in the image; runs join columns only in a crop of full height."""
    size = (45, 50)
    crops = (crop_size(0, 0, 50, 45), crop_size(0, 0, 30, 28), crop_size(21, 13, 50, 45), crop_size(8, 0, 40, 45))
    full = torch.full((1, LOW, LOW), 9.0)
    masks = scored(torch.cat([full, full, blobs(1, 7), full]), [0, 1, 2, 3])
    got = run(masks, tables_of(size, *crops), OFF)
    assert_dense(got, masks, crops, size)
    assert np.diff(got.ends)[[0, 1, 3]].tolist() == [2, 60, 2]


@pytest.mark.usefixtures("fused")
def test_logits_on_and_near_the_thresholds() -> None:
    """Equal to a threshold is not above it; what lies within rounding of one is evaluated, not decided whole."""
    crop, size = crop_size(0, 0, 40, 40), (40, 40)
    levels = [0.0, 1.0, -1.0, float(np.nextafter(np.float32(1), np.float32(2))), 1 + 2.0**-21]
    masks = scored(torch.stack([torch.full((LOW, LOW), level) for level in levels]))
    assert_dense(run(masks, tables_of(size, crop), OFF), masks, (crop,), size)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(("level", "above"), [(1.640997435897436, 2040), (1.6153846153846154, 2080)])
def test_rounding_below_all_logits(level: float, above: int) -> None:
    """Every logit is the next float above a level, yet some pixels may round down to it: the margin has them evaluated.

    Which of the two products is rounded before the sum decides it: the other order would give 2080 and 2040 pixels.
    """
    size, crop = (40, 52), crop_size(0, 0, 52, 40)
    logits = torch.full((1, LOW, LOW), float(np.nextafter(np.float32(level), np.float32(2))))
    got = run(scored(logits), tables_of(size, crop), replace(OFF, offset=level))
    assert got.inner.tolist() == [above] and got.outer.tolist() == [40 * 52]


@pytest.mark.usefixtures("fused")
def test_not_a_number() -> None:
    """A NaN or an infinity spoils the pixels around it, as in torch, and no others."""
    crop, size = crop_size(0, 0, 40, 40), (40, 40)
    logits = torch.full((2, LOW, LOW), 5.0)
    logits[0, 3, 4], logits[1, 5, 2] = float("nan"), float("inf")
    masks = scored(logits)
    with np.errstate(invalid="ignore"):
        got = run(masks, tables_of(size, crop), OFF)
        assert_dense(got, masks, (crop,), size)
    assert 0 < got.area[0] < 40 * 40


def test_against_torch_within_the_margin() -> None:
    """With two roundings for one, a pixel may flip only where torch's logit lies within 2**-20 of the largest one."""
    crop, size = crop_size(0, 0, 52, 40), (40, 52)
    masks = scored(blobs(3, 3, steepness=40))
    got = run(masks, tables_of(size, crop), OFF)
    for i, logits in enumerate(masks.logits):
        middle = F.interpolate(logits[None, None], (SQUARE, SQUARE), mode="bilinear", align_corners=False)
        theirs = F.interpolate(middle[..., : crop.input_size[0], :], size, mode="bilinear", align_corners=False)[0, 0]
        margin = logits.abs().max() * 2.0**-20
        runs = dense.runs_from(got.edges[got.ends[i] : got.ends[i + 1]], size)
        mine = torch.from_numpy(decode(compress(np.array(runs), *size), *size).copy())
        assert (theirs[mine != (theirs > 0)].abs() <= margin).all()
        for count, threshold in ((got.inner[i], 1), (got.outer[i], -1), (got.area[i], 0)):
            assert abs(int((theirs > threshold).sum()) - count) <= int(((theirs - threshold).abs() <= margin).sum())


@pytest.mark.usefixtures("fused")
def test_floor_and_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped: what the IoU gate or the stability floor drops, the latter by its tiles alone where they decide."""
    size, crop = (40, 52), crop_size(0, 0, 52, 40)
    steep, gentle = blobs(1, 5, steepness=60), torch.full((1, LOW, LOW), 0.5)
    masks = scored(torch.cat([steep, gentle, steep, torch.full((1, LOW, LOW), -9.0)]))
    masks.alive[2] = False
    exact = dense.measure(dense.full_resolution(steep[0].numpy(), crop, SQUARE), crop, size)
    stability = float(np.float32(exact.inner) / np.float32(exact.outer))
    above = float(np.nextafter(np.float32(stability), np.float32(2)))
    evaluated: list[int] = []
    trace = gpu.trace
    monkeypatch.setattr(gpu, "trace", lambda *a: evaluated.append(int(a[1])) or trace(*a))
    for floor, kept in ((stability, [100]), (above, []), (0.0, [100, 101, 103])):
        got = run(masks, tables_of(size, crop), Rules(0.0, 1.0, floor, -1.0))
        assert got.mask_id.tolist() == kept
        assert_dense(got, masks, (crop,), size)
    assert evaluated == [1, 0, 3]


def test_stability_at_the_floor_stays() -> None:
    """>=, also where the tiles alone decide: every pixel is above +1, and the floor is 1."""
    got = run(
        scored(torch.full((1, LOW, LOW), 9.0)), tables_of((40, 52), crop_size(0, 0, 52, 40)), replace(OFF, floor=1.0)
    )
    assert got.mask_id.tolist() == [100] and got.inner.tolist() == got.outer.tolist() == [40 * 52]


@pytest.mark.usefixtures("fused")
def test_masks_at_inner_crop_edges_go() -> None:
    """A box within the tolerance of a crop edge that is no image edge (utils/amg.py:78)."""
    size, crops = (40, 60), (crop_size(0, 0, 32, 32), crop_size(20, 0, 60, 40))
    logits = torch.full((3, LOW, LOW), -9.0)
    logits[0, :3, :3] = logits[1, :3, -3:] = logits[2, :3, :3] = 9.0
    got = run(scored(logits, [0, 0, 1]), tables_of(size, *crops), Rules(0.0, 1.0, 0.0, 4.0))
    assert got.mask_id.tolist() == [100]


@pytest.mark.usefixtures("fused")
def test_more_runs_than_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room is noticed and given; masks beyond the memory limit go in several launches. Same candidates."""
    size, crop = (28, 36), crop_size(0, 0, 36, 28)
    masks, tables = scored(blobs(2, 11, steepness=20)), tables_of(size, crop)
    whole = run(masks, tables, OFF)
    monkeypatch.setattr(gpu, "WORDS_AT_A_TIME", tables.words_a_mask)
    parts = gpu.fetch(gpu.launch(masks, replace(tables, edges_a_mask=3), OFF))
    assert [len(p.mask_id) for p in parts] == [1, 1] and min(np.diff(whole.ends)) > 3
    assert np.array_equal(np.concatenate([p.edges for p in parts]), whole.edges)
    assert np.array_equal(np.concatenate([p.box for p in parts]), whole.box)


# ---- a whole image (gpu_image.py), with a model on CPU


@pytest.fixture(scope="module")
def tiny() -> Sam:
    """nano made smaller, with random weights; its predicted IoUs differ between prompts."""
    cfg = load_config("nano")
    encoder = replace(
        cfg.image_encoder, img_size=SQUARE, embed_dim=32, depth=1, num_heads=2, global_attn_indexes=(0,), out_chans=32
    )
    torch.manual_seed(0)
    model = build_sam(replace(cfg, image_encoder=encoder)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
        model.mask_decoder.iou_prediction_head.layers[-1].bias.add_(5)  # type: ignore[operator]
    return model


@pytest.mark.usefixtures("fused")
def test_whole_image(tiny: Sam) -> None:
    """The same candidates as on CPU, whose decoder takes other prompts at a time."""
    image = np.random.default_rng(0).integers(0, 255, (19, 26, 3), np.uint8)
    cfg = GenerateConfig(
        points_per_side=2, points_per_batch=3, crop_n_layers=1, crop_n_points_downscale_factor=2,
        floor_pred_iou=0.0, floor_stability=0.0, crop_edge_tolerance=0.0,
    )  # fmt: skip
    scores = np.sort(find_candidates(tiny, image, cfg).predicted_iou)
    assert 12 <= len(scores) <= 24
    gap = 4 + int(np.diff(scores[4:9]).argmax())
    settings = replace(cfg, floor_pred_iou=float(scores[gap : gap + 2].mean()))
    mine, other = (f(tiny, image, settings) for f in (gpu_image.find_candidates, find_candidates))
    assert mine.mask_id.tolist() == other.mask_id.tolist() and len(mine) == len(scores) - gap - 1
    for name in ("crop_index", "crop_box", "point"):
        assert np.array_equal(getattr(mine, name), getattr(other, name))
    assert np.abs(mine.predicted_iou - other.predicted_iou).max() < 1e-5
    assert np.abs(mine.stability_score - other.stability_score).max() < 1e-2
    pixels = [[decode(t.counts(i), 19, 26) for i in range(len(t))] for t in (mine, other)]
    assert max((a != b).sum() for a, b in zip(*pixels, strict=True)) <= 2 and np.mean(pixels) > 0.05


def test_the_counter_counts() -> None:
    x = waits.upload(torch.arange(3.0), CPU)
    for work in (lambda: x[x > 1], lambda: x[torch.tensor([0])], lambda: (x + 1).sum().item(), lambda: x.to(CPU)):
        before = waits.waits.total()
        work()
        assert waits.waits.total() > before


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        ({"points_per_batch": 16}, 1),
        ({"points_per_batch": 4}, 4),
        ({"points_per_batch": 16, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}, 3),
    ],
    ids=["default", "small batches", "SA-1B"],
)
def test_waits_of_an_image(settings: dict[str, Any], batches: int, tiny: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host waits for the device once a batch, for what passed the floor, and once for the candidates.

    What `launch` does waits for nothing, and `fetch` once (tests/gpu/test_kernels.py); here they are only counted.
    """
    launched: list[Scored] = []
    fetched: list[int] = []

    def launch(masks: Scored, tables: Tables, rules: Rules) -> list[Scored]:
        assert all(isinstance(x, waits.OnDevice) for x in (masks.logits, masks.alive, masks.iou, masks.ids))
        launched.append(masks)
        return [masks]

    def fetch(pending: list[Scored]) -> list[Candidates]:
        fetched.append(len(pending))
        return []

    monkeypatch.setattr(mask_decoder, "to_device", waits.upload)
    monkeypatch.setattr(gpu_image, "upload", lambda array, device: waits.upload(torch.from_numpy(array), device))
    monkeypatch.setattr(gpu_image, "launch", launch)
    monkeypatch.setattr(gpu_image, "fetch", fetch)
    image = np.random.default_rng(0).integers(0, 255, (19, 26, 3), np.uint8)
    waits.waits.clear()
    gpu_image.find_candidates(tiny, image, GenerateConfig(points_per_side=4, floor_pred_iou=1e-6, **settings))
    assert waits.waits == {"cpu": batches} and fetched == [batches] == [len(launched)]
    assert sum(len(masks.logits) for masks in launched) > 16


@pytest.mark.parametrize("grids", [((), ((0.5, 0.5),)), (((0.5, 0.5),), ()), ((), ())], ids=str)
def test_crops_without_points(grids: Any, tiny: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's grid may be empty, and every one: the prompts are those on CPU."""
    launched: list[int] = []
    monkeypatch.setattr(gpu_image, "launch", lambda masks, *_: launched.extend(masks.ids.tolist()) or [])
    cfg = GenerateConfig(
        points_per_side=None, point_grids=grids, crop_n_layers=1, floor_pred_iou=0.0, floor_stability=0.0,
        crop_edge_tolerance=0.0,
    )  # fmt: skip
    image = np.random.default_rng(0).integers(0, 255, (19, 26, 3), np.uint8)
    gpu_image.find_candidates(tiny, image, cfg)
    assert launched == list(range(3 * (len(grids[0]) + 4 * len(grids[1]))))


def test_crops_share_a_batch() -> None:
    """Crops of a layer go together, at most 16 and as far as their prompts fit; a crop with more is cut."""
    plan = crop_plan(400, 600, GenerateConfig(points_per_side=32, crop_n_layers=2, crop_n_points_downscale_factor=2))
    groups = list(gpu_image.batches(plan, 1024))
    assert [len(group[0].crops) for group in groups] == [1, 4, 16] and [len(group) for group in groups] == [1, 1, 1]
    groups = list(gpu_image.batches(plan, 200))
    assert [len(group[0].crops) for group in groups] == [1, 1, 1, 1, 1, 3, 3, 3, 3, 3, 1]
    assert [len(group) for group in groups] == [6, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1]
    prompts = np.concatenate([batch.prompts() for group in groups for batch in group])
    assert sorted(prompts.tolist()) == list(range(3072))
    few = crop_plan(400, 600, GenerateConfig(points_per_side=2, crop_n_layers=3))
    assert [len(group[0].crops) for group in gpu_image.batches(few, 1024)] == [1, 4, 16, 16, 16, 16, 16]
