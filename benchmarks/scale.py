"""What the engine costs without a model: planning, scheduling, ledger and files at the scale of SA-1B.

`python -m benchmarks.scale` (about 15 minutes on 2 cores) measures, each in a process of its own:
- plan: 11,000 tars of 1,000 images from a synthetic listing: seconds and memory to plan, to reopen, to read the status;
- bare and ray: the same units with a segmenter that costs nothing, in a plain loop and by Ray with one actor: overhead
  of a unit, memory of the driver, growth with the number of units;
- whole: 11,000 units in one Ray run: memory of the driver;
- resume: a Ray run of 5,000 units, killed at half, and started again.
Results: benchmarks/results/scale.json.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from maskmill.pipeline.engines.local import LocalEngine
from maskmill.pipeline.generate import close_build, new_job, open_build
from maskmill.pipeline.plan import Unit, compare, make_units, read_plan, write_plan
from maskmill.pipeline.recipe import write_recipe
from maskmill.pipeline.run import run_tasks
from maskmill.pipeline.status import read_status
from maskmill.pipeline.unit import Receipt, Task
from maskmill.storage.files import at, to_json, write_bytes
from maskmill.storage.ledger import DataFile, Ledger, Manifest
from maskmill.storage.sources import ImageSet, Shard
from tests.chaos.builds import images, recipe
from tests.chaos.fake import SEGMENTER
from tests.parity.machine import machine

RESULTS = Path(__file__).parent / "results" / "scale.json"
BIG_UNITS, BIG_IMAGES = 11_000, 1_000


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its seconds."""
    begun = time.perf_counter()
    result = work()
    return result, round(time.perf_counter() - begun, 3)


def peak_mb() -> int:
    """The largest resident size of this process. Not ru_maxrss: that begins with its parent's, across fork and exec."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) >> 10


def listing() -> ImageSet:
    """As a bucket of tars would be listed."""
    shards = [
        Shard(f"sa_{i:06d}.tar", f"s3://bucket/sa_{i:06d}.tar", 10**10, f"etag{i}", None) for i in range(BIG_UNITS)
    ]
    return ImageSet("s3://bucket", "tar", tuple(shards))


def big_manifest(unit: Unit) -> Manifest:
    """As a unit of SA-1B would commit."""
    files = {
        name: DataFile(f"{name}/{unit.unit}-0123abcd.parquet", BIG_IMAGES * rows, 1 << 20, "0" * 64)
        for name, rows in (("images", 1), ("candidates", 300), ("masks/default", 100))
    }
    return Manifest(
        unit=unit.unit, attempt="0123abcd", files=files, images=BIG_IMAGES, empty=2, quarantined=1, candidates=300_000,
        masks=100_000, key_hash="0" * 64, seconds=900.0, host="node-17", finished="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def plan_figures(folder: Path) -> dict[str, Any]:
    """Plan, reopen and status of the big build, half of it committed."""
    before = peak_mb()
    build = at(folder / "big")
    planned, seconds = timed(lambda: make_units(listing(), BIG_IMAGES))
    units = [replace(u, count=BIG_IMAGES) for u in planned]  # what a local walk over the headers would have counted
    _, writing = timed(lambda: write_plan(build / "plan.parquet", units))
    made = recipe("s3://bucket")
    write_recipe(build, made, "tar")
    for unit in units[: BIG_UNITS // 2]:
        path = build / "ledger" / "images" / f"{unit.unit}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_json(asdict(big_manifest(unit))))
    again, reading = timed(lambda: read_plan(build / "plan.parquet"))
    changes, comparing = timed(lambda: compare(again, listing()))
    assert not changes.changed and not changes.gone and not changes.new.shards
    redos, ledger = timed(lambda: Ledger(build).redos())
    status, looking = timed(lambda: read_status(build))
    assert len(redos) == status.units_done == BIG_UNITS // 2
    return {
        "units": len(units), "images": sum(u.count or 0 for u in units), "plan_seconds": seconds + writing,
        "plan_mb_on_disk": round((build / "plan.parquet").stat().st_size / 1e6, 2),
        "resume_seconds": round(reading + comparing + ledger, 3), "status_seconds": looking,
        "peak_mb_before": before, "peak_mb": peak_mb(),
    }  # fmt: skip


def prepare(folder: Path, units: int) -> Path:
    """A folder of `units` small pictures: one unit each."""
    source = folder / f"in{units}"
    return source if source.exists() else images(source, units)


def run_figures(folder: Path, units: int, engine: str) -> dict[str, Any]:
    """Steady seconds a unit, start-up apart, and the driver's memory."""
    source, out = prepare(folder, units), folder / f"{engine}{units}"
    shutil.rmtree(out, ignore_errors=True)
    made = recipe(source, "run.unit_size=1", "run.actors=1")
    opened, opening = timed(lambda: open_build(made, out, append=False))
    job = replace(new_job(made, opened.build, "cpu"), segmenter=SEGMENTER)
    ends: list[float] = []
    runner: Any = LocalEngine(inside=True)
    if engine == "ray":
        from maskmill.pipeline.engines.ray import RayEngine

        runner = RayEngine(made.config.run)
    whole, seconds = timed(lambda: run_tasks(job, [Task(u) for u in opened.pending], Watched(runner, ends), print))
    assert not whole.left and close_build(out) == "closed"
    skip = len(ends) // 10  # start-up
    steady = (ends[-1] - ends[skip]) / (len(ends) - 1 - skip)
    return {
        "units": units, "open_seconds": opening, "seconds": seconds, "ms_a_unit": round(steady * 1000, 2),
        "worker_ms_a_unit": round(1000 * sum(r.seconds for r in whole.receipts) / units, 2),
        "driver_peak_mb": peak_mb(),
    }  # fmt: skip


