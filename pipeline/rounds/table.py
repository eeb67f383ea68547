"""The rounds of a run as a table."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskmill.errors import UserError
from maskmill.pipeline.rounds.record import read_record

STAGES = ("start", "assisted", "semi", "automatic")
COLUMNS = (
    ("round", 12), ("images", 7), ("masks", 7), ("an image", 9), ("s a mask", 9), ("clicks", 7), ("prefilled", 10),
    ("accepted", 9), ("fixed", 6), ("drawn", 6), ("mIoU@1", 7), ("@3", 6), ("@5", 6), ("NoC85", 6), ("NoC90", 6),
    ("AR", 6), ("box AR", 6),
)  # fmt: skip


def records(out: Path) -> list[tuple[str, dict[str, Any]]]:
    """Name and record of every finished round, in order. UserError if DIR holds no run."""
    if not (out / "engine.json").exists():
        raise UserError(f"{str(out)!r} is no run of the data engine: it has no engine.json (maskmill engine run)")
    order = {stage: n for n, stage in enumerate(STAGES)}
    folders = [f for f in (out / "rounds").glob("*") if (f / "round.json").exists()]
    folders.sort(key=lambda f: (order[f.name.rpartition("-")[0]], int(f.name.rpartition("-")[2])))
    return [(folder.name, read_record(folder) or {}) for folder in folders]


def table(out: Path) -> Iterator[str]:
    """Lines, and what is still to do."""
    yield "  ".join(name.rjust(width) for name, width in COLUMNS)
    found = records(out)
    for name, record in found:
        yield "  ".join(cell.rjust(width) for cell, (_, width) in zip(cells(name, record), COLUMNS, strict=True))
    for name, record in found:
        if str(record.get("decision", "")).startswith("not promoted"):
            yield f"{name}: {record['decision']}"
        if quality := record.get("quality"):
            yield (
                f"{name}: {quality['recall']:.1%} of {quality['objects']} held-out objects found at IoU 0.5; of the "
                f"found {number(quality['above']['0.75'], '.1%')} above 0.75, {number(quality['above']['0.9'], '.1%')} "
                f"above 0.9"
            )
    of = planned(json.loads((out / "engine.json").read_bytes())["config"])
    if len(found) < of:
        yield f"{len(found)} of {of} rounds are done: maskmill engine run continues"


def planned(cfg: dict[str, Any]) -> int:
    """How many rounds a run will have, the measuring of its first model and the automatic stage among them."""
    return 1 + sum(int(cfg[stage]["rounds"]) for stage in ("assisted", "semi")) + bool(cfg["automatic"]["enabled"])


def cells(name: str, record: dict[str, Any]) -> list[str]:
    """One row."""
    a, m = record.get("annotation", {}), record["metrics"]
    images = record.get("images", record.get("data", {}).get("images"))
    masks = a.get("masks", record.get("masks"))
    each = a["masks_per_image"] if a else None if not images or masks is None else masks / images
    return [
        name, number(images, "d"), number(masks, "d"), number(each, ".1f"), number(a.get("seconds_per_mask"), ".2f"),
        number(a.get("clicks_per_mask"), ".2f"),
        *(number(a.get(k), "d") for k in ("prefilled", "accepted", "fixed", "drawn")),
        *(number(m["miou"][n]["mean"], ".3f") for n in ("1", "3", "5")),
        *(number(m["noc"][n]["mean"], ".2f") for n in ("85", "90")),
        number(m.get("recall", {}).get("all"), ".3f"),
        number(record.get("detector", {}).get("recall", {}).get("all"), ".3f"),
    ]  # fmt: skip


def number(value: float | None, how: str) -> str:
    """`-` where there is none."""
    return "-" if value is None else format(value, how)
