"""The Triton kernels on a CUDA device against torch's own two interpolations on the same device: equal to the bit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskmill.config import GenerateConfig
from maskmill.generate.grids import crop_plan
from maskmill.masks.rle import runs_of
from tests.unit.generate import dense

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
LOW, SQUARE = 256, 1024
SA1B = GenerateConfig(crop_n_layers=2, crop_n_points_downscale_factor=2)


def smooth(n: int, cells: int, seed: int) -> Tensor:
    """Logits n x LOW x LOW with blobs of about LOW / cells."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 1, cells, cells, generator=generator) * 12
    return F.interpolate(coarse, (LOW, LOW), mode="bicubic")[:, 0].contiguous().cuda()


def interpolated(logits: Tensor, input_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Sam.postprocess_masks for one mask."""
    middle = F.interpolate(logits[None, None], (SQUARE, SQUARE), mode="bilinear", align_corners=False)
    middle = middle[..., : input_size[0], : input_size[1]]
    return F.interpolate(middle, size, mode="bilinear", align_corners=False)[0, 0]


def test_torch_interpolates_as_the_oracle_says() -> None:
    """The order of the operations in torch's kernel, read from its machine code, holds for the torch that is here."""
    logits = smooth(1, 32, 0)[0]
    for n_out in ((1024, 1024), (1500, 2250), (480, 640), (255, 257)):
        theirs = F.interpolate(logits[None, None], n_out, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
        assert np.array_equal(theirs, dense.interpolate(logits.cpu().numpy(), *n_out)), n_out


@pytest.mark.parametrize("size", [(1500, 2250), (480, 640), (97, 131), (3000, 40), (2112, 4096)], ids=str)
@pytest.mark.parametrize("cells", [6, 64])
def test_equal_to_the_bit(size: tuple[int, int], cells: int) -> None:
    """Counts, area, box and runs of every mask in every crop; blobs, and noise that overflows the room for runs."""
    from maskmill.generate import gpu
    from maskmill.generate.gpu_tables import CropSize, make_tables

    plan = [crop for crop in crop_plan(*size, SA1B) if crop.box[2] > crop.box[0] and crop.box[3] > crop.box[1]]
    scales = [SQUARE / max(crop.height, crop.width) for crop in plan]
    crops = tuple(
        CropSize(c.box, (max(1, int(c.height * s + 0.5)), max(1, int(c.width * s + 0.5))))
        for c, s in zip(plan, scales, strict=True)
    )
    n = 2 * len(crops)
    logits = smooth(n, cells, size[0])
    crop_of = torch.arange(n, dtype=torch.int32).cuda() % len(crops)
    scored = gpu.Scored(
        logits, torch.ones(n, dtype=torch.bool).cuda(), torch.rand(n).cuda(), torch.arange(n).cuda(), crop_of
    )
    tables = make_tables(size, crops, LOW, SQUARE, logits.device)
    [got] = gpu.fetch(gpu.launch(scored, tables, gpu.Rules(0.0, 1.0, 0.0, -1.0)))
    assert got.mask_id.tolist() == list(range(n))
    for i in range(n):
        crop = crops[i % len(crops)]
        height, width = crop.box[3] - crop.box[1], crop.box[2] - crop.box[0]
        full = interpolated(logits[i], crop.input_size, (height, width))
        counts = [int((full > level).sum()) for level in (1, -1, 0)]
        mask = (full > 0).cpu().numpy()
        edges = got.edges[got.ends[i] : got.ends[i + 1]]
        assert [got.inner[i], got.outer[i], got.area[i]] == counts
        assert dense.runs_from(edges, size) == runs_of(mask, crop.box[0], crop.box[1], *size).tolist()
        y, x = np.nonzero(mask)
        assert got.box[i].tolist() == ([x.min(), y.min(), x.max(), y.max()] if len(x) else [0, 0, 0, 0])


def test_floor_drops_what_torch_would_drop() -> None:
    """Among 400 masks, those whose float32 stability reaches the floor, most of the others by their tiles alone."""
    from maskmill.generate import gpu
    from maskmill.generate.gpu_tables import CropSize, make_tables

    size, crop = (480, 640), CropSize((0, 0, 640, 480), (768, 1024))
    logits = smooth(400, 6, 1) * torch.linspace(0.2, 8, 400).cuda()[:, None, None]
    scored = gpu.Scored(
        logits, torch.arange(400).cuda() % 5 > 0, torch.rand(400).cuda(), torch.arange(400).cuda(),
        torch.zeros(400, dtype=torch.int32).cuda(),
    )  # fmt: skip
    tables = make_tables(size, (crop,), LOW, SQUARE, logits.device)
    [got] = gpu.fetch(gpu.launch(scored, tables, gpu.Rules(0.0, 1.0, 0.9, -1.0)))
    full = torch.stack([interpolated(x, crop.input_size, size) for x in logits])
    stability = (full > 1).sum((1, 2)) / (full > -1).sum((1, 2))
    expected = [i for i in range(400) if i % 5 and stability[i] >= 0.9]
    assert got.mask_id.tolist() == expected and 20 < len(expected) < 300


def test_nothing_waits_for_the_device() -> None:
    """Everything up to the fetch only queues work: torch raises where something would wait."""
    from maskmill.generate import gpu
    from maskmill.generate.gpu_tables import CropSize, make_tables

    logits = smooth(12, 6, 2)
    mask = torch.ones(12, dtype=torch.bool).cuda()
    ids, crop_of = torch.arange(12).cuda(), torch.zeros(12, dtype=torch.int32).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        tables = make_tables((481, 643), (CropSize((0, 0, 643, 481), (766, 1024)),), LOW, SQUARE, logits.device)
        scored = gpu.Scored(logits, mask, logits[:, 0, 0], ids, crop_of)
        pending = gpu.launch(scored, tables, gpu.Rules(0.0, 1.0, 0.5, -1.0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(gpu.fetch(pending)[0].mask_id) > 0
