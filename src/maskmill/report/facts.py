"""What a report knows of its build: counts from the ledger, columns of a sample, pixels of a few masks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from maskmill.config import FilterConfig, from_tree
from maskmill.errors import UserError
from maskmill.report.detail import Detail, read_detail
from maskmill.report.refilter import Candidates, candidates_of, floors, generate_config, sweep
from maskmill.report.sample import Part, Sample, draw, read_rows, read_sample
from maskmill.report.sections import SCORES
from maskmill.storage.build import Build
from maskmill.storage.files import exists, read_bytes
from maskmill.storage.originals import Originals
from maskmill.storage.schemas import MASKS

ROWS = 1_000_000  # masks and candidates whose columns are read
SWEPT = 20_000  # candidates on which the whole filter is run again for the curves


@dataclass(frozen=True)
class Standing:
    """How far the build is; the plan and the ledger know. `images` is None if the plan cannot say."""

    finished: bool
    units: int
    units_done: int
    images: int | None
    images_done: int
    empty: int
    quarantined: int
    candidates: int
    quarantine: tuple[Mapping[str, str], ...]  # shard, key, error of the first of them


@dataclass(frozen=True)
class Facts:
    """What all sections draw on."""

    build: Build
    filter: str
    cuts: dict[str, Any]  # the filter's settings
    parts: tuple[Part, ...]
    standing: Standing
    sample: Sample
    detail: Detail | None  # None: there is no mask
    originals: Originals


def read_facts(
    build: Build, filter: str, parts: Sequence[Part], standing: Standing, images: str | None = None
) -> Facts:
    """Read the sample. `images`: where the images lie now, if not where the plan says."""
    if not parts:
        raise UserError(f"{str(build.path)!r} has no committed unit yet: there is nothing to report")
    sample = read_sample(build, parts, ROWS)
    detail = read_detail(build, sample) if len(sample.masks) else None
    settings, originals = filter_settings(build, filter), Originals(build, images)
    return Facts(build, filter, settings, tuple(parts), standing, sample, detail, originals)


def filter_settings(build: Build, filter: str) -> dict[str, Any]:
    """The thresholds behind masks/<filter>; empty if they were not kept (an import)."""
    path = build.path / "filters" / f"{filter}.yaml"
    return (yaml.safe_load(read_bytes(path)) or {}) if exists(path) else {}


def swept(facts: Facts) -> tuple[np.ndarray, list[np.ndarray], int]:
    """Thresholds, masks an image for the moved predicted IoU and the moved stability, and on how many images."""
    cfg, lowest = from_tree(FilterConfig, facts.cuts), floors(facts.build)
    images = list(few_candidates(facts))
    marks = [*lowest.values(), *(float(facts.cuts[name]) for _, name, _ in SCORES)]
    points = np.unique(np.concatenate([np.linspace(min(lowest.values()), 1, 21), marks]))
    curves = []
    for _, name, _ in SCORES:
        curve = np.full(len(points), np.nan)
        allowed = points >= lowest[name]
        curve[allowed] = list(sweep(images, cfg, name, points[allowed]))
        curves.append(curve)
    return points, curves, len(images)


def few_candidates(facts: Facts) -> Iterator[Candidates]:
    """Images at random with all their candidates, until there are SWEPT of these."""
    build, sample, read, rng = facts.build, facts.sample, 0, np.random.default_rng(0)
    for part in draw(sample.parts, 1 << 62):
        rows = read_rows(build, part.manifest.files["candidates"], MASKS.names)
        sizes = {r["image_id"]: r for r in sample.images.select(["image_id", "height", "width"]).to_pylist()}
        for image_id in rng.permutation(np.unique(rows["image_id"].to_numpy())).tolist():
            if read >= SWEPT:
                return
            size = sizes[image_id]
            found = candidates_of(rows, image_id, size["height"], size["width"], generate_config(build))
            read += len(found.table)
            yield found
