"""Does Ray keep the cores busy? The same images by nano: two bare loops side by side, and Ray with two actors.

`python -m benchmarks.throughput` (minutes on 2 cores). Both run the same worker on the same units; start-up is left
out: throughput counts from the first receipts to the last but one. Rounds go bare, Ray, Ray, bare, ..., because a
machine's own speed wanders. Beside the ratio of throughputs stands the busy share: seconds that the workers spent on
units, of all there were. Results: benchmarks/results/throughput.json.
"""

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from benchmarks.scale import Watched
from maskmill.config import resolve
from maskmill.pipeline.demo import demo_images
from maskmill.pipeline.engines.local import run_inside
from maskmill.pipeline.engines.ray import RayEngine
from maskmill.pipeline.generate import new_job, open_build
from maskmill.pipeline.recipe import Recipe
from maskmill.pipeline.run import run_tasks
from maskmill.pipeline.unit import Job, Task
from maskmill.pipeline.weights import weights_sha256
from maskmill.storage.files import at, to_json, write_bytes
from tests.parity.machine import machine

RESULTS = Path(__file__).parent / "results" / "throughput.json"
ACTORS = 2
UNIT = 4  # images
End = tuple[float, float]  # of a unit: when its receipt came, the worker's seconds


def opened(source: Path, out: Path, grid: int) -> tuple[Job, list[Task], Recipe]:
    """A new build with units of one image."""
    shutil.rmtree(out, ignore_errors=True)
    cfg = resolve(assignments=(f"run.unit_size={UNIT}", f"run.actors={ACTORS}", f"generate.points_per_side={grid}"))
    recipe = Recipe(cfg, weights_sha256("nano"), str(source), "default", candidates=True)
    build = open_build(recipe, out, append=False)
    return new_job(recipe, build.build, "cpu"), [Task(unit) for unit in build.pending], recipe


def loop(job: Job, tasks: list[Task], ready: Any, ends: Any) -> None:
    """A bare loop: no engine, no supervisor."""
    run = run_inside(job, tasks)
    ready.wait()
    for receipt in run:
        assert receipt.error is None
        ends.put((time.perf_counter(), receipt.seconds))


def bare(source: Path, out: Path, grid: int) -> list[End]:
    """ACTORS loops that share the units."""
    job, tasks, _ = opened(source, out, grid)
    context = multiprocessing.get_context("spawn")
    ready, ends = context.Barrier(ACTORS), context.Queue()
    loops = [context.Process(target=loop, args=(job, tasks[i::ACTORS], ready, ends)) for i in range(ACTORS)]
    for process in loops:
        process.start()
    times = [ends.get(timeout=600) for _ in tasks]
    for process in loops:
        process.join()
    return sorted(times)


def by_ray(source: Path, out: Path, grid: int) -> list[End]:
    """The main job's way."""
    job, tasks, recipe = opened(source, out, grid)
    ends: list[float] = []
    outcome = run_tasks(job, tasks, Watched(RayEngine(recipe.config.run), ends), print)
    assert not outcome.left
    return list(zip(ends, (r.seconds for r in outcome.receipts), strict=True))


def steady(ends: list[End]) -> dict[str, float]:
    """Images a second and the busy share, without the start-up before and the wait for the last actor after."""
    first, last = ACTORS, len(ends) - ACTORS
    seconds = ends[last][0] - ends[first][0]
    work = sum(spent for _, spent in ends[first + 1 : last + 1])
    return {"images_a_second": UNIT * (last - first) / seconds, "busy_share": work / (ACTORS * seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--grid", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "images": args.images, "grid": args.grid, "rounds": []}
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "in"
        source.mkdir()
        for i, (name, pixels) in enumerate(demo_images(args.images).items()):
            Image.fromarray(pixels).save(source / f"{i:03d}-{name}.png")
        ways = {"bare": bare, "ray": by_ray}
        for n in range(args.rounds):
            order = ["bare", "ray"] if n % 2 == 0 else ["ray", "bare"]
            figures = {name: steady(ways[name](source, Path(temporary) / name, args.grid)) for name in order}
            ratio = figures["ray"]["images_a_second"] / figures["bare"]["images_a_second"]
            found["rounds"].append({**figures, "ray_to_bare": ratio})
            print(json.dumps(found["rounds"][-1]), flush=True)
    ratios = [r["ray_to_bare"] for r in found["rounds"]]
    found["ray_to_bare"] = {"median": median(ratios), "least": min(ratios), "most": max(ratios)}
    found["ray_busy_share_median"] = median(r["ray"]["busy_share"] for r in found["rounds"])
    RESULTS.parent.mkdir(exist_ok=True)
    write_bytes(at(RESULTS), to_json(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
