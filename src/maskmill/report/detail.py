"""What needs pixels: concavity, holes and near-duplicates, on a few thousand masks of a few images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskmill.masks.rle import decode
from maskmill.report.sample import Part, Sample, layer_prompts, to_columns, with_counts
from maskmill.report.stats import SIZE_EDGES, Masks, concavity, hole_share, near_duplicates, stratified
from maskmill.storage.build import Build

MASKS, DECODED = 4000, 1500  # whose RLE is read, and of them those that are decoded
UNITS = 16  # at most so many files are read with their RLE


@dataclass(frozen=True)
class Detail:
    """Masks of a few images with their RLE. `decoded` are the rows whose concavity and hole share are known."""

    masks: Masks
    counts: list[str]
    decoded: np.ndarray  # int64 D: the same number from each size stratum, as far as there are so many
    concavity: np.ndarray  # float64 D
    holes: np.ndarray  # float64 D
    pairs: list[tuple[int, int, float]]  # rows of near-duplicates and their IoU


def read_detail(build: Build, sample: Sample, seed: int = 0) -> Detail:
    """Images at random of some units of the sample, until there are MASKS masks."""
    prompts, rng = layer_prompts(build), np.random.default_rng(seed)
    tables = []
    for part in spread(sample.parts, UNITS):
        rows = with_counts(build, part, None)
        ids, counts = np.unique(rows["image_id"].to_numpy(), return_counts=True)
        order = rng.permutation(len(ids))
        ids, counts = ids[order], counts[order]
        few = ids[: 1 + int(np.searchsorted(np.cumsum(counts), MASKS // min(UNITS, len(sample.parts))))]
        tables.append(rows.filter(pc.is_in(rows["image_id"], pa.array(few))))
    table = pa.concat_tables(tables)
    return look(to_columns(table, prompts), table["counts"].to_pylist(), rng)


def read_extremes(build: Build, sample: Sample, rows: np.ndarray) -> Detail:
    """Single masks of the sample, with their RLE; nothing is decoded."""
    ends = np.cumsum([part.masks.rows for part in sample.parts])
    unit = np.searchsorted(ends, rows, side="right")
    counts: dict[tuple[int, int], str] = {}
    for number in np.unique(unit):
        ids = sample.masks.image_id[rows[unit == number]]
        table = with_counts(build, sample.parts[number], ids.tolist())
        names = zip(table["image_id"].to_pylist(), table["mask_id"].to_pylist(), strict=True)
        counts.update(zip(names, table["counts"].to_pylist(), strict=True))
    masks = sample.masks.take(rows)
    keys = zip(masks.image_id.tolist(), masks.mask_id.tolist(), strict=True)
    nothing = np.zeros(0)
    return Detail(masks, [counts[key] for key in keys], nothing.astype(np.int64), nothing, nothing, [])


def spread(parts: Sequence[Part], count: int) -> list[Part]:
    """`count` of them, evenly."""
    places = np.unique(np.linspace(0, len(parts) - 1, min(count, len(parts))).round().astype(int))
    return [parts[i] for i in places]


def look(masks: Masks, counts: list[str], rng: np.random.Generator) -> Detail:
    """Decode some, compare all with those of the same image."""
    decoded = stratified(np.digitize(masks.relative_size, SIZE_EDGES), DECODED, rng)
    shapes = [shape(masks, counts, int(i)) for i in decoded]
    pairs = []
    for image in np.unique(masks.image_id):
        rows = np.flatnonzero(masks.image_id == image)
        height, width = int(masks.height[rows[0]]), int(masks.width[rows[0]])
        found = near_duplicates(masks.box[rows], [counts[r] for r in rows], height, width)
        pairs += [(int(rows[i]), int(rows[j]), iou) for i, j, iou in found]
    return Detail(
        masks=masks,
        counts=counts,
        decoded=decoded,
        concavity=np.array([s[0] for s in shapes]),
        holes=np.array([s[1] for s in shapes]),
        pairs=sorted(pairs, key=lambda pair: -pair[2]),
    )


def shape(masks: Masks, counts: Sequence[str], i: int) -> tuple[float, float]:
    """Concavity and hole share of mask i."""
    x, y, w, h = (int(v) for v in masks.box[i])
    pixels = decode(counts[i], int(masks.height[i]), int(masks.width[i]))[y : y + h + 1, x : x + w + 1]
    return concavity(pixels), hole_share(pixels)
