"""Builds whose candidates are random blobs and whose masks are what the filter makes of them; no model."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from maskmill.config import FilterConfig, RunConfig, resolve
from maskmill.filters.apply import apply_filter
from maskmill.generate.grids import crop_plan
from maskmill.masks.table import MaskTable
from maskmill.pipeline.engines import Engine
from maskmill.pipeline.engines.local import LocalEngine
from maskmill.pipeline.filtering.filter_drive import run_filter
from maskmill.pipeline.generate import close_build, new_job, open_build
from maskmill.pipeline.recipe import Recipe
from maskmill.pipeline.run import run_tasks
from maskmill.pipeline.unit import Job, Task
from maskmill.storage.build import Build
from tests.chaos.builds import Out
from tests.unit.filters.blobs import blobs

STRICT = FilterConfig(0.6, 0.8, box_nms_thresh=0.5, min_area=20, outermost_thresh=0.9)
LOOSE = FilterConfig(0.25, 0.6, box_nms_thresh=1.0, crop_nms_thresh=1.0)
PLAIN = ("generate.points_per_side=5",)
CROPS = ("generate.points_per_side=4", "generate.crop_n_layers=1")


class BlobSegmenter:
    """Candidates that follow from the pixels; masks by the job's filter, as the real one makes them."""

    def __init__(self, job: Job) -> None:
        self.config = job.config

    def __call__(self, image: np.ndarray, image_id: int) -> tuple[MaskTable, MaskTable]:
        """H x W x 3 uint8 -> up to 25 candidates, and their masks; one image in eight has none."""
        seed = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:4], "big")
        height, width = image.shape[:2]
        candidates = blobs(seed, self.config.generate, 25 if seed % 8 else 0, height, width)
        crops = len(crop_plan(height, width, self.config.generate))
        return candidates, apply_filter(candidates, self.config.filter, crops, image_id)


def blob_job(
    source: Out, out: Out, settings: Sequence[str] = PLAIN, cfg: FilterConfig | None = None
) -> tuple[Job, list[Task]]:
    """A new or continued build, ready to run."""
    config = resolve(assignments=("run.unit_size=3", *settings))
    made = Recipe(replace(config, filter=cfg or config.filter), "fake", str(source), "default", candidates=True)
    opened = open_build(made, out, append=False)
    job = replace(new_job(made, opened.build, "cpu"), segmenter="tests.pipeline.filter_builds:BlobSegmenter")
    return job, [Task(unit) for unit in opened.pending]


def blob_build(source: Out, out: Out, settings: Sequence[str] = PLAIN, cfg: FilterConfig | None = None) -> Build:
    """A whole build."""
    job, tasks = blob_job(source, out, settings, cfg)
    assert not run_tasks(job, tasks, LocalEngine(inside=True), print).left
    assert close_build(out) == "closed"
    return Build(out)


def refilter(build: Build, name: str, cfg: FilterConfig, engine: Engine | None = None) -> int:
    """What `maskmill filter` does."""
    run = RunConfig(max_retries=0, actors=1)
    return run_filter(build, name, cfg, run, engine or LocalEngine(inside=True), quiet=True)


def rows(build: Build, name: str | None = None) -> pa.Table:
    """The masks of a filter, in one order."""
    return build.masks(name).sort_by([("image_id", "ascending"), ("mask_id", "ascending")])


def hashes(build: Build, name: str) -> dict[str, str]:
    """unit -> sha256 of its masks file."""
    table = f"masks/{name}"
    return {m.unit: m.files[table].sha256 for m in build.manifests(table)}


def masks_files(out: Path, name: str) -> set[str]:
    """What lies in the folder of a filter."""
    return {str(p.relative_to(out)) for p in (out / "masks" / name).rglob("*") if p.is_file()}