class Watched:
    """An engine whose receipts are timed as they come."""

    def __init__(self, engine: Any, ends: list[float]) -> None:
        self.engine, self.ends = engine, ends

    def __enter__(self) -> "Watched":
        self.engine.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.__exit__(*error)

    def run(self, job: Any, tasks: list[Task]) -> Any:
        for receipt in self.engine.run(job, tasks):
            assert isinstance(receipt, Receipt) and receipt.error is None
            self.ends.append(time.perf_counter())
            yield receipt


def resume_figures(folder: Path, units: int) -> dict[str, Any]:
    """Killed at half, then continued: seconds until the first new commit, and what was done twice."""
    source, out = prepare(folder, units), folder / "resumed"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "tests.chaos.builds", str(source), str(out), "ray", "run.unit_size=1"]
    ledger = Ledger(at(out))
    process = subprocess.Popen(command, start_new_session=True)
    while len(ledger.redos()) < units // 2:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(8)  # until the actors of the dead driver are gone
    at_kill = len(ledger.redos())
    begun = time.perf_counter()
    process = subprocess.Popen(command, start_new_session=True)
    while len(ledger.redos()) <= at_kill:
        time.sleep(0.05)
    first = time.perf_counter() - begun
    assert process.wait() == 0
    seconds = time.perf_counter() - begun
    assert len(ledger.redos()) == units
    _, finished = timed(lambda: subprocess.run(command, check=True))
    return {
        "units": units, "committed_at_kill": at_kill, "first_commit_seconds": round(first, 1),
        "seconds": round(seconds, 1), "finished_build_again_seconds": finished,
    }  # fmt: skip


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "plan": plan_figures, "run": run_figures, "resume": resume_figures,
}  # fmt: skip


def apart(folder: Path, part: str, *args: str) -> dict[str, Any]:
    """One part in a process of its own, so that its memory is its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--folder", str(folder), "--part", part, *args]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: dict[str, Any] = json.loads(text.splitlines()[-1])
    print(part, *args, json.dumps(figures), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--units", type=int, default=5000, help="of the run that is killed; the others have a tenth and a half of it"
    )
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--part", choices=PARTS, help="one part only, as a line of JSON")
    parser.add_argument("args", nargs="*")
    args = parser.parse_args()
    if args.part:
        values = [int(a) if a.isdigit() else a for a in args.args]
        print(json.dumps(PARTS[args.part](args.folder, *values)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        found: dict[str, Any] = {"machine": machine(), "plan": apart(folder, "plan"), "runs": []}
        for units in (args.units // 10, args.units // 2):
            pair = {name: apart(folder, "run", str(units), name) for name in ("local", "ray")}
            overhead = pair["ray"]["ms_a_unit"] - pair["local"]["ms_a_unit"]
            found["runs"].append({"units": units, "overhead_ms_a_unit": round(overhead, 2), **pair})
        found["whole"] = apart(folder, "run", str(BIG_UNITS), "ray")
        found["resume"] = apart(folder, "resume", str(args.units))
    RESULTS.parent.mkdir(exist_ok=True)
    write_bytes(at(RESULTS), to_json(found))
    print(json.dumps(found["runs"], indent=1))


if __name__ == "__main__":
    main()
