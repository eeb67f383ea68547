"""One image set built several ways: rows must be equal, and here is what each way costs.

    python benchmarks/builds.py IMAGES --set generate.points_per_side=16 --ways ray2,ray1,local,killed

Ways: ray2 and ray1 = Ray with two actors and one; local = in one process; killed = Ray, SIGKILLed with its whole
process group once half of the units are committed, then the same command again. Writes results/builds-NAME.json.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import torch

from maskmill.pipeline.plan import read_plan
from maskmill.storage.build import Build
from maskmill.storage.files import at
from maskmill.storage.ledger import Ledger

WAYS = {
    "ray2": ["--engine", "ray", "--set", "run.actors=2"],
    "ray1": ["--engine", "ray", "--set", "run.actors=1"],
    "local": ["--engine", "local"],
    "killed": ["--engine", "ray", "--set", "run.actors=2"],
}


class PeakMemory(threading.Thread):
    """The largest resident memory of a process tree (shared pages counted in each), and of its largest process."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.tree, self.largest = psutil.Process(pid), 0, 0

    def run(self) -> None:
        while True:
            try:
                sizes = [p.memory_info().rss for p in [self.process, *self.process.children(recursive=True)]]
            except psutil.Error:
                if not self.process.is_running():
                    return
                continue
            self.tree, self.largest = max(self.tree, sum(sizes)), max(self.largest, *sizes)
            time.sleep(0.2)


def start(images: str, out: Path, way: str, assignments: list[str]) -> subprocess.Popen[bytes]:
    """One `maskmill generate` in a process group of its own."""
    sets = [word for a in assignments for word in ("--set", a)]
    command = [sys.executable, "-m", "maskmill.pipeline.cli", "generate", images, "--out", str(out), "--device", "cpu"]
    return subprocess.Popen([*command, *WAYS[way], *sets], start_new_session=True)


def kill_halfway(images: str, out: Path, assignments: list[str]) -> int:
    """SIGKILL a run once half of its units are committed; how many were."""
    process = start(images, out, "killed", assignments)
    ledger, plan = Ledger(at(out)), at(out) / "plan.parquet"
    while not plan.exists() or len(ledger.newest()) * 2 < len(read_plan(plan)):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return len(ledger.newest())


def measure(images: str, out: Path, way: str, assignments: list[str]) -> dict[str, float]:
    """Build once, with the clock and the memory watched."""
    figures: dict[str, float] = {}
    if way == "killed":
        figures["units_committed_at_kill"] = kill_halfway(images, out, assignments)
    begun = time.monotonic()
    process = start(images, out, way, assignments)
    memory = PeakMemory(process.pid)
    memory.start()
    code = process.wait()
    assert code == 0, f"{way}: exit {code}"
    seconds = time.monotonic() - begun
    manifests = Build(out).manifests()
    count = sum(m.images for m in manifests)
    return figures | {
        "images": count,
        "quarantined": sum(m.quarantined for m in manifests),
        "empty": sum(m.empty for m in manifests),
        "candidates": sum(m.candidates for m in manifests),
        "masks": sum(m.masks for m in manifests),
        "seconds": round(seconds, 1),
        "seconds_an_image_and_actor": round(sum(m.seconds for m in manifests) / count, 3),
        "peak_mb_tree": memory.tree >> 20,
        "peak_mb_largest_process": memory.largest >> 20,
    }


def rows(out: Path) -> list[pa.Table]:
    """All tables, sorted."""
    build, both = Build(out), [("image_id", "ascending"), ("mask_id", "ascending")]
    return [build.images().sort_by("image_id"), build.candidates().sort_by(both), build.masks().sort_by(both)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--name", default="images", help="for the result's file name")
    parser.add_argument("--ways", default="ray2,ray1,local,killed")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="maskmill-builds-"))
    results: dict[str, dict[str, float]] = {}
    first: list[pa.Table] | None = None
    for way in args.ways.split(","):
        results[way] = measure(args.images, work / way, way, args.assignments)
        made = rows(work / way)
        first = first or made
        results[way]["rows_equal_to_first"] = made == first
        print(way, json.dumps(results[way]), flush=True)
    shutil.rmtree(work)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
    target = Path(__file__).parent / "results" / f"builds-{args.name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"machine": machine, "settings": args.assignments, "ways": results}, indent=1) + "\n")
    assert all(r["rows_equal_to_first"] for r in results.values()), "rows differ between the ways"


if __name__ == "__main__":
    main()
