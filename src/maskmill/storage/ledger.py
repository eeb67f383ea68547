"""The ledger: one small manifest for each committed unit, the only truth about what is done.

A manifest is created if absent and never rewritten. Data files carry the attempt in their name, so the files of a loser
or of a killed attempt are only orphans: no manifest names them.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from upath import UPath

from maskmill.errors import UserError
from maskmill.storage.files import at, create_if_absent, exists, names_in, read_bytes, to_json, write_bytes

NAME = re.compile(r"(?P<unit>.+?)(@(?P<redo>\d+))?\.json")


Content = bytes  # DataFile has a field of that name


class DamagedFile(Exception):
    """A committed file is gone, or is not what was committed."""


@dataclass(frozen=True)
class DataFile:
    """One committed file; `path` is relative to the build."""

    path: str
    rows: int
    bytes: int
    sha256: str

    @classmethod
    def write(cls, build: UPath, path: str, rows: int, data: Content) -> "DataFile":
        """Write `data` as build/path, whole and synced."""
        write_bytes(build / path, data)
        return cls(path, rows, len(data), hashlib.sha256(data).hexdigest())

    def read(self, build: UPath) -> Content:
        """Its bytes, exactly as they were committed. DamagedFile if they are not."""
        try:
            data = read_bytes(build / self.path)
        except FileNotFoundError as e:
            raise DamagedFile(f"{self.path} is missing: restore it from a copy") from e
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise DamagedFile(f"{self.path} is not the file that was committed: restore it from a copy")
        return data


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
    read_sha256: str | None = None  # masks of a later filter: of the images manifest that named their candidates

    @classmethod
    def read(cls, path: UPath) -> "Manifest":
        """From its file. UserError if that is damaged."""
        return cls.parse(read_bytes(path), path)

    @classmethod
    def parse(cls, data: Content, path: UPath) -> "Manifest":
        """From the bytes of its file `path`. UserError if they are no manifest."""
        try:
            tree = json.loads(data)
            return cls(**{**tree, "files": {name: DataFile(**file) for name, file in tree["files"].items()}})
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise UserError(
                f"{str(path)!r} is damaged ({type(e).__name__}: {' '.join(str(e).split())}): restore it from a copy, "
                f"or remove it to have its unit done again"
            ) from e

    def to_json(self) -> Content:
        """The bytes of its file."""
        return to_json({key: value for key, value in asdict(self).items() if value is not None})


def hash_keys(keys: Iterable[str]) -> str:
    """sha256 of the keys in source order, one a line."""
    return hashlib.sha256("".join(f"{key}\n" for key in keys).encode()).hexdigest()


def file_name(unit: str, redo: int = 1) -> str:
    """`000003.json`, then `000003@2.json` ..."""
    return f"{unit}.json" if redo == 1 else f"{unit}@{redo}.json"


class Ledger:
    """The manifests of one kind in `BUILD/ledger/<name>`: `images`, and `masks.<filter>` for each later filter."""

    def __init__(self, build: UPath, name: str = "images") -> None:
        self.name = name
        self.folder = at(build) / "ledger" / name

    def redos(self) -> dict[str, int]:
        """unit -> the number of its highest redo (1: done once), from one listing; no file is opened."""
        best: dict[str, int] = {}
        for name in names_in(self.folder):
            match = NAME.fullmatch(name)
            if match is not None and not name.startswith("."):
                best[match["unit"]] = max(int(match["redo"] or 1), best.get(match["unit"], 1))
        return dict(sorted(best.items()))

    def newest(self) -> dict[str, UPath]:
        """unit -> the file of its highest redo."""
        return {unit: self.folder / file_name(unit, redo) for unit, redo in self.redos().items()}

    def manifests(self) -> list[Manifest]:
        """The valid manifest of every committed unit, by unit."""
        return read_manifests(self.newest().values())

    def digests(self) -> dict[str, str]:
        """unit -> sha256 of the manifest that counts: what a filter of that unit must have read."""
        newest = self.newest()
        with ThreadPoolExecutor(16) as pool:
            data = pool.map(read_bytes, newest.values())
            return {unit: hashlib.sha256(d).hexdigest() for unit, d in zip(newest, data, strict=True)}

    def is_committed(self, unit: str, redo: int = 1) -> bool:
        """Whether this manifest of the unit exists."""
        return exists(self.folder / file_name(unit, redo))

    def commit(self, manifest: Manifest, redo: int = 1) -> bool:
        """Commit the unit. False if another attempt was first: its files count, this attempt's are orphans."""
        return create_if_absent(self.folder / file_name(manifest.unit, redo), manifest.to_json())


def read_manifests(paths: Iterable[UPath]) -> list[Manifest]:
    """In the order of `paths`; remote ones are read by many threads at once."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(Manifest.read, paths))
