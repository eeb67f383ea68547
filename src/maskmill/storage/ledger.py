"""The ledger: one small manifest for each committed unit, the only truth about what is done.

A manifest is created if absent and never rewritten. Data files carry the attempt in their name, so the files of a loser
or of a killed attempt are only orphans: no manifest names them.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from maskmill.storage.files import create_if_absent, sha256_file, to_json

NAME = re.compile(r"(?P<unit>.+?)(@(?P<redo>\d+))?\.json")


@dataclass(frozen=True)
class DataFile:
    """One committed file; `path` is relative to the build."""

    path: str
    rows: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, build: Path, path: Path, rows: int) -> "DataFile":
        """Measure a finished file."""
        return cls(path.relative_to(build).as_posix(), rows, path.stat().st_size, sha256_file(path))


@dataclass(frozen=True)
class Manifest:
    """The commit of one unit."""

    unit: str
    attempt: str
    files: dict[str, DataFile]  # table -> file; masks are "masks/<filter>"
    images: int
    empty: int
    quarantined: int
    candidates: int
    masks: int
    key_hash: str
    seconds: float
    host: str
    finished: str  # UTC, ISO 8601

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """From its file."""
        tree = json.loads(path.read_bytes())
        return cls(**{**tree, "files": {name: DataFile(**file) for name, file in tree["files"].items()}})


def hash_keys(keys: Iterable[str]) -> str:
    """sha256 of the keys in source order, one a line."""
    return hashlib.sha256("".join(f"{key}\n" for key in keys).encode()).hexdigest()


class Ledger:
    """The manifests of one kind in `BUILD/ledger/<name>`."""

    def __init__(self, build: Path, name: str = "images") -> None:
        self.folder = build / "ledger" / name

    def newest(self) -> dict[str, Path]:
        """unit -> the file of its highest redo, from one listing; no file is opened."""
        best: dict[str, tuple[int, Path]] = {}
        for path in self.folder.glob("*.json") if self.folder.is_dir() else ():
            match = NAME.fullmatch(path.name)
            if match is None or path.name.startswith("."):
                continue
            redo = int(match["redo"] or 1)
            if redo > best.get(match["unit"], (0, path))[0]:
                best[match["unit"]] = (redo, path)
        return {unit: path for unit, (_, path) in sorted(best.items())}

    def manifests(self) -> list[Manifest]:
        """The valid manifest of every committed unit, by unit."""
        return [Manifest.read(path) for path in self.newest().values()]

    def is_committed(self, unit: str) -> bool:
        """Whether any manifest of the unit exists."""
        return (self.folder / f"{unit}.json").exists()

    def commit(self, manifest: Manifest) -> bool:
        """Commit the unit. False if another attempt was first: its files count, this attempt's are orphans."""
        return create_if_absent(self.folder / f"{manifest.unit}.json", to_json(asdict(manifest)))
