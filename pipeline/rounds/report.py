"""What `maskmill engine report` reads of a run's folder. An unfinished run shows the rounds that are over."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskmill.pipeline.rounds.record import read_about
from maskmill.pipeline.rounds.table import planned, records
from maskmill.report.engine_run import Round, Run


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """One run for each folder; those that share a name are told apart by what stands above them. UserError if a folder
    holds no run."""
    return [read_run(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)]


def read_run(out: Path, name: str) -> Run:
    """From its files alone."""
    found = records(out)
    about = read_about(out)
    rounds = [
        Round(round_name, record, timing(out, round_name), masks(out, round_name)) for round_name, record in found
    ]
    return Run(name, out, about, tuple(rounds), planned(about["config"]))


def timing(out: Path, name: str) -> dict[str, Any]:
    """A round's timing.json."""
    path = out / "rounds" / name / "timing.json"
    return dict(json.loads(path.read_bytes())) if path.exists() else {}


def masks(out: Path, name: str) -> Path | None:
    """The build of a round's masks, if it has one."""
    path = out / "automatic" if name.startswith("automatic") else out / "rounds" / name / "masks"
    return path if (path / "build.json").exists() else None


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many parts as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(len(p) for p in parts) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names
