"""maskmill on one GPU, from the source tree, without Ray: speed, steps, memory, and agreement with the official code.

    pip install segment-anything==1.0 pycocotools
    PYTHONPATH=src python -m benchmarks.gpu                  under 9 minutes on an H200
    PYTHONPATH=src python -m benchmarks.gpu --minutes 4 --out /tmp/gpu.json
    PYTHONPATH=src python -m benchmarks.gpu --device cpu --tiny      seconds; only shows that it runs

ViT-H, ViT-B and ViT-L with shaped weights (benchmarks/shaped.py), 1500 x 2250 images, the default settings and SA-1B's.
The parts go in order of importance; the file is written after each, so a run cut short loses the rest only. A part that
fails is recorded and the next one goes on. Writes benchmarks/results/gpu.json.
"""

import argparse
import json
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_parts as parts
from benchmarks import hf
from benchmarks.gpu_subject import TINY, Scale, Subject, tiny_config
from benchmarks.published import PUBLISHED
from maskmill.config import parse_set
from maskmill.errors import UserError
from maskmill.sam.build import load_config
from tests.parity.machine import machine

RESULT = Path(__file__).parent / "results" / "gpu.json"
LEAST_SECONDS, MOST_SECONDS = 10.0, 120.0  # no part is begun with less time left; none may take longer


class OutOfTime(Exception):
    """A part took longer than what was left."""


@dataclass(frozen=True)
class Part:
    """One measurement. `model` is built before it, unless the part before had the same one."""

    name: str
    model: str | None
    run: Callable[[Any], dict[str, Any]]
    tiny: bool = True  # False: left out of a tiny run


def plan(precision: str) -> list[Part]:
    """All parts, the most important first, those of a model together. Default settings also in float16: three more
    bits than bfloat16 at the same price in theory."""

    def both(model: str, p: str) -> list[Part]:
        return [
            Part(f"{model} default {p}", model, lambda s: parts.speed(s, "default", p)),
            Part(f"{model} default agreement {p}", model, lambda s: parts.check(s, "default", p)),
        ]

    def default(model: str) -> list[Part]:
        speed, agreement = both(model, precision)
        official = Part(f"{model} default official", model, lambda s: parts.official_speed(s, "default"))
        return [speed, official, agreement, both(model, "float32")[1]]

    def sa1b(model: str) -> list[Part]:
        against = "maskmill float32"
        check = f"{model} SA-1B agreement {precision} with own float32"
        return [
            Part(f"{model} SA-1B {precision}", model, lambda s: parts.speed(s, "sa1b", precision)),
            Part(check, model, lambda s: parts.check(s, "sa1b", precision, against)),
        ]

    return [
        *default("vit_h"),
        *sa1b("vit_h"),
        *both("vit_h", "float16"),
        *default("vit_b"),
        *both("vit_b", "float16"),
        Part("vit_b small regions", "vit_b", lambda s: parts.small_regions_cost(s, precision)),
        Part("vit_b candidates at the floor", "vit_b", lambda s: parts.floor_cost(s, precision)),
        *sa1b("vit_b"),
        *default("vit_l"),
        *sa1b("vit_l"),
        Part("vit_b SA-1B official", "vit_b", lambda s: parts.official_speed(s, "sa1b")),
        Part("vit_b SA-1B agreement float32", "vit_b", lambda s: parts.check(s, "sa1b", "float32")),
        Part("vit_b default transformers", "vit_b", parts.transformers_speed, tiny=False),
        Part("vit_b default float32", "vit_b", lambda s: parts.speed(s, "default", "float32")),
    ]


