"""A segmenter without a model that finds hundreds of masks in an image: what a viewer must stay quick at."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from maskmill.filters.apply import apply_filter
from maskmill.masks.rle import CutMask
from maskmill.masks.table import MaskTable
from maskmill.pipeline.engines.local import LocalEngine
from maskmill.pipeline.generate import close_build, new_job, open_build
from maskmill.pipeline.run import run_tasks
from maskmill.pipeline.unit import Job, Task
from maskmill.storage.build import Build
from tests.pipeline.conftest import config, recipe_for

SEGMENTER = "tests.browser.many:ManySegmenter"
CANDIDATES = 1500  # in a large image


class ManySegmenter:
    """Ellipses of all sizes, large ones below small ones, with random scores above the floor."""

    def __init__(self, job: Job) -> None:
        self.config = job.config

    def __call__(self, image: np.ndarray, image_id: int) -> tuple[MaskTable, MaskTable]:
        """H x W x 3 uint8 -> candidates and what the filter leaves of them."""
        height, width = image.shape[:2]
        rng = np.random.default_rng(height * width)
        n = min(CANDIDATES, height * width // 40)
        radius = np.exp(rng.uniform(np.log(4), np.log(min(height, width) / 2), n))
        boxes, cut = [], []
        for r in radius:
            left, top = int(rng.integers(0, width) - r), int(rng.integers(0, height) - r)
            patch = np.zeros((2 * int(r) + 2, 2 * int(r) + 2), np.uint8)
            axes = (int(r), int(r * rng.uniform(0.3, 1)))
            cv2.ellipse(patch, (int(r), int(r)), axes, rng.uniform(0, 180), 0, 360, 1, -1)
            patch = patch[max(0, -top) : height - top, max(0, -left) : width - left]
            x, y, w, h = cv2.boundingRect(patch)
            inside = patch[y : y + h, x : x + w].astype(bool)
            x, y = x + max(0, left), y + max(0, top)
            boxes.append((x, y, x + w - 1, y + h - 1))
            cut.append(CutMask.cut(inside, x, y, height, width))
        box = np.array(boxes, np.int64)
        candidates = MaskTable(
            height=height,
            width=width,
            mask_id=np.arange(n, dtype=np.int64),
            predicted_iou=rng.uniform(0.26, 1, n).astype(np.float32),
            stability_score=rng.uniform(0.61, 1, n).astype(np.float32),
            box=box,
            area=np.array([int(c.inside().sum()) for c in cut], np.int64),
            point=(box[:, :2] + box[:, 2:]) / 2.0,
            crop_index=np.zeros(n, np.int32),
            crop_box=np.tile(np.array([0, 0, width, height], np.int64), (n, 1)),
            masks=tuple(cut),
        )
        return candidates, apply_filter(candidates, self.config.filter, 1, image_id)


def build_many(images: str | Path, out: str | Path, *settings: str, candidates: bool = True) -> Build:
    """A finished build of `images`."""
    recipe = recipe_for(images, config(*settings), candidates)
    opened = open_build(recipe, out, append=False)
    job = replace(new_job(recipe, opened.build, "cpu"), segmenter=SEGMENTER)
    run_tasks(job, [Task(unit) for unit in opened.pending], LocalEngine(inside=True), print)
    assert close_build(opened.build) == "closed"
    return Build(opened.build)
