"""What the viewer's page asks for: a build, a shelf of images, one image's masks, its masks under another filter."""

import dataclasses
import io
import typing
from collections import Counter
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from maskmill.config import FilterConfig, GenerateConfig, from_tree
from maskmill.errors import UserError
from maskmill.filters.apply import dropped_by
from maskmill.report.facts import filter_settings
from maskmill.report.refilter import candidates_of, check_floor, floors, generate_config
from maskmill.report.sample import layer_prompts
from maskmill.report.shelves import Entry, Shelves
from maskmill.report.stats import crop_layers
from maskmill.storage.build import Build
from maskmill.storage.files import exists
from maskmill.storage.originals import Kept, MissingOriginal, Originals, unchanged
from maskmill.storage.pixels import decode_image
from maskmill.storage.schemas import chosen_rows

SHOWN, THUMB = 2560, 112  # pixels of the longer side
LARGEST = 1 << 53  # where JavaScript's whole numbers end
CHOICES = {"nms_overlap": ["box", "mask"], "shared_pixels": ["keep", "smallest", "best"]}
OFFICIAL = 6  # the first settings are the official generator's; the others are shown on demand


class Viewer:
    """Answers for one build. Every method may be called by several threads at once."""

    def __init__(self, build: Build, images: str | None = None) -> None:
        self.build = build
        self.shelves = Shelves(build)
        self.originals = Originals(build, images)
        self.generate = generate_config(build)
        self.prompts = layer_prompts(build)
        self.encoded: Kept[bytes] = Kept(12)
        self.thumbs: Kept[bytes] = Kept(4000)

    def about(self) -> dict[str, Any]:
        """The build and its filters."""
        self.shelves.refresh()
        return {
            "name": self.build.path.name,
            "path": str(self.build.path),
            "units": len(self.shelves.units),
            "finished": exists(self.build.path / "_SUCCESS"),
            "model": self.build.info["recipe"].get("model"),
            "candidates": bool(self.build.info["candidates"]),
            "filter": self.build.own_filter,
            "filters": {name: self.settings(name) for name in self.build.filters},
            "controls": controls(floors(self.build)) if self.build.info["candidates"] else [],
            "layers": 0 if self.generate is None else self.generate.crop_n_layers,
        }

    def settings(self, filter: str) -> dict[str, Any]:
        """All settings of a stored filter."""
        tree = filter_settings(self.build, filter)
        return dataclasses.asdict(from_tree(FilterConfig, tree)) if tree else {}

    def image(self, unit: str, image_id: str, filter: str) -> dict[str, Any]:
        """One image with the stored masks of a filter, and whether its pixels can be had."""
        entry = self.shelves.entry(unit, image_id, filter)
        file = self.shelves.masks_file(unit, filter)
        rows = self.shelves.image_rows(file, int(image_id)) if file is not None else None
        return {
            **dataclasses.asdict(entry),
            "original": self.original_words(entry),
            "stored": None if rows is None else self.to_json(rows),
        }

    def original_words(self, entry: Entry) -> str | None:
        """Why the pixels cannot be shown; None if they can."""
        try:
            self.originals.read(entry.shard, entry.key)
        except MissingOriginal as e:
            return str(e)
        return None

    def refilter(self, unit: str, image_id: str, tree: dict[str, Any]) -> dict[str, Any]:
        """One image's masks if the filter had these settings, and which setting dropped how many candidates."""
        entry = self.shelves.entry(unit, image_id, self.build.own_filter)
        cfg = from_tree(FilterConfig, tree)
        check_floor(self.build, cfg)
        file = self.shelves.of_images(unit).files.get("candidates")
        if file is None:
            raise UserError("this build has no candidates (--no-candidates): it cannot be filtered again")
        rows = self.shelves.image_rows(file, int(image_id))
        if not entry.height or not entry.width:
            return {"masks": [], "dropped": {}, "candidates": 0}
        image = candidates_of(rows, int(image_id), entry.height, entry.width, self.generate)
        masks, why = dropped_by(image.table, cfg, image.crops, image.image_id)
        return {
            "masks": self.to_json(chosen_rows(rows, masks)),
            "dropped": Counter(why.values()),
            "candidates": len(image.table),
        }

    def to_json(self, rows: pa.Table) -> list[dict[str, Any]]:
        """Rows of masks as the page takes them."""
        layers = crop_layers(rows["mask_id"].to_numpy(), self.prompts).tolist()
        return [
            {
                "id": r["mask_id"] if r["mask_id"] < LARGEST else str(r["mask_id"]),
                "counts": r["counts"],
                "area": r["area"],
                "box": [r["bbox_x"], r["bbox_y"], r["bbox_w"], r["bbox_h"]],
                "predicted_iou": r["predicted_iou"],
                "stability_score": r["stability_score"],
                "point": None if r["point_x"] is None else [r["point_x"], r["point_y"]],
                "crop": None if r["crop_x"] is None else [r["crop_x"], r["crop_y"], r["crop_w"], r["crop_h"]],
                "layer": layer,
                "source": r["source"],
                "model": r["model"],
                "meta": r["meta"],
            }
            for r, layer in zip(rows.to_pylist(), layers, strict=True)
        ]

    def pixels(self, unit: str, image_id: str, small: bool) -> bytes:
        """The upright image as JPEG. MissingOriginal or ValueError if it cannot be had."""
        kept, longest, quality = (self.thumbs, THUMB, 75) if small else (self.encoded, SHOWN, 92)

        def make() -> bytes:
            entry = self.shelves.entry(unit, image_id, self.build.own_filter)
            limit = (self.generate or GenerateConfig()).max_image_mpx
            data = unchanged(self.originals.read(entry.shard, entry.key), self.shelves.sha256(unit, image_id))
            return to_jpeg(decode_image(data, limit), longest, quality)

        return kept.get((unit, image_id), make)


def to_jpeg(image: np.ndarray, longest: int, quality: int) -> bytes:
    """H x W x 3 uint8 -> JPEG, made smaller if a side is longer than `longest`."""
    scale = longest / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=quality)
    return out.getvalue()


def controls(lowest: dict[str, float]) -> list[dict[str, Any]]:
    """One control for each setting of a filter, from its type: what can be moved, and how far."""
    hints = typing.get_type_hints(FilterConfig)
    made = []
    for number, field in enumerate(dataclasses.fields(FilterConfig)):
        control = {"name": field.name, "more": number >= OFFICIAL, **kind(field.name, hints[field.name])}
        if field.name in lowest:
            control["min"] = lowest[field.name]
        made.append(control)
    return made


def kind(name: str, hint: Any) -> dict[str, Any]:
    """How a setting of this type is moved."""
    if hint is float:
        end, step = (20, 0.5) if "ratio" in name else (1, 0.01)
        return {"kind": "range", "min": 0, "max": end, "step": step}
    if hint is int:
        return {"kind": "number", "min": 0, "step": 1}
    if hint is bool:
        return {"kind": "switch"}
    if typing.get_origin(hint) is tuple:
        return {"kind": "tokens", "choices": [0, 1, 2]}
    return {"kind": "choice", "choices": CHOICES[name]}
