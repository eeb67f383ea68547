"""build.json: the recipe that makes a build what it is, and the comparison that guards a resume."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from upath import UPath

from maskmill import __version__
from maskmill.config import Config, FilterConfig, from_tree, to_tree
from maskmill.errors import UserError
from maskmill.storage.build import read_info
from maskmill.storage.files import create_if_absent, to_json, write_bytes
from maskmill.storage.listing import absolute
from maskmill.storage.schemas import SCHEMA_VERSION

# Raise it with any change that can alter a row: a build is never continued by code that would compute other numbers.
NUMERIC_VERSION = 2


@dataclass(frozen=True)
class Recipe:
    """All that decides the rows of `images` and `candidates`, and its filter."""

    config: Config
    model_sha256: str
    inputs: str
    filter_name: str  # the masks are masks/<filter_name>
    candidates: bool  # whether they are stored

    @property
    def model_id(self) -> str:
        """What stands in the `model` column."""
        return f"{self.config.model.name}-{self.model_sha256[:8]}"

    def fingerprint(self) -> dict[str, Any]:
        """The part that a resume may not change."""
        return {
            "schema_version": SCHEMA_VERSION,
            "numeric_version": NUMERIC_VERSION,
            "model": {"name": self.config.model.name, "sha256": self.model_sha256},
            "generate": to_tree(self.config.generate),
        }

    def to_json(self, kind: str) -> dict[str, Any]:
        """The content of build.json."""
        checkpoint = self.config.model.checkpoint
        return {
            "maskmill": __version__,
            "recipe": self.fingerprint(),
            "filter": {"name": self.filter_name, **to_tree(self.config.filter)},
            "checkpoint": checkpoint and str(Path(checkpoint).resolve()),
            "run": to_tree(self.config.run),
            "candidates": self.candidates,
            "inputs": {"url": absolute(self.inputs), "kind": kind},
        }


def write_recipe(build: UPath, recipe: Recipe, kind: str) -> None:
    """build.json and filters/<name>.yaml of a new build."""
    write_bytes(
        build / "filters" / f"{recipe.filter_name}.yaml",
        yaml.safe_dump(to_tree(recipe.config.filter), sort_keys=False).encode(),
    )
    create_if_absent(build / "build.json", to_json(recipe.to_json(kind)))


def own_filter(info: dict[str, Any]) -> FilterConfig:
    """The filter that a build was made with; settings that its maskmill did not know are off."""
    return from_tree(FilterConfig, {key: value for key, value in info["filter"].items() if key != "name"}, "filter.")


def check_recipe(build: UPath, recipe: Recipe) -> None:
    """Refuse to continue a build with another recipe, filter or choice of candidates, naming what differs."""
    info = read_info(build)
    if changes := differences(info["recipe"], recipe.fingerprint()):
        raise UserError(
            f"{str(build)!r} was begun with another recipe: {'; '.join(changes)}. "
            f"Give the same settings, or another --out"
        )
    known = {"name": info["filter"]["name"], **to_tree(own_filter(info))}
    if changes := differences(known, recipe.to_json("")["filter"]):
        raise UserError(
            f"{str(build)!r} was begun with another filter: {'; '.join(changes)}. Give the same filter; "
            f"other masks from the same candidates are the job of `maskmill filter {build} --name NAME`"
        )
    if info["candidates"] != recipe.candidates:
        begun, now = ("with", "without") if recipe.candidates else ("without", "with")
        raise UserError(f"{str(build)!r} was begun {begun} --no-candidates, this command runs {now}: give the same")


def differences(old: Any, new: Any, path: str = "") -> Sequence[str]:
    """One `key: old -> new` for each leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [line for k in keys for line in differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    return [] if old == new else [f"{path}: {old} -> {new}"]
