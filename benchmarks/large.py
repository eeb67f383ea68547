"""Memory and time of one very large image: `python -m benchmarks.large`.

A 20,000 x 20,000 image (400 megapixels, 1.2 GB; the most that generate.max_image_mpx allows by default) of tiled noise
and shapes, nano, one thread. Peak memory is that of this process, what the image itself takes included. Writes
benchmarks/results/large.json.
"""

import argparse
import json
import resource
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from benchmarks.sides import forget_peak, memory_mb
from maskmill import load_model
from maskmill.config import resolve
from maskmill.filters.apply import apply_filter
from maskmill.generate.candidates import find_candidates
from maskmill.generate.grids import crop_plan
from maskmill.pipeline.memory import keep_freed_memory
from tests.parity.images import render
from tests.parity.machine import machine

RESULT = Path(__file__).parent / "results" / "large.json"
TILE = 500


def large_image(side: int) -> np.ndarray:
    """uint8 side x side x 3: a scene enlarged to the whole image, under tiles of noise."""
    scene = np.repeat(np.repeat(render(0, TILE, TILE), -(-side // TILE), axis=0), -(-side // TILE), axis=1)
    image = np.ascontiguousarray(scene[:side, :side])
    noise = np.random.default_rng(0).integers(0, 16, (TILE, TILE, 3), np.uint8)
    for y in range(0, side, TILE):
        for x in range(0, side, TILE):
            part = image[y : y + TILE, x : x + TILE]
            part -= np.minimum(part, noise[: part.shape[0], : part.shape[1]])
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20000)
    parser.add_argument("--points-per-side", type=int, default=8)
    parser.add_argument("--crop-layers", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    keep_freed_memory()  # as an actor does
    torch.set_num_threads(1)
    cfg = resolve(model="nano")
    generate = replace(cfg.generate, points_per_side=args.points_per_side, crop_n_layers=args.crop_layers)
    model = load_model("nano", device="cpu")
    find_candidates(model, render(1, 100, 100), replace(generate, points_per_side=1))  # loads what is compiled
    loaded, image = memory_mb("VmRSS"), large_image(args.side)
    forget_peak()
    begun, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    crops = len(crop_plan(args.side, args.side, generate))
    candidates = find_candidates(model, image, generate)
    masks = apply_filter(candidates, cfg.filter, crops)
    counts = sum(len(masks.counts(i)) for i in range(len(masks)))
    figures = {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": resource.getrusage(resource.RUSAGE_SELF).ru_utime - cpu,
        "peak_mb": memory_mb("VmHWM"),
        "image_mb": image.nbytes >> 20,
        "loaded_mb": loaded,
        "crops": crops,
        "candidates": len(candidates),
        "masks": len(masks),
        "rle_bytes": counts,
    }
    print(json.dumps(figures, indent=1))
    name = f"{args.side} x {args.side}, {args.points_per_side} x {args.points_per_side} points"
    name += f", {args.crop_layers} crop layers" if args.crop_layers else ""
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    known[name] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine()} | figures
    args.out.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
