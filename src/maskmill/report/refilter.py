"""The filter on single images of a build, from their stored candidates: what a slider moves (promise 5)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskmill.config import FilterConfig, GenerateConfig, from_tree, to_tree
from maskmill.errors import UserError
from maskmill.filters.apply import apply_filter
from maskmill.generate.grids import crop_plan
from maskmill.masks.table import MaskTable
from maskmill.storage.build import Build
from maskmill.storage.schemas import to_mask_table


@dataclass(frozen=True)
class Candidates:
    """All candidates of one image, as `apply_filter` takes them."""

    image_id: int
    table: MaskTable
    crops: int

    def apply(self, cfg: FilterConfig) -> MaskTable:
        """The masks that a fresh run with this filter would have stored."""
        return apply_filter(self.table, cfg, self.crops, self.image_id)


def generate_config(build: Build) -> GenerateConfig | None:
    """How the build's candidates were made; None for an import."""
    tree = build.info["recipe"].get("generate")
    return None if not tree else from_tree(GenerateConfig, tree)


def candidates_of(rows: pa.Table, image_id: int, height: int, width: int, cfg: GenerateConfig | None) -> Candidates:
    """From the rows of a table of candidates, by mask_id, of which those of one image are taken."""
    rows = rows.filter(pc.equal(rows["image_id"], image_id))
    first_prompts = [crop.first_prompt for crop in crop_plan(height, width, cfg)] if cfg else [0]
    return Candidates(image_id, to_mask_table(rows, height, width, np.array(first_prompts)), len(first_prompts))


def check_floor(build: Build, cfg: FilterConfig) -> None:
    """UserError for a threshold below what the build kept."""
    for name, floor in floors(build).items():
        if getattr(cfg, name) < floor:
            raise UserError(f"filter.{name}={getattr(cfg, name):g} lies below the build's floor {floor:g}")


def floors(build: Build) -> dict[str, float]:
    """The lowest threshold of each name for which the build still has all candidates."""
    cfg = generate_config(build)
    if cfg is None:
        return {}
    return {"pred_iou_thresh": cfg.floor_pred_iou, "stability_score_thresh": cfg.floor_stability}


def sweep(images: list[Candidates], cfg: FilterConfig, name: str, values: np.ndarray) -> Iterator[float]:
    """Masks an image if one threshold of the filter had each of `values`; small regions are left as they are."""
    for value in values:
        moved = from_tree(FilterConfig, {**to_tree(cfg), "min_mask_region_area": 0, name: float(value)})
        yield sum(len(image.apply(moved)) for image in images) / max(1, len(images))
