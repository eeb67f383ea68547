"""`maskmill plan`: what would run. One image is segmented for the estimate; nothing is written."""

import os
import time
from collections.abc import Iterator

import numpy as np

from maskmill.config import Config
from maskmill.errors import UserError
from maskmill.generate.grids import crop_plan
from maskmill.pipeline.plan import Unit, make_units
from maskmill.pipeline.unit import Job
from maskmill.pipeline.worker import SamSegmenter
from maskmill.sam.build import checkpoint_sha256
from maskmill.storage.pixels import decode_image
from maskmill.storage.sources import read_items, scan


def estimate(images: str, cfg: Config, device: str | None) -> Iterator[str]:
    """Lines for the screen."""
    found = scan(images)
    units = make_units(found, cfg.run.unit_size)
    counts = [u.count for u in units]
    total = None if None in counts else sum(c for c in counts if c is not None)
    size = sum(u.bytes for u in units)
    yield f"images      {'unknown (remote tars are counted as they are read)' if total is None else total}"
    yield f"input       {found.kind}, {len(found.shards)} shards, {size / 1e9:.3f} GB"
    yield f"units       {len(units)} of at most {cfg.run.unit_size} images"
    job = Job(
        "", "", cfg, cfg.model.name, checkpoint_sha256(cfg.model.name, cfg.model.checkpoint), "default", device, True
    )
    sample = first_image(units, cfg)
    if sample is None:
        yield "estimate    none: no image among the first can be read"
        return
    key, pixels = sample
    segment = SamSegmenter(job)
    crops = crop_plan(pixels.shape[0], pixels.shape[1], cfg.generate)
    begun = time.monotonic()
    candidates, masks = segment(pixels, 0)
    seconds = time.monotonic() - begun
    yield f"model       {cfg.model.name} on {segment.model.device}"
    yield f"per image   {len(crops)} crops, {sum(len(c.points) for c in crops)} prompts"
    yield (
        f"sample      {key} ({pixels.shape[1]}x{pixels.shape[0]}): {seconds:.2f} s, {len(candidates)} candidates, "
        f"{len(masks)} masks"
    )
    if total is not None:
        actors = cfg.run.actors or max(1, (os.cpu_count() or 1) // cfg.generate.threads)
        hours = total * seconds / actors / 3600
        yield f"estimate    {hours:.2f} h with {actors} such actors, {total * len(masks)} masks"


def first_image(units: list[Unit], cfg: Config) -> tuple[str, np.ndarray] | None:
    """The first readable of the first ten images."""
    tried = 0
    for unit in units:
        for item in read_items(unit.kind, unit.url, unit.start, unit.count, unit.keys):
            tried += 1
            try:
                if item.data is not None:
                    return item.key, decode_image(item.data, cfg.generate.max_image_mpx)
            except (UserError, ValueError, OSError):
                pass
            if tried == 10:
                return None
    return None