class Run:
    """The parts, one after another, within the minutes; the file grows with each."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.begun = args, time.monotonic()
        self.device = torch.device(args.device)
        self.scale = TINY if args.tiny else Scale()
        self.subject: Subject | None = None
        self.no_model: dict[str, str] = {}
        self.own = parse_set(args.assignments).get("generate", {})
        self.result: dict[str, Any] = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "machine": self.machine(),
            "scale": vars(self.scale),
            "own": self.own,
            "published": [vars(p) for p in PUBLISHED],
            "parts": {},
            "skipped": {},
        }

    def machine(self) -> dict[str, Any]:
        """The CPU, and the GPU with what runs it."""
        out = {**machine(), "python": platform.python_version(), "tiny": self.args.tiny}
        if self.device.type == "cuda":
            gpu = torch.cuda.get_device_properties(self.device)
            out |= {"gpu": gpu.name, "gpu_memory_mb": gpu.total_memory >> 20, "cuda": torch.version.cuda}
        return out | {"transformers": hf.missing_for_transformers() or "installed"}

    def left(self) -> float:
        return self.args.minutes * 60 - (time.monotonic() - self.begun)

    def all(self) -> None:
        self.one(Part("ceilings", None, lambda s: parts.ceilings(self.scale, self.device)))
        for part in {part.name: part for part in plan(self.args.precision)}.values():  # a precision may come twice
            if self.args.only and self.args.only not in part.name:
                continue
            if self.args.tiny and not part.tiny:
                self.skip(part, "left out of a tiny run")
            elif self.left() < min(LEAST_SECONDS, self.args.minutes * 6):
                self.skip(part, "no time left")
            else:
                self.one(part)

    def one(self, part: Part) -> None:
        """Run a part and write the file, whatever comes of it."""
        begun = time.monotonic()
        try:
            with at_most(min(self.left(), MOST_SECONDS)):
                if part.model is not None:
                    self.load(part.model)
                figures = part.run(self.subject)
        except (UserError, OutOfTime) as e:
            self.skip(part, str(e))
        except Exception as e:  # a part that fails must not take the others with it
            traceback.print_exc()
            self.result["parts"][part.name] = {"error": f"{type(e).__name__}: {e}"}
            print(f"{part.name}: FAILED, {type(e).__name__}: {e}", flush=True)
            self.write()
        else:
            self.result["parts"][part.name] = figures | {"part_seconds": time.monotonic() - begun}
            print(f"{part.name}: {short(figures)}", flush=True)
            self.write()
        parts.release()

    def load(self, name: str) -> None:
        """The weights of a model, shaped, unless they are there."""
        cfg = tiny_config(name) if self.args.tiny else load_config(name)
        if name in self.no_model:
            raise RuntimeError(f"{name} could not be built: {self.no_model[name]}")
        if self.subject is None or self.subject.cfg != cfg:
            self.subject = None
            parts.release()
            try:
                self.subject = Subject(cfg, self.scale, self.device, self.own)
            except Exception as e:
                self.no_model[name] = f"{type(e).__name__}: {e}"
                raise

    def skip(self, part: Part, why: str) -> None:
        self.result["skipped"][part.name] = why
        print(f"{part.name}: skipped, {why}", flush=True)
        self.write()

    def write(self) -> None:
        self.result["seconds"] = time.monotonic() - self.begun
        self.args.out.parent.mkdir(parents=True, exist_ok=True)
        self.args.out.write_text(json.dumps(self.result, indent=1) + "\n")

    def failed(self) -> list[str]:
        return [name for name, figures in self.result["parts"].items() if "error" in figures]


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the main thread when they are over."""

    def ring(number: int, frame: object) -> None:
        raise OutOfTime(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def short(figures: dict[str, Any]) -> str:
    """The figures that are looked at first."""
    if "share" in figures:
        return (
            f"{figures['share']:.2%} of the masks agree ({figures['matched']} of {figures['first']} and "
            f"{figures['second']}), unexcused {figures['unexcused']}"
        )
    words = []
    if "images_s" in figures:
        words.append(f"{figures['images_s']:.2f} images/s")
    if "floor_images_s" in figures:
        words.append(f"floor {figures['floor_images_s']:.0f} ({figures['share_of_floor']:.0%} of it)")
    if figures.get("peak_mb"):
        words.append(f"peak {figures['peak_mb']} MB")
    if "steps" in figures:
        took = figures["steps"]["seconds"].items()
        words.append("ms: " + " ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in took))
    return ", ".join(words) if words else json.dumps(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--precision", default="bfloat16", help="generate.precision (default bfloat16)")
    parser.add_argument(
        "--set", action="append", default=[], dest="assignments", metavar="generate.key=value", help="of our generator"
    )
    parser.add_argument("--only", help="parts whose name holds this")
    parser.add_argument(
        "--tiny", action="store_true", help="small models and images: shows that it runs, measures nothing"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU that torch can see: run it where there is one, or try --device cpu --tiny")
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, on both sides
    run = Run(args)
    run.all()
    print(f"{args.out}, {run.result['seconds']:.0f} s")
    if run.failed():
        sys.exit(f"failed: {', '.join(run.failed())}")


if __name__ == "__main__":
    main()
