"""Builds made of nothing but tables: as many masks as a measurement needs, in seconds."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from maskmill.config import resolve
from maskmill.masks.rle import encode
from maskmill.pipeline.plan import Unit, write_plan
from maskmill.pipeline.recipe import Recipe, write_recipe
from maskmill.storage.build import Build
from maskmill.storage.files import at, parquet_bytes, to_json, write_bytes
from maskmill.storage.ledger import DataFile, Ledger, Manifest, hash_keys
from maskmill.storage.schemas import IMAGES, MASKS
from maskmill.storage.sources import image_id

HEIGHT, WIDTH = 120, 160


def shapes(count: int) -> list[tuple[str, int, list[float]]]:
    """Counts, area and SA-1B box of `count` ragged discs."""
    rng, found = np.random.default_rng(0), []
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for _ in range(count):
        cx, cy, r = rng.integers(30, WIDTH - 30), rng.integers(30, HEIGHT - 30), rng.integers(5, 28)
        mask = np.hypot(x - cx, y - cy) + rng.random((HEIGHT, WIDTH)) < r
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), np.ptp(xs), np.ptp(ys)]
        found.append((encode(mask), int(mask.sum()), [float(v) for v in box]))
    return found


def write_build(out: Path, units: int, images: int = 50, masks: int = 200) -> Build:
    """A finished build of `units` x `images` x `masks`. It has no candidates, and its images lie nowhere."""
    build, some = at(out), shapes(200)
    recipe = Recipe(resolve(), "0" * 64, str(out.parent / "images"), "default", candidates=False)
    plan = []
    for u in range(units):
        keys = tuple(f"{u:03d}/{i:04d}.png" for i in range(images))
        plan.append(Unit(f"{u:06d}", "folder", ".", recipe.inputs, 0, keys[0], keys[-1], images, 0, "", keys))
    write_plan(build / "plan.parquet", plan)
    write_recipe(build, recipe, "folder")
    for unit in plan:
        ids = np.array([image_id(".", key) for key in unit.keys or ()])
        tables = {"images": image_rows(unit, ids, masks), "masks/default": mask_rows(ids, masks, some)}
        files = {}
        for name, table in tables.items():
            data = parquet_bytes(table, ["image_id"] if name == "images" else ["image_id", "mask_id"], {})
            files[name] = DataFile.write(build, f"{name}/{unit.unit}-0.parquet", table.num_rows, data)
        rows = images * masks
        manifest = Manifest(
            unit.unit, "0", files, images, 0, 0, rows, rows, hash_keys(unit.keys or ()), 1.0, "here",
            "2025-01-01T00:00:00+00:00",
        )  # fmt: skip
        assert Ledger(build).commit(manifest)
    write_bytes(build / "_SUCCESS", to_json({}))
    return Build(out)


def image_rows(unit: Unit, ids: np.ndarray, masks: int) -> pa.Table:
    n = len(ids)
    columns = {
        "image_id": ids, "shard": ["."] * n, "key": list(unit.keys or ()), "width": np.full(n, WIDTH, np.int32),
        "height": np.full(n, HEIGHT, np.int32), "sha256": ["0"] * n, "status": ["ok"] * n,
        "error": pa.nulls(n, pa.string()),
        "num_candidates": np.full(n, masks, np.int32), "meta": pa.nulls(n, pa.string()),
    }  # fmt: skip
    return pa.table(columns, schema=IMAGES)


def mask_rows(ids: np.ndarray, masks: int, some: list[tuple[str, int, list[float]]]) -> pa.Table:
    n = len(ids) * masks
    picked = [some[i % len(some)] for i in range(n)]
    boxes = np.array([box for _, _, box in picked], np.float32)
    columns = {
        "image_id": np.repeat(ids, masks), "mask_id": np.tile(np.arange(masks), len(ids)),
        "height": np.full(n, HEIGHT, np.int32), "width": np.full(n, WIDTH, np.int32),
        "counts": [counts for counts, _, _ in picked], "area": np.array([area for _, area, _ in picked], np.int32),
        **{f"bbox_{c}": boxes[:, i] for i, c in enumerate("xywh")},
        "predicted_iou": np.random.default_rng(1).random(n, np.float32), "stability_score": np.ones(n, np.float32),
        "point_x": boxes[:, 0].astype(float), "point_y": boxes[:, 1].astype(float),
        **{f"crop_{c}": np.full(n, v, np.int32) for c, v in zip("xywh", (0, 0, WIDTH, HEIGHT), strict=True)},
        "source": ["auto"] * n, "model": ["nano-00000000"] * n, "meta": pa.nulls(n, pa.string()),
    }  # fmt: skip
    return pa.table(columns, schema=MASKS)
