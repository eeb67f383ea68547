"""Small models on real images with human masks, beside what a click reaches without a model.

`python -m benchmarks.nano --data FOLDER [--weights A.safetensors B.safetensors] [--pages DIR]`. FOLDER holds the sets
of SETS. The same masks are asked of every set of weights: a seeded part of the larger sets (random images, then each
mask with one chance), so that one set of weights takes some minutes on one core. Intervals are 95%, by the bootstrap
over images. Results: benchmarks/results/nano.json; pages of pictures (--pages) belong outside the repository, they show
the images.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from maskmill.errors import UserError
from maskmill.evaluate import cases
from maskmill.evaluate.baselines import BaselineScores
from maskmill.evaluate.config import EvaluateConfig
from maskmill.evaluate.proposals import Proposals, automatic
from maskmill.evaluate.run import Evaluation, choose_images, evaluate, large_enough
from maskmill.report.evaluation import make_page
from maskmill.sam.build import checkpoint_sha256, load_model
from maskmill.sam.sam import Sam
from maskmill.storage.annotated import AnnotatedSet, open_annotated
from maskmill.storage.files import at, write_bytes
from tests.parity.machine import machine

OURS = "nano"  # the weights in the package
SHOWN = 12


@dataclass(frozen=True)
class Part:
    """What is taken of a set: so many random images, each of their masks with this chance; automatic masks on fewer."""

    source: str
    images: int | None
    share: float
    automatic: int


PARTS = {
    "coco-panoptic": Part("coco-panoptic/train-0003.tar", None, 1.0, 10),
    "bsds500": Part("bsds500/val-*.tar", 40, 0.1, 10),
    "nuclei": Part("nuclei/train-*.tar", 60, 0.15, 10),
}


def config(part: Part, min_area: int, seed: int) -> EvaluateConfig:
    """SAM's protocol, without what this table does not show."""
    return EvaluateConfig(
        clicks=(1, 3, 5, 9),
        noc=(0.85,),
        images=part.images,
        mask_share=part.share,
        min_area=min_area,
        points_per_side=0,
        seed=seed,
    )


def measure(
    model: Sam, data: AnnotatedSet, part: Part, cfg: EvaluateConfig, known: list[BaselineScores], points: int
) -> tuple[Evaluation, dict[str, Any]]:
    """Clicks and automatic masks on one set. `known`: the baselines, if they have been measured on the same masks."""
    torch.manual_seed(cfg.seed)
    found = evaluate(model, data, replace(cfg, baselines=not known))
    found.baselines = found.baselines or known
    some = replace(cfg, images=part.automatic, points_per_side=points)
    proposals, seconds, count = Proposals(), 0.0, 0
    for i in choose_images(len(data.names), some):
        whole = large_enough(data.read(i), cfg)
        begun = time.process_time()
        masks = automatic(model, whole.image, some)
        seconds, count = seconds + time.process_time() - begun, count + 1
        if whole.counts:
            proposals.add((whole.image.shape[0], whole.image.shape[1]), list(whole.counts), *masks)
    found.proposals = proposals.evaluate(some)
    return found, found.summary() | {"automatic": {"images": count, "cpu_seconds_an_image": round(seconds / count, 3)}}


def row(name: str, tree: dict[str, Any]) -> str:
    """One line of the table."""

    def shown(e: dict[str, Any]) -> str:
        return f"{e['mean']:.3f} ({e['low']:.3f}-{e['high']:.3f})"

    noc, segments = tree["noc"]["85"], tree["baselines"]["segments"]
    above = segments["oracle_above"]
    cells = [name, f"{tree['images']} / {tree['masks']}"]
    cells += [shown(tree["miou"]["1"]), *(f"{tree['miou'][n]['mean']:.3f}" for n in ("3", "5", "9"))]
    cells += [shown(tree["oracle"]), f"{segments['mean']:.3f}", f"{tree['baselines']['discs']['mean']:.3f}"]
    cells += [f"{above['mean']:+.3f} ({above['low']:+.3f} to {above['high']:+.3f})"]
    cells += [f"{noc['mean']:.1f} ({noc['share']:.0%} fail)", f"{tree['recall']['all']:.3f}"]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| weights, set | images / masks | mIoU@1 | @3 | @5 | @9 | oracle@1 | segments | discs | oracle above segments "
    "| NoC@85 | AR@1000 |\n|" + "---|" * 12
)


def write_page(pages: str, name: str, model: Sam, data: AnnotatedSet, found: Evaluation, tree: dict[str, Any]) -> None:
    """Curves, the worst and the best cases."""
    worst, best = (cases.cases(model, data, found, rows) for rows in cases.pick(found, SHOWN))
    write_bytes(at(pages) / f"{name.replace(' ', '-')}.html", make_page(name, tree, found, worst, best).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder that holds " + ", ".join(PARTS))
    parser.add_argument("--weights", nargs="+", default=[OURS], help="files, or nano for those in the package")
    parser.add_argument("--model", default="nano", help="the architecture of all of them")
    parser.add_argument("--sets", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--min-area", type=int, default=20, help="leave out smaller masks: crumbs of annotation")
    parser.add_argument("--points", type=int, default=16, help="points per side of automatic masks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pages", help="a folder for pages of pictures")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "nano.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        run(args)
    except UserError as e:
        parser.error(str(e))


def run(args: argparse.Namespace) -> None:
    """All weights on all sets; the file is written after each."""
    result: dict[str, Any] = {"machine": machine(), "min_area": args.min_area, "seed": args.seed}
    result |= {"points_per_side": args.points, "parts": {n: vars(PARTS[n]) for n in args.sets}, "rows": []}
    known: dict[str, list[BaselineScores]] = {}
    print(HEAD, flush=True)
    for weights in args.weights:
        file = None if weights == OURS else weights
        model, label = load_model(args.model, file, device="cpu"), Path(weights).stem
        for name in args.sets:
            part = PARTS[name]
            data = open_annotated(f"{args.data}/{part.source}")
            begun = time.process_time()
            cfg = config(part, args.min_area, args.seed)
            found, tree = measure(model, data, part, cfg, known.get(name, []), args.points)
            known[name] = found.baselines
            about = {"weights": label, "sha256": checkpoint_sha256(args.model, file), "set": name}
            cost = {"cpu_seconds": round(time.process_time() - begun, 1)}
            result["rows"].append(about | tree | cost)
            args.out.write_text(json.dumps(result, indent=1) + "\n")
            print(row(f"{label}, {name}", tree), flush=True)
            if args.pages:
                write_page(args.pages, f"{label} {name}", model, data, found, about | tree | {"data": name})


if __name__ == "__main__":
    main()
