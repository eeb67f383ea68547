"""`Build`: read a build by its ledger, as Arrow tables."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from maskmill.errors import UserError
from maskmill.masks.rle import decode
from maskmill.storage import remote
from maskmill.storage.files import at, exists, names_in, read_bytes
from maskmill.storage.ledger import Ledger, Manifest
from maskmill.storage.schemas import IMAGES, MASKS


class Build:
    """One output directory. Only files that a manifest names are read, so orphans of killed attempts never show."""

    def __init__(self, path: str | Path | UPath) -> None:
        self.path = at(path)
        if not exists(self.path / "build.json"):
            raise UserError(f"{str(path)!r} is not a build: it has no build.json (maskmill generate makes one)")

    @cached_property
    def info(self) -> dict[str, Any]:
        """build.json: schema version, recipe, resolved config, inputs."""
        return read_info(self.path)

    def manifests(self, table: str = "images") -> list[Manifest]:
        """The manifest of every committed unit of a table."""
        return self.ledger(table).manifests()

    def ledger(self, table: str = "images") -> Ledger:
        """Where a table is committed. The build's own tables are so together, masks of later filters each by itself."""
        name = table.removeprefix("masks/")
        return Ledger(self.path, f"masks.{name}" if name != table and name != self.own_filter else "images")

    @property
    def own_filter(self) -> str:
        """The name of the filter that the build was made with."""
        return str(self.info["filter"]["name"])

    @property
    def imported(self) -> bool:
        """Whether its masks were imported: no model made them, and images keep the ids of their source."""
        return "import" in self.info["recipe"]

    @property
    def filters(self) -> list[str]:
        """Names of the filters whose masks are stored; not all units of a later one need be done yet."""
        return sorted([self.own_filter, *self.later_filters])

    @property
    def later_filters(self) -> list[str]:
        """Names of the filters that `maskmill filter` has made masks with."""
        names = (n.removesuffix(".yaml") for n in names_in(self.path / "filters") if n.endswith(".yaml"))
        return [n for n in names if n != self.own_filter and self.ledger(f"masks/{n}").redos()]

    def images(self) -> pa.Table:
        """One row for every input image, also the empty and the quarantined."""
        return self.read("images", IMAGES)

    def candidates(self) -> pa.Table:
        """One row for every candidate."""
        if self.info["candidates"] is False:
            raise UserError(f"{str(self.path)!r} was built with --no-candidates: it holds masks only")
        return self.read("candidates", MASKS)

    def masks(self, filter: str | None = None) -> pa.Table:
        """One row for every mask of a filter; by default of the one it was built with."""
        filter = filter or self.own_filter
        if filter not in (names := self.filters):
            raise UserError(f"{str(self.path)!r} has no filter {filter!r}: it has {', '.join(names)}")
        return self.read(f"masks/{filter}", MASKS)

    def read(self, table: str, schema: pa.Schema) -> pa.Table:
        """Every committed file of a table, one below the other."""
        parts = [self.read_unit(m, table) for m in self.manifests(table) if table in m.files]
        return pa.concat_tables([schema.empty_table(), *parts])

    def newest(self, unit: str, table: str = "images") -> Manifest:
        """The manifest of a committed unit that counts."""
        return Manifest.read(self.ledger(table).newest()[unit])

    def read_unit(self, manifest: Manifest, table: str, columns: list[str] | None = None) -> pa.Table:
        """One unit's rows of a table."""
        return read_table(self.path / manifest.files[table].path, columns).replace_schema_metadata(None)

    @staticmethod
    def decode(row: Mapping[str, Any]) -> np.ndarray:
        """The bool height x width pixels of one row of masks or candidates."""
        return decode(row["counts"], row["height"], row["width"])


def read_info(build: UPath) -> dict[str, Any]:
    """What build.json says. UserError if it is damaged."""
    path = build / "build.json"
    try:
        tree = json.loads(read_bytes(path))
    except ValueError as e:
        raise damaged(path, e) from e
    if not isinstance(tree, dict):
        raise damaged(path, ValueError("no JSON object"))
    return tree


def damaged(path: UPath, error: Exception) -> UserError:
    """Of a file that says what the whole build is: nothing else knows that."""
    words = " ".join(str(error).split())
    return UserError(f"{str(path)!r} is damaged ({words}): restore it from a copy, or begin another build")


def read_table(path: UPath, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file, footer metadata included."""
    with remote.named(path), path.open("rb") as file:
        return pq.ParquetFile(file).read(columns)
