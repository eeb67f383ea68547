"""A run's folder with records that a test knows, and real builds of masks: what a report reads."""

import json
import shutil
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from PIL import Image

from maskmill.pipeline.cli import main
from tests.pipeline.rounds.shapes import shapes, write_json

ROUNDS = ("start-0", "assisted-1", "assisted-2", "semi-1", "automatic-1")
MODEL = {"name": "nano", "checkpoint": None, "sha256": "6c1a6f08" + 56 * "0"}


def metrics(miou: float, noc: float) -> dict[str, Any]:
    """Of a model on the held-out part."""
    steps = {"1": 0.0, "3": 0.1, "5": 0.15}
    ious = {n: {"mean": miou + d, "low": miou + d - 0.02, "high": miou + d + 0.02} for n, d in steps.items()}
    return {
        "images": 4, "masks": 12, "miou": ious, "noc": {"85": {"mean": noc}, "90": {"mean": noc + 2}},
        "recall": {"all": miou / 2, "small": None, "medium": miou / 3, "large": miou},
    }  # fmt: skip


def annotation(seconds: float, drawn: int, accepted: int = 0, fixed: int = 0, rejected: int = 0) -> dict[str, Any]:
    """What people did to ten images."""
    masks = drawn + accepted + fixed
    return {
        "masks": masks, "masks_per_image": masks / 10, "drawn": drawn, "accepted": accepted, "fixed": fixed,
        "prefilled": accepted + fixed + rejected, "rejected": rejected, "given_up": 1, "objects": 60,
        "seconds": seconds * masks, "seconds_per_mask": seconds, "clicks": 3 * masks, "clicks_per_mask": 3.0,
        "worked": {"masks": masks - accepted, "seconds_per_mask": seconds + 1, "clicks_per_mask": 4.0},
        "iou": 0.91,
    }  # fmt: skip


def record(name: str, gain: float) -> dict[str, Any]:
    """One round: the second model is not promoted, the others are, each `gain` better."""
    stage, _, number = name.rpartition("-")
    about = {"stage": stage, "round": int(number)}
    done = {"data": {"first": 0, "images": 10}, "model_in": MODEL, "model_out": MODEL}
    match name:
        case "start-0":
            return {**about, "model_out": MODEL, "metrics": metrics(0.5, 12)}
        case "assisted-1":
            ends = {"metrics": metrics(0.5 + gain, 10), "decision": "promoted"}
            return {**about, **done, "annotation": annotation(24.5, 40), **ends}
        case "assisted-2":
            why = "not promoted: mIoU@1 fell from 0.6 to <0.4>"
            refused = {"candidate": {**MODEL, "metrics": metrics(0.4, 13)}, "decision": why}
            return {**about, **done, "annotation": annotation(12.25, 44), "metrics": metrics(0.5 + gain, 10), **refused}
        case "semi-1":
            recall = {"all": 0.43, "small": 0.1, "medium": None, "large": 0.8}
            found = {"detector": {"kind": "head", "recall": recall}, "annotation": annotation(6.5, 15, 30, 5, 5)}
            return {**about, **done, **found, "metrics": metrics(0.5 + 2 * gain, 7), "decision": "promoted"}
    quality = {"images": 4, "objects": 24, "matched": 18, "recall": 0.75, "mean_iou": 0.841}
    above = {"above": {"0.75": 0.889, "0.9": 0.333}}
    return {
        **about,
        "model_in": MODEL,
        "model_out": MODEL,
        "images": 30,
        "masks": 210,
        "quality": quality | above,
        "metrics": metrics(0.7, 7),
    }


def make_run(out: Path, rounds: int = len(ROUNDS), gain: float = 0.1, retrain: bool = True) -> Path:
    """OUT with the first so many rounds of five; every round with masks has a build of two images."""
    config = {
        "assisted": {"rounds": 2}, "semi": {"rounds": 1}, "automatic": {"enabled": True}, "retrain": retrain,
    }  # fmt: skip
    out.mkdir(parents=True)
    (out / "engine.json").write_text(json.dumps({"config": config, "data": {"images": 34}}))
    made = make_build(out / "edited", ["accepted", "fixed", "drawn"])
    for name in ROUNDS[:rounds]:
        folder = out / "rounds" / name
        folder.mkdir(parents=True)
        (folder / "round.json").write_text(json.dumps(record(name, gain)))
        (folder / "timing.json").write_text(json.dumps({"measure": {"seconds": 1234.5, "cpu_seconds": 99.25}}))
        if name.startswith("automatic"):
            shutil.copytree(make_build(out / "alone", []), out / "automatic")
        elif name != "start-0":
            shutil.copytree(made, folder / "masks")
    return out


def make_build(folder: Path, edits: list[str]) -> Path:
    """Three masks in each of two images, made by `edits`; by the model alone if there are none."""
    folder.mkdir()
    for n in range(2):
        image, masks = shapes(n)
        Image.fromarray(image).save(folder / f"im{n}.png")
        write_json(folder / f"im{n}.json", n, masks, [{"edit": edit, "clicks": 2} for edit in edits] or None)
    build = folder.with_name(f"{folder.name}-build")
    words = ["--debug", "import", str(folder), "--out", str(build), "--format", "sa1b", "--quiet"]  # in this process
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return build
