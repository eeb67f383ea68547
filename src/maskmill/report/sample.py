"""What a report reads of a build: columns, of all its units or of a sample of them that is the same every time."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskmill.config import GenerateConfig, from_tree
from maskmill.errors import UserError
from maskmill.generate.grids import layer_grids
from maskmill.report.stats import Masks, crop_layers
from maskmill.storage.build import Build, read_table
from maskmill.storage.ledger import DataFile, Manifest
from maskmill.storage.schemas import QUARANTINED

COLUMNS = [
    *("image_id", "mask_id", "height", "width", "area", "bbox_x", "bbox_y", "bbox_w", "bbox_h"),
    *("predicted_iou", "stability_score"),
]  # no counts: they are nine tenths of the bytes


@dataclass(frozen=True)
class Part:
    """One committed unit and the file that holds its masks of the report's filter."""

    manifest: Manifest
    masks: DataFile


@dataclass(frozen=True)
class Sample:
    """What was read. `parts` are the units drawn, out of `of`; if all were, the figures are exact."""

    parts: tuple[Part, ...]
    of: int
    images: pa.Table  # image_id, shard, key, width, height, status; without the quarantined
    masks: Masks
    candidates: Masks | None  # None: none are stored

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        return len(self.parts) == self.of


def draw(parts: Sequence[Part], budget: int) -> list[Part]:
    """Units in the order of their names' hashes until they hold `budget` candidates and masks; at least one."""
    chosen: list[Part] = []
    rows = 0
    for part in sorted(parts, key=lambda p: hashlib.sha256(p.manifest.unit.encode()).digest()):
        if chosen and rows >= budget:
            break
        chosen.append(part)
        rows += part.masks.rows + stored_candidates(part)
    return sorted(chosen, key=lambda p: p.manifest.unit)


def stored_candidates(part: Part) -> int:
    """Rows of the unit's candidates."""
    return part.manifest.files["candidates"].rows if "candidates" in part.manifest.files else 0


def read_sample(build: Build, parts: Sequence[Part], budget: int) -> Sample:
    """Images, masks and candidates of the units that `draw` picks, without their pixels."""
    drawn = draw(parts, budget)
    prompts = layer_prompts(build)
    has_candidates = all("candidates" in p.manifest.files for p in drawn)
    images = [read_images(build, p) for p in drawn]
    masks = [read_rows(build, p.masks, COLUMNS) for p in drawn]
    candidates = [read_rows(build, p.manifest.files["candidates"], COLUMNS) for p in drawn] if has_candidates else []
    return Sample(
        parts=tuple(drawn),
        of=len(parts),
        images=pa.concat_tables(images),
        masks=to_columns(pa.concat_tables(masks), prompts),
        candidates=to_columns(pa.concat_tables(candidates), prompts) if has_candidates else None,
    )


def read_images(build: Build, part: Part) -> pa.Table:
    """The images of one unit that could be read."""
    columns = ["image_id", "shard", "key", "width", "height", "status", "sha256"]
    table = build.read_unit(part.manifest, "images", columns)
    return table.filter(pc.not_equal(table["status"], QUARANTINED))


def layer_prompts(build: Build) -> list[int]:
    """How many prompts each crop layer has over all its crops; one layer without end for an import."""
    tree = build.info["recipe"].get("generate")
    if not isinstance(tree, Mapping):
        return [1]
    grids = layer_grids(from_tree(GenerateConfig, dict(tree)))
    return [len(grid) * 4**layer for layer, grid in enumerate(grids)]


def to_columns(table: pa.Table, prompts: Sequence[int]) -> Masks:
    """Arrow -> arrays; a null score becomes NaN."""

    def column(name: str) -> np.ndarray:
        return table.column(name).to_numpy()  # type: ignore[no-any-return]

    mask_id = column("mask_id")
    return Masks(
        image_id=column("image_id"),
        mask_id=mask_id,
        height=column("height"),
        width=column("width"),
        area=column("area"),
        box=np.stack([column(f"bbox_{name}") for name in "xywh"], axis=1),
        predicted_iou=column("predicted_iou").astype(np.float32),
        stability_score=column("stability_score").astype(np.float32),
        layer=crop_layers(mask_id, prompts),
    )


def read_rows(build: Build, file: DataFile, columns: list[str]) -> pa.Table:
    """Some columns of one committed file."""
    return read_table(build.path / file.path, columns).replace_schema_metadata(None)


def with_counts(build: Build, part: Part, image_ids: Sequence[int] | None) -> pa.Table:
    """The masks of some images of a unit, or of all, RLE included."""
    table = read_rows(build, part.masks, [*COLUMNS, "counts"])
    return table if image_ids is None else table.filter(pc.is_in(table["image_id"], pa.array(image_ids, pa.int64())))


def parts_of(build: Build, filter: str) -> list[Part]:
    """The committed units that have masks of this filter, by unit. UserError if none has."""
    name = f"masks/{filter}"
    if filter not in (known := build.filters):
        raise UserError(f"{str(build.path)!r} has no filter {filter!r}: it has {', '.join(known)}")
    files = {m.unit: m.files[name] for m in build.manifests(name) if name in m.files}
    return [Part(m, files[m.unit]) for m in build.manifests() if m.unit in files]
