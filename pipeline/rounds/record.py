"""What stands in a round's record: what follows from data, config and seed, and nothing of when or where."""

import json
import tarfile
from pathlib import Path
from typing import Any

from maskmill.config import merge, to_tree
from maskmill.errors import UserError
from maskmill.pipeline.recipe import differences
from maskmill.pipeline.rounds.config import EngineConfig, EngineData
from maskmill.prompts.session import EDITS

Record = dict[str, Any]
WRONG = 0.5  # a mask that reaches no higher IoU with any object is of none


def read_record(folder: Path) -> Record | None:
    """FOLDER/round.json, if the round is over."""
    path = folder / "round.json"
    return json.loads(path.read_bytes()) if path.exists() else None  # type: ignore[no-any-return]


def read_answers(path: Path) -> list[Record]:
    """What was handed in, as it was packed into masks.tar: SA-1B's JSON."""
    with tarfile.open(path) as tar:
        files = [tar.extractfile(member) for member in tar if member.name.endswith(".json")]
        return [json.loads(file.read()) for file in files if file is not None]


def summary(trees: list[Record]) -> Record:
    """What people did, from what they handed in.

    Seconds count all that was spent, also on what was rejected or given up. `worked`: of drawn and fixed masks alone,
    as the paper counts (section 4: automatic masks are not counted). `share`: accepted, fixed, rejected of what was
    prefilled; drawn of the masks. iou: of a mask with its nearest object; wrong: masks below 0.5.
    """
    about = [tree["image"]["meta"] for tree in trees]
    masks = [a["meta"] for tree in trees for a in tree["annotations"]]
    worked = [m for m in masks if m["edit"] != "accepted"]
    edits: dict[str, int] = {edit: sum(m["edit"] == edit for m in masks) for edit in EDITS}
    counts = {name: sum(a[name] for a in about) for name in ("prefilled", "rejected", "given_up", "objects")}
    seconds = sum(a["seconds"] for a in about)
    accepted_s = sum(m["seconds"] for m in masks if m["edit"] == "accepted")
    clicks = sum(m["clicks"] for m in masks)
    ious = [value for a in about for value in a["ious"]]
    return {
        "masks": len(masks), "masks_per_image": ratio(len(masks), len(trees)), **edits, **counts,
        "share": {
            **{name: ratio((edits | counts)[name], counts["prefilled"]) for name in ("accepted", "fixed", "rejected")},
            "drawn": ratio(edits["drawn"], len(masks)), "found": ratio(len(masks), counts["objects"]),
        },
        "seconds": round(seconds, 3), "seconds_per_mask": ratio(seconds, len(masks)),
        "clicks": clicks, "clicks_per_mask": ratio(clicks, len(masks)),
        "worked": {
            "masks": len(worked), "seconds_per_mask": ratio(seconds - accepted_s, len(worked)),
            "clicks_per_mask": ratio(clicks, len(worked)),
        },
        "iou": ratio(sum(ious), len(ious)), "wrong": sum(value < WRONG for value in ious),
    }  # fmt: skip


def ratio(some: float, of: float) -> float | None:
    """None of nothing."""
    return round(some / of, 4) if of else None


def about_annotators(cfg: EngineConfig) -> Record:
    """Who works, and how."""
    if not cfg.queue.processes:
        return {"kind": "others"}
    return {"kind": "simulated", "count": cfg.queue.processes, **to_tree(cfg.annotators)}


def thresholds(cfg: EngineConfig, stage: str) -> Record:
    """What was shown to people, and what the gate allows."""
    prefill = to_tree(cfg.prefill)
    shown = {name: value for name, value in prefill.items() if isinstance(value, float)} if stage == "semi" else {}
    return {**shown, "gate_tolerance": cfg.gate.tolerance if cfg.gate.enabled else None}


def fingerprint(cfg: EngineConfig, data: Record) -> Record:
    """What a run is. How work is spread and where data lie may change between a run and its continuation."""
    tree = to_tree(cfg)
    del tree["run"], tree["train"]["run"], tree["data"]["source"], tree["data"]["images"]
    del tree["queue"]["lease_s"], tree["prefill"]["detections"]
    return {"config": tree, "data": data}


def read_about(out: Path) -> Record:
    """OUT/engine.json. Settings that came after it was written have the defaults that it was begun with."""
    about: Record = json.loads((out / "engine.json").read_bytes())
    defaults = fingerprint(EngineConfig(EngineData(scenes=1)), {})["config"]
    return about | {"config": merge(defaults, about["config"])}


def check_same(out: Path, old: Record, new: Record) -> None:
    """A run goes on with the config and the data that it was begun with."""
    if changes := differences(old, new):
        raise UserError(
            f"{str(out)!r} was begun with another config or other data: {'; '.join(changes[:5])}. "
            f"Give the same, or another --out"
        )
