"""Automatic masks on this machine's CPU: maskmill beside its peers, the same weights, images and thresholds.

    python -m benchmarks.generate                              all cases, 32 x 32 points: about 15 minutes on 2 cores
    python -m benchmarks.generate --prompts 8 --turns 1        a quick look: 8 x 8 points
    python -m benchmarks.generate --case nano-480x640

Each generator has a process of its own, and they take turns on every image while the others sleep. Seconds are medians
over images and turns after a warm-up. Also printed: peak memory; GFLOP/s, that is the official code's operations over
the seconds, against what a matrix product reaches here; and the agreement of the masks (benchmarks/agreement.py).
Peers: the official segment-anything, transformers' SamModel pipeline where it is installed. nano has its own weights;
ViT-B has shaped ones (benchmarks/shaped.py). Writes benchmarks/results/generate.json.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.agreement import Agreement, Miss
from benchmarks.flops import count, matmul_tflops
from benchmarks.published import PUBLISHED, table
from benchmarks.turns import CASES, PEERS, Bench, Options
from maskmill.sam.build import load_config
from tests.parity.machine import machine

RESULT = Path(__file__).parent / "results" / "generate.json"


def report(result: dict[str, Any], gflop_s: float) -> str:
    """A case in words."""
    case, peers = result["case"], result["peers"]
    c = result["candidates"]
    kept = c.get("prompts_with_a_candidate", 1.0)
    work, prompts = count(load_config(case["model"])), result["settings"]["points_per_side"] ** 2
    floors = [work.image(1, prompts) / gflop_s / 1e9, work.least_image(1, prompts, kept) / gflop_s / 1e9]
    lines = [f"{case['name']}, {result['prompts']} points, {result['weights']}"]
    for peer, f in peers.items():
        lines.append(
            f"  {peer:13} {f['median_seconds']:8.2f} s  {f['images_s']:7.3f} images/s  peak {f['peak_mb']:6} MB "
            f"({f['loaded_mb']} loaded)  {f['gflop_s']:6.0f} GFLOP/s  {np.mean(f['masks']):.0f} masks"
        )
    lines += [f"  {peer:13} skipped: {why}" for peer, why in result["skipped"].items()]
    lines.append(
        f"  floor         {floors[1]:8.2f} s  ({floors[0]:.2f} s without the exact savings) at {gflop_s:.0f} GFLOP/s"
    )
    if "official" in peers and "maskmill" in peers:
        ratio = peers["official"]["median_seconds"] / peers["maskmill"]["median_seconds"]
        lines.append(f"  maskmill is {ratio:.2f} x as fast as the official generator")
    for peer, a in result["agreement"].items():
        lines.append(f"  official against {peer}: {agreement(a).line('official', peer)}")
        lines += [f"    {miss}" for miss in a["misses"][:20]]
    for peer, extra in result["small_regions"].items():
        if peer in PEERS:
            lines.append(f"  small regions add {extra['adds_seconds']:+.2f} s ({extra['adds_share']:+.1%}) to {peer}")
    if not c:
        return "\n".join(lines)
    lines.append(
        f"  keeping {np.mean(c['candidates']):.0f} candidates above {c['floor'][0]} / {c['floor'][1]} adds "
        f"{c['adds_seconds']:+.2f} s ({c['adds_share']:+.1%})"
    )
    lines.append(
        f"  of all masks pass: IoU {c['pass_iou']:.1%}, stability {c['pass_iou_and_stability']:.1%}, NMS "
        f"{c['pass_nms']:.1%}; active cells {c['look']['active']:.2%}"
    )
    return "\n".join(lines)


def agreement(tree: dict[str, Any]) -> Agreement:
    """Back from JSON."""
    counts = {name: tree[name] for name in ("first", "second", "matched", "identical")}
    return Agreement(**counts, misses=[Miss(**miss) for miss in tree["misses"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="may be repeated")
    parser.add_argument("--prompts", type=int, default=32, metavar="N", help="N x N points; below 32 is a quick look")
    parser.add_argument("--images", type=int, help="images of each case")
    parser.add_argument("--turns", type=int, help="timed turns of each image")
    parser.add_argument(
        "--threads", type=int, default=len(torch.__config__.parallel_info()) and torch.get_num_threads()
    )
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--keep-freed-memory", action="store_true", help="as maskmill's workers do, for every side")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    peers = tuple(args.peers.split(","))
    if unknown := set(peers) - set(PEERS):
        parser.error(f"--peers {args.peers}: unknown {', '.join(unknown)}; known: {', '.join(PEERS)}")
    options = Options(args.prompts, args.images, args.turns, args.threads, peers, args.keep_freed_memory)
    torch.set_num_threads(args.threads)
    gflop_s = 1000 * matmul_tflops(torch.device("cpu"), torch.float32, 2048)
    result: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": {**machine(), "matmul_gflop_s": gflop_s, "keeps_freed_memory": args.keep_freed_memory},
        "published": [asdict(p) for p in PUBLISHED],
        "cases": {},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if args.case and case.name not in args.case:
            continue
        with tempfile.TemporaryDirectory(prefix="maskmill-bench-") as folder:
            result["cases"][case.name] = Bench(case, options, Path(folder)).run()
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(report(result["cases"][case.name], gflop_s), flush=True)
    print("\nPublished by others, on their machines:\n" + table())
    print(f"\n{args.out}")
    unexcused = sum(c["agreement"].get("maskmill", {}).get("unexcused", 0) for c in result["cases"].values())
    if unexcused:
        sys.exit(f"{unexcused} masks differ from the official generator's and are not excused")


if __name__ == "__main__":
    main()
