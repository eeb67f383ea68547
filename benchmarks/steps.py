"""Each step of maskmill's generator on CPU beside its floor: `python -m benchmarks.steps`.

nano at 480 x 640 and 1500 x 2250, and ViT-B with shaped weights at 1500 x 2250; the default settings, one thread. The
clock is this process's CPU time, so other work on the machine changes little. A step's floor is its operations with the
exact savings (flops.py) over what a float32 matrix product reaches in the same CPU time; post, filter and codes have
none: they read a few megabytes. Writes benchmarks/results/steps.json.
"""

import argparse
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import probe
from benchmarks.flops import count
from benchmarks.pictures import picture
from benchmarks.shaped import shaped_model
from benchmarks.turns import CASES, Case
from maskmill import MaskGenerator, load_model
from maskmill.config import resolve
from maskmill.generate.candidates import find_candidates
from maskmill.sam.build import build_sam, load_config
from maskmill.sam.sam import Sam
from tests.parity.machine import machine

RESULT = Path(__file__).parent / "results" / "steps.json"
CPU = torch.device("cpu")


def model_of(case: Case, image: np.ndarray) -> tuple[Sam, tuple[float, float]]:
    """With its weights, and the two thresholds that they are made for."""
    if case.model == "nano":
        own = resolve(model="nano").filter
        return load_model("nano", device="cpu"), (own.pred_iou_thresh, own.stability_score_thresh)
    cfg = load_config(case.model)
    made = build_sam(cfg).eval()
    made.load_state_dict(shaped_model(cfg, image)[0].state_dict())
    return made, (0.88, 0.95)


def gflop_a_second(size: int = 2048) -> float:
    """Of a float32 matrix product, in CPU time, best of five."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    taken = []
    for _ in range(6):
        begun = time.process_time()
        a @ b
        taken.append(time.process_time() - begun)
    return 2e-9 * size**3 / min(taken[1:])


def steps(case: Case, side: int) -> dict[str, Any]:
    """CPU seconds of each step of one image, and the floors of those that compute much."""
    image = picture(0, case.height, case.width)
    model, (iou, stability) = model_of(case, image)
    args: dict[str, Any] = {"pred_iou_thresh": iou, "stability_score_thresh": stability, "output_mode": "coco_rle"}
    generator = MaskGenerator(model, points_per_side=side, **args)
    MaskGenerator(model, points_per_side=2, **args).generate(image)
    missing: list[str] = []
    with probe.watch(CPU, missing, clock=time.process_time) as timeline:
        records = generator.generate(image)
    assert not missing, missing
    few = min(side, 8)
    cfg = replace(generator.generate_config, floor_stability=0.0, points_per_side=few)
    prompts = find_candidates(model, image, cfg).mask_id // 3
    kept = len(np.unique(prompts)) / few**2
    work, rate = count(load_config(case.model)), gflop_a_second()
    floors = {"encode": work.encoder, "decode": work.least_image(0, side**2, kept)}
    return {
        "points": f"{side} x {side}",
        "masks": len(records),
        "cpu_seconds": timeline.seconds(),
        "floor_cpu_seconds": {name: flop / 1e9 / rate for name, flop in floors.items()},
        "prompts_with_a_mask_above_the_gate": kept,
        "matmul_gflop_s": rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="may be repeated")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    for case in CASES:
        if args.case and case.name not in args.case:
            continue
        made = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine()}
        known[case.name] = made | steps(case, args.points_per_side)
        args.out.write_text(json.dumps(known, indent=1) + "\n")
        print(case.name, json.dumps(known[case.name], indent=1), flush=True)


if __name__ == "__main__":
    main()
