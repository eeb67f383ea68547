"""What a filter rerun costs, beside making the masks anew: the same images, the same machine, the same run.

`python -m benchmarks.filter` (about 10 minutes on 2 cores): builds the demo's images with nano by one worker, blows the
build up to a million candidates (each unit copied under other keys, every id made anew), and filters the big one with
`maskmill filter` by one local worker and by Ray on all cores. Then every other rule on a twentieth of it. Seconds are
those of the workers, so Ray's start and the driver are left out; walls are given beside them.
Results: benchmarks/results/filter.json.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.builds import PeakMemory
from maskmill.pipeline.demo import demo_images, pack
from maskmill.pipeline.plan import Unit, read_plan, write_plan
from maskmill.storage.build import Build
from maskmill.storage.files import at, parquet_bytes, to_json, write_bytes
from maskmill.storage.ledger import DataFile, Ledger, hash_keys
from maskmill.storage.sources import image_id
from tests.parity.machine import machine

RESULTS = Path(__file__).parent / "results" / "filter.json"
MAIN = ("filter.pred_iou_thresh=0.5", "filter.stability_score_thresh=0.8", "filter.max_area_share=0.95")
RULES = {
    "box nms": (),
    "mask nms": ("filter.nms_overlap=mask",),
    "mask nms, nested": ("filter.nms_overlap=mask", "filter.nms_ios_thresh=0.9"),
    "outermost": ("filter.outermost_thresh=0.9",),
    "small regions": ("filter.min_mask_region_area=100",),
    "shared pixels": ("filter.shared_pixels=smallest",),
    "at the floor, no nms": (
        "filter.pred_iou_thresh=0.25", "filter.stability_score_thresh=0.6", "filter.box_nms_thresh=1",
    ),
}  # fmt: skip


def blow_up(build: Build, out: Path, copies: int) -> Build:
    """The build `copies` times: key `K` becomes `K~n`, and all ids follow from the new keys."""
    shutil.copytree(
        str(build.path), out, ignore=shutil.ignore_patterns("images", "candidates", "masks*", "plan.parquet")
    )
    plan = {unit.unit: unit for unit in read_plan(build.path / "plan.parquet")}
    units: list[Unit] = []
    for manifest in build.manifests():
        tables = {name: build.read_unit(manifest, name) for name in manifest.files}
        old = tables["images"]["image_id"].to_numpy()
        shards, keys = (tables["images"][name].to_pylist() for name in ("shard", "key"))
        for copy in range(copies):
            name = f"{len(units):06d}"
            new_keys = [f"{key}~{copy}" for key in keys]
            new = np.array([image_id(s, k) for s, k in zip(shards, new_keys, strict=True)], np.int64)
            order = np.argsort(old)
            files = {}
            for table, rows in tables.items():
                ids = new[order][np.searchsorted(old[order], rows["image_id"].to_numpy())]
                rows = rows.set_column(0, rows.schema.field("image_id"), pa.array(ids))
                if table == "images":
                    rows = rows.set_column(2, rows.schema.field("key"), pa.array(new_keys))
                data = parquet_bytes(rows, rows.schema.names[: 1 if table == "images" else 2], {})
                files[table] = DataFile.write(at(out), f"{table}/{name}-copied00.parquet", rows.num_rows, data)
            made = replace(manifest, unit=name, attempt="copied00", files=files, key_hash=hash_keys(new_keys))
            assert Ledger(at(out)).commit(made)
            units.append(replace(plan[manifest.unit], unit=name, keys=None))
    write_plan(at(out) / "plan.parquet", units)
    return Build(out)


def refilter(out: Path, name: str, settings: tuple[str, ...], engine: str) -> dict[str, Any]:
    """One `maskmill filter`, with the clock and the memory watched."""
    sets = [word for s in settings for word in ("--set", s)]
    command = [sys.executable, "-m", "maskmill.pipeline.cli", "filter", str(out), "--name", name, "--quiet", *sets]
    begun = time.monotonic()
    process = subprocess.Popen([*command, "--engine", engine])
    memory = PeakMemory(process.pid)
    memory.start()
    assert process.wait() == 0, f"{name} failed"
    wall = time.monotonic() - begun
    manifests = Build(out).manifests(f"masks/{name}")
    images, seconds = sum(m.images for m in manifests), sum(m.seconds for m in manifests)
    later = sorted(manifests, key=lambda m: m.finished)[1:]  # the first unit of a process also loads what is compiled
    return {
        "settings": list(settings), "engine": engine, "masks": sum(m.masks for m in manifests),
        "worker_seconds": round(seconds, 2), "wall_seconds": round(wall, 2),
        "images_a_second_and_core": round(images / seconds, 1), "images_a_second": round(images / wall, 1),
        "images_a_second_after_the_first_unit": round(sum(m.images for m in later) / sum(m.seconds for m in later), 1),
        "peak_mb_largest_process": memory.largest >> 20, "peak_mb_tree": memory.tree >> 20,
    }  # fmt: skip


def generate(source: Path, out: Path, grid: int) -> None:
    """The small build, by one local worker."""
    command = [sys.executable, "-m", "maskmill.pipeline.cli", "generate", str(source), "--out", str(out), "--quiet"]
    settings = ("--set", f"generate.points_per_side={grid}", "--set", "run.unit_size=8")
    subprocess.run([*command, "--engine", "local", "--device", "cpu", *settings], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=1_000_000, help="of the big build, at least")
    parser.add_argument("--engines", default="local,ray")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pack(demo_images(args.images), folder / "in", per_shard=8)
        generate(folder / "in", folder / "small", args.grid)
        small = Build(folder / "small")
        manifests = small.manifests()
        count, candidates = sum(m.images for m in manifests), sum(m.candidates for m in manifests)
        assert candidates and not any(m.quarantined for m in manifests), "see maskmill status: generate failed"
        anew, copies = sum(m.seconds for m in manifests) / count, -(-args.candidates // candidates)
        big, some = blow_up(small, folder / "big", copies), blow_up(small, folder / "some", -(-160 // count))
        totals = [sum(getattr(m, name) for m in big.manifests()) for name in ("images", "candidates")]
        found: dict[str, Any] = {
            "machine": machine(), "images": totals[0], "candidates": totals[1],
            "candidates_an_image": round(candidates / count, 1), "generate_seconds_an_image": round(anew, 3),
            "runs": {},
        }  # fmt: skip
        hashes = []
        for engine in args.engines.split(","):
            run = found["runs"][engine] = refilter(folder / "big", f"main-{engine}", MAIN, engine)
            run["times_faster_than_generate"] = round(anew * run["images_a_second_and_core"], 1)
            hashes.append([f.sha256 for m in big.manifests(f"masks/main-{engine}") for f in m.files.values()])
            print(engine, json.dumps(run), flush=True)
        assert all(h == hashes[0] for h in hashes), "files differ between the engines"
        found["rules"] = {"images": sum(m.images for m in some.manifests())}
        for n, (name, settings) in enumerate(RULES.items()):
            found["rules"][name] = refilter(folder / "some", f"rule{n}", settings, "local")  # one process
            print(name, json.dumps(found["rules"][name]), flush=True)
    args.out.parent.mkdir(exist_ok=True)
    write_bytes(at(args.out), to_json(found))


if __name__ == "__main__":
    main()
