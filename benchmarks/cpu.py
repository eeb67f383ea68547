"""MaskGenerator against the official SamAutomaticMaskGenerator, nano's weights in both, on this machine's CPU.

The two take turns on every image, in one process, with the same number of threads; the first turn of each image is a
warm-up, the median of the rest counts. Prints seconds, the ratio (above 1: ours is faster) and how many masks are equal
to the last bit of their RLE, and writes benchmarks/results/cpu-<date>.json with the machine.

    python benchmarks/cpu.py                              three rendered images, 32 x 32 points
    python benchmarks/cpu.py photo.jpg --repeat 5         given images
    python benchmarks/cpu.py --points-per-side 16 --threads 2
"""

import argparse
import json
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the oracle lives with the tests

from maskmill import MaskGenerator  # noqa: E402
from maskmill.pipeline.memory import keep_freed_memory  # noqa: E402
from maskmill.storage.pixels import decode_image  # noqa: E402
from tests.parity.compare import compare  # noqa: E402
from tests.parity.images import rendered  # noqa: E402
from tests.parity.machine import machine  # noqa: E402
from tests.parity.official import SamAutomaticMaskGenerator  # noqa: E402
from tests.parity.pair import nano_pair, nano_thresholds  # noqa: E402

RENDERED = ("small", "odd", "square")


def timed(generator: Any, image: np.ndarray) -> tuple[float, list[dict[str, Any]]]:
    """Seconds and records."""
    begun = time.perf_counter()
    records = generator.generate(image)
    return time.perf_counter() - begun, records


def take_turns(official: Any, ours: Any, image: np.ndarray, repeat: int) -> dict[str, Any]:
    """Medians of `repeat` turns after a warm-up, and the agreement of the masks."""
    seconds: dict[str, list[float]] = {"official": [], "ours": []}
    records: dict[str, list[dict[str, Any]]] = {}
    for turn in range(repeat + 1):
        for name, generator in (("official", official), ("ours", ours)):
            took, records[name] = timed(generator, image)
            seconds[name] += [took] if turn else []
    same = compare(records["official"], records["ours"])
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "size": list(image.shape[:2]),
        "seconds": seconds,
        "median": median,
        "ratio": median["official"] / median["ours"],
        "masks_official": same.official,
        "masks_ours": same.ours,
        "equal_rle": same.equal_rle,
        "max_score_difference": same.score_gap,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGES", help="image files; none: three rendered ones")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3, help="timed turns for each image (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads for both sides (default 1)")
    parser.add_argument("--keep-freed-memory", action="store_true", help="as maskmill's workers do, for both sides")
    args = parser.parse_args()
    if args.keep_freed_memory:
        keep_freed_memory()
    torch.set_num_threads(args.threads)
    images = {p.name: decode_image(p.read_bytes(), max_mpx=400) for p in args.images}
    images = images or {name: image for name, image in rendered().items() if name in RENDERED}
    pair = nano_pair()
    settings = {"points_per_side": args.points_per_side, "output_mode": "coco_rle", **nano_thresholds()}
    official, ours = SamAutomaticMaskGenerator(pair.official, **settings), MaskGenerator(pair.ours, **settings)
    where = {**machine(), "keeps_freed_memory": args.keep_freed_memory}
    result: dict[str, Any] = {"machine": where, "settings": settings, "images": {}}
    for name, image in images.items():
        row = result["images"][name] = take_turns(official, ours, image, args.repeat)
        print(
            f"{name} {row['size'][0]}x{row['size'][1]}: official {row['median']['official']:.2f} s, "
            f"ours {row['median']['ours']:.2f} s, ratio {row['ratio']:.2f}; masks {row['masks_official']} / "
            f"{row['masks_ours']}, equal RLE {row['equal_rle']}",
            flush=True,
        )
    if not any(row["masks_official"] for row in result["images"].values()):
        sys.exit("no image gave a mask: such a ratio says nothing; try other images or more points")
    result["ratio"] = statistics.geometric_mean(row["ratio"] for row in result["images"].values())
    path = ROOT / "benchmarks" / "results" / f"cpu-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"ratio {result['ratio']:.2f} (geometric mean); {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
