"""A run of the data engine, as its files tell it: what the page is made from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGES = {"start": "start", "assisted": "assisted", "semi": "semi", "automatic": "auto"}


@dataclass(frozen=True)
class Round:
    """One finished round: `round.json`, `timing.json` (step -> seconds, cpu_seconds), and the build of its masks."""

    name: str
    record: dict[str, Any]
    timing: dict[str, dict[str, float]]
    masks: Path | None

    @property
    def stage(self) -> str:
        return self.name.rpartition("-")[0]

    @property
    def number(self) -> str:
        return self.name.rpartition("-")[2]

    def get(self, path: str) -> Any:
        """What stands at `a/b/c` in the record; None if nothing does."""
        found: Any = self.record
        for key in path.split("/"):
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def share(self, some: str, of: str) -> float | None:
        """One count of `annotation` over another; None of nothing."""
        whole, part = self.get(f"annotation/{of}"), self.get(f"annotation/{some}")
        return part / whole if whole and part is not None else None

    @property
    def images(self) -> int | None:
        return self.get("data/images") or self.get("images")

    @property
    def count(self) -> int | None:
        """Masks that came of it."""
        return self.get("annotation/masks") if "annotation" in self.record else self.get("masks")

    @property
    def each(self) -> float | None:
        """Masks an image."""
        if "annotation" in self.record:  # of the images that could be done
            return self.get("annotation/masks_per_image")
        return self.count / self.images if self.images and self.count is not None else None

    @property
    def decision(self) -> str:
        """`promoted`, `not promoted`, `kept`, or nothing where there was nothing to decide."""
        return str(self.record.get("decision", "")).partition(":")[0]

    @property
    def model(self) -> str:
        """The first digits of the weights that serve after it."""
        return str(self.get("model_out/sha256") or "")[:8]


@dataclass(frozen=True)
class Run:
    """One folder. about: its engine.json; planned: how many rounds it will have."""

    name: str
    path: Path
    about: dict[str, Any]
    rounds: tuple[Round, ...]
    planned: int

    @property
    def finished(self) -> bool:
        return len(self.rounds) == self.planned

    def of(self, *stages: str) -> list[Round]:
        """Its rounds of some stages, in order."""
        return [r for r in self.rounds if r.stage in stages]

    def automatic(self, path: str) -> Any:
        """What stands at a place of the automatic stage's record."""
        last = self.find("automatic-1")
        return None if last is None else last.get(path)

    def find(self, name: str) -> Round | None:
        """The round of that name, if it is over."""
        return next((r for r in self.rounds if r.name == name), None)


def all_names(runs: Sequence[Run]) -> list[str]:
    """The names of all rounds that any of the runs has finished, in the order of stages."""
    order = list(STAGES)
    found = {(order.index(r.stage), int(r.number), r.name) for run in runs for r in run.rounds}
    return [name for _, _, name in sorted(found)]


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """`a.b.c` and value of everything in a config."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree
