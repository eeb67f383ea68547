"""The whole comparison at the true default grid: `python -m tests.parity.full`.

Eight rendered images (and scikit-image's photographs with --photos) through both generators, each with its own model,
nano's weights, one torch thread, in five settings; then the ViT-B encoder at full size and depth in float64. Prints a
table and what differs; writes benchmarks/results/parity.json after every image, and keeps what other runs wrote there
for other settings. Takes about an hour on one core; --points-per-side 16 a quarter of it.
"""

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from maskmill import MaskGenerator
from maskmill.pipeline.memory import keep_freed_memory
from maskmill.sam.build import load_config
from tests.parity.compare import Comparison, compare
from tests.parity.images import photos, rendered
from tests.parity.machine import machine
from tests.parity.official import SamAutomaticMaskGenerator
from tests.parity.pair import Pair, nano_pair, nano_thresholds, random_pair

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "crop_n_layers=1": {"crop_n_layers": 1},
    "crop_n_layers=2 factor 2": {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2},
    "min_mask_region_area=100": {"min_mask_region_area": 100},
    "points_per_side=10": {"points_per_side": 10},
}
RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "parity.json"


def compare_settings(
    pair: Pair, images: dict[str, Any], settings: list[str], side: int, result: Path
) -> dict[str, Any]:
    """Every image in every setting; the result file grows with each image."""
    totals: dict[str, Any] = {}
    before = json.loads(result.read_text())["settings"] if result.exists() else {}
    for setting in settings:
        total, seconds = Comparison(), [0.0, 0.0]
        made_on = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine()}
        full = side == 32 or "points_per_side" in SETTINGS[setting]
        key = setting if full else f"{setting}, {side} x {side} points"
        for done, (name, image) in enumerate(images.items(), start=1):
            args = {"output_mode": "coco_rle", "points_per_side": side, **nano_thresholds(), **SETTINGS[setting]}
            begun = time.perf_counter()
            theirs = SamAutomaticMaskGenerator(pair.official, **args).generate(image)
            between = time.perf_counter()
            ours = MaskGenerator(pair.ours, **args).generate(image)
            seconds = [seconds[0] + between - begun, seconds[1] + time.perf_counter() - between]
            total.add(compare(theirs, ours, args, name))
            print(f"{setting}: {name} {len(theirs)} / {len(ours)} masks", flush=True)
            figures = {"equal_in_order": total.equal, "score_gap": total.score_gap, "differences": total.differences}
            counts = {"images": done, **total.agreement.tree(), **figures, "seconds_official_ours": seconds}
            totals[key] = counts | made_on
            result.parent.mkdir(parents=True, exist_ok=True)
            result.write_text(json.dumps({"settings": before | totals}, indent=1) + "\n")
    return totals


def vit_b_encoder_gap() -> float:
    """The largest difference of the two full ViT-B encoders, float64, random weights."""
    pair = random_pair(load_config("vit_b"), seed=1)
    x = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with torch.no_grad():
        theirs = pair.official.double().image_encoder(x)
        return float((theirs - pair.ours.double().image_encoder(x)).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="only this one; may be repeated")
    parser.add_argument("--points-per-side", type=int, default=32, help="a smaller grid takes less time")
    parser.add_argument("--photos", action="store_true", help="scikit-image's photographs too")
    parser.add_argument("--no-vit-b", action="store_true", help="leave out the ViT-B encoder (needs 10 GB)")
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    images = {**rendered(), **(photos() if args.photos else {})}
    totals = compare_settings(nano_pair(), images, args.setting or list(SETTINGS), args.points_per_side, args.result)
    print(f"{'setting':26} images  masks official / ours  matched  to the last pixel  unexcused  max score difference")
    for setting, t in totals.items():
        masks, same = f"{t['first']} / {t['second']}", f"{t['matched']:7}  {t['identical']:17}  {t['unexcused']:9}"
        print(f"{setting:26} {t['images']:6}  {masks:>21}  {same}  {t['score_gap']:.3g}")
        lines = [*t["differences"], *map(str, t["misses"])]
        print(*(f"    {line}" for line in lines), sep="\n", end="\n" if lines else "")
    if not args.no_vit_b:
        print(f"ViT-B encoder, 12 blocks, 1024 x 1024, float64: largest difference {vit_b_encoder_gap():.3g}")


if __name__ == "__main__":
    main()
