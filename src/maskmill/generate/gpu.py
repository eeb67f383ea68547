"""Low-resolution logits -> candidates at full resolution, on a CUDA device and without full-resolution logits.

The steps are those of SamAutomaticMaskGenerator._process_batch (automatic_mask_generator.py:266-321): stability, box,
crop edge, run-length encoding. All of them stay on the device; the host waits once, for the finished candidates. What
the kernels do, and why their result is that of torch's two interpolations to the bit, is said in triton_kernels.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from maskmill.generate import triton_kernels as kernels
from maskmill.generate import triton_runs as runs
from maskmill.generate.gpu_tables import Tables

WORDS_AT_A_TIME = 1 << 28  # 32-bit words of mask pixels: 1 GiB; beyond that, masks go in several launches
PROGRAMS_A_CORE = 32  # of one warp each: what a multiprocessor holds at a time
CHUNK = 32  # words of a column looked at together


@dataclass(frozen=True)
class Rules:
    """What a mask is measured by, and what it must reach to be a candidate; a floor of 0 is off."""

    threshold: float
    offset: float
    floor: float
    edge_tolerance: float


@dataclass(frozen=True)
class Scored:
    """K masks of one image on the device, as the decoder leaves them. Where `alive` is 0 there is no mask."""

    logits: Tensor  # float32 K x low x low
    alive: Tensor  # bool K: passed the predicted-IoU floor
    iou: Tensor  # float32 K
    ids: Tensor  # int64 K: mask_id
    crop_of: Tensor  # int32 K: row of Tables.crops

    def part(self, piece: slice) -> "Scored":
        return Scored(self.logits[piece], self.alive[piece], self.iou[piece], self.ids[piece], self.crop_of[piece])


@dataclass(frozen=True)
class Measured:
    """The candidates among the masks that went in: n of them, in front of K rows, and room for their run edges.

    columns: int64 K x 10, those of `Candidates` in order up to the box, then where the mask's edges end. `edges` are
    column-major places in the image where a run of a mask begins or ends; what found no room there is lost.
    """

    n: Tensor  # int64, one number
    columns: Tensor
    iou: Tensor  # float32 K
    edges: Tensor  # int32

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.n, self.columns, self.iou, self.edges


@dataclass(frozen=True)
class Pending:
    """Work under way on the device, and what it was given, in case it must be done again with more room."""

    scored: Scored
    tables: Tables
    rules: Rules
    measured: Measured


@dataclass(frozen=True)
class Candidates:
    """N candidates on the host: `Measured` without the spare rows. Mask i has edges[ends[i] : ends[i + 1]]."""

    mask_id: np.ndarray  # int64 N
    crop: np.ndarray  # int64 N: row of Tables.crops
    inner: np.ndarray  # int64 N: pixels above threshold + offset
    outer: np.ndarray  # int64 N: pixels above threshold - offset
    area: np.ndarray  # int64 N
    box: np.ndarray  # int64 N x 4, XYXY inclusive, crop frame; zeros for an empty mask
    iou: np.ndarray  # float32 N
    ends: np.ndarray  # int64 N + 1
    edges: np.ndarray  # int32


def launch(scored: Scored, tables: Tables, rules: Rules) -> list[Pending]:
    """Measure the masks of one image, in as many launches as memory asks for. Nothing here waits for the device."""
    step = max(1, WORDS_AT_A_TIME // tables.words_a_mask)
    parts = [scored.part(slice(start, start + step)) for start in range(0, len(scored.logits), step)]
    return [Pending(part, tables, rules, measure(part, tables, rules)) for part in parts]


def fetch(pending: Sequence[Pending]) -> list[Candidates]:
    """Bring the candidates to the host: one copy of all that may be, without asking first how many, and one wait.

    Masks with more run edges than there was room for are measured again, with as much as they need.
    """
    copies = to_host([p.measured for p in pending])
    done = []
    for p, copy in zip(pending, copies, strict=True):
        n = int(copy.n)
        needed = int(copy.columns[n - 1, -1]) if n else 0
        if needed > len(copy.edges):
            [copy] = to_host([measure(p.scored, p.tables, p.rules, needed)])
        rows = copy.columns[:n].numpy()
        mask_id, crop, inner, outer, area = rows[:, :5].T
        ends = np.append(0, rows[:, 9])
        edges = copy.edges[:needed].numpy()
        done.append(Candidates(mask_id, crop, inner, outer, area, rows[:, 5:9], copy.iou[:n].numpy(), ends, edges))
    return done


def to_host(measured: Sequence[Measured]) -> list[Measured]:
    """Copies, once they are there. The device's other work, this thread's and others', goes on beside them."""
    if not measured or not measured[0].n.is_cuda:
        return list(measured)
    device = measured[0].n.device
    side = side_stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        copies = [Measured(*(part.to("cpu", non_blocking=True) for part in m.parts())) for m in measured]
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(side)
    done.synchronize()
    return copies


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """For copies to the host."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def measure(scored: Scored, tables: Tables, rules: Rules, room: int = 0) -> Measured:
    """Launch everything for the masks of `scored`, at least one. room: for run edges, if more than usual is needed."""
    device, (masks, low, _) = scored.logits.device, scored.logits.shape
    levels = tuple(float(rules.threshold + d) for d in (rules.offset, 0, -rules.offset))
    places = (scored.crop_of, tables.crops)
    alive = scored.alive.to(torch.int32)
    state = torch.empty(masks, tables.max_tiles, dtype=torch.int8, device=device)
    stats = torch.zeros(masks, kernels.STATS.value, dtype=torch.int32, device=device)
    work = torch.empty(masks * tables.max_tiles, dtype=torch.int32, device=device)
    n_work = torch.zeros(1, dtype=torch.int32, device=device)
    words = torch.empty(masks * tables.words_a_mask, dtype=torch.int32, device=device)
    tiles = max(1, 512 // tables.span_x)
    kernels.classify[(masks,)](
        scored.logits, low, alive, *places, tables.ints, state, stats, *levels, tables.max_tiles, tables.span_y,
        TILES=tiles, SPAN_X=tables.span_x,
    )  # fmt: skip
    kernels.list_mixed[(masks,)](
        alive, *places, state, stats, float(rules.floor), work, n_work, tables.max_tiles, TILES=1024
    )
    kernels.evaluate[(programs(device),)](
        work, n_work, scored.logits, low, *places, tables.ints, tables.floats, words, stats, *levels, tables.max_tiles,
        tables.words_a_mask, num_warps=1,
    )  # fmt: skip
    box, keep = judge(scored, stats, alive, tables, rules)
    kept, n = torch.argsort((~keep).byte(), stable=True), keep.sum()
    ends, edges = trace(kept, n, scored, tables, state, words, stats, room or masks * tables.edges_a_mask)
    columns = torch.cat(
        [scored.ids[kept, None], scored.crop_of[kept, None], stats[kept, :3], box[kept], ends[:, None]], dim=1
    )
    return Measured(n, columns, scored.iou[kept], edges)


def judge(scored: Scored, stats: Tensor, alive: Tensor, tables: Tables, rules: Rules) -> tuple[Tensor, Tensor]:
    """Boxes (K x 4, crop frame; 0 for an empty mask) and which masks are stable and off the inner crop edges."""
    inner, outer, area, *corners, _ = stats.unbind(1)
    keep = alive > 0
    if rules.floor > 0:  # inner / outer is what torch gives: float32, rounded once
        keep &= (outer > 0) & (inner / outer.clamp(min=1) >= rules.floor)
    box = torch.stack(corners, dim=1) * (area > 0)[:, None]
    crop = tables.boxes[scored.crop_of]
    placed = box + crop[:, :2].repeat(1, 2)
    at_crop = (placed - crop).abs() <= rules.edge_tolerance
    at_image = (placed - tables.image).abs() <= rules.edge_tolerance
    return box, keep & ~(at_crop & ~at_image).any(dim=1)


def trace(
    kept: Tensor, n: Tensor, scored: Scored, tables: Tables, state: Tensor, words: Tensor, stats: Tensor, room: int
) -> tuple[Tensor, Tensor]:
    """The run edges of the first n masks of `kept`: int64 K ends, and room for the edges."""
    device, masks = kept.device, len(kept)
    counts = torch.zeros(masks, tables.max_across * kernels.SIDE.value, dtype=torch.int32, device=device)
    edges = torch.empty(room, dtype=torch.int32, device=device)
    places = (kept, n, scored.crop_of, tables.crops, state, words)
    sizes = (tables.max_tiles, tables.words_a_mask, tables.max_across)
    grid = (programs(device) // 4,)
    runs.count_edges[grid](*places, stats, counts, *sizes, CHUNK=CHUNK)
    ends = counts.view(-1).cumsum(0).view_as(counts)
    runs.write_edges[grid](*places, counts, ends, edges, room, *sizes, CHUNK=CHUNK)
    return ends[:, -1], edges


def programs(device: torch.device) -> int:
    """How many programs of one warp run at a time; a few where Triton's interpreter runs them one after the other."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count * PROGRAMS_A_CORE
