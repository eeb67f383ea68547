"""What masks cost on disk: bytes a mask and a candidate, and what each floor of the candidates adds.

    maskmill generate IMAGES --out masks/ --set generate.floor_pred_iou=0 --set generate.floor_stability=0
    python -m benchmarks.storage masks/ --name photos

Measures a finished build. For a higher floor than its own, the candidates above it are written again with the build's
own writer, unit by unit: by promise 4 those are the files that a build with that floor would hold. Also the size of the
same masks in other formats. Writes results/storage-NAME.json.
"""

import argparse
import json
import os
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskmill.storage.build import Build, read_table
from maskmill.storage.coco import Categories, to_coco_mask
from maskmill.storage.files import parquet_bytes
from maskmill.storage.sa1b import annotation

FLOORS = [(0.0, 0.0), (0.25, 0.6), (0.4, 0.7), (0.6, 0.8), (0.7, 0.85), (0.8, 0.9), (0.88, 0.95)]


def tables(build: Build, name: str) -> list[pa.Table]:
    """One for each unit, with its footer."""
    return [read_table(build.path / m.files[name].path) for m in build.manifests()]


def column_bytes(build: Build, name: str) -> dict[str, int]:
    """Compressed bytes of each column over all units."""
    total: Counter[str] = Counter()
    for manifest in build.manifests():
        file = pq.ParquetFile(str(build.path / manifest.files[name].path)).metadata
        for group in range(file.num_row_groups):
            for i in range(file.num_columns):
                column = file.row_group(group).column(i)
                total[column.path_in_schema] += column.total_compressed_size
    return dict(total.most_common())


def at_floor(units: list[pa.Table], images: int, floor: tuple[float, float]) -> dict[str, Any]:
    """Candidates that pass a floor (compared as generate/candidates.py does), and the bytes of their files."""
    rows = size = 0
    for table in units:
        above = pc.and_(
            pc.greater(table["predicted_iou"], pa.scalar(floor[0], pa.float32())),
            pc.greater_equal(table["stability_score"], pa.scalar(floor[1], pa.float32())),
        )
        kept = table.filter(above) if any(floor) else table
        rows += kept.num_rows
        size += len(parquet_bytes(kept, ["image_id", "mask_id"], {}))
    return {
        "floor_pred_iou": floor[0],
        "floor_stability": floor[1],
        "candidates_an_image": round(rows / images, 1),
        "bytes_a_candidate": round((size - len(units) * empty_file(units[0])) / rows, 1) if rows else None,
        "kb_an_image": round(size / images / 1000, 1),
    }


def empty_file(table: pa.Table) -> int:
    """Bytes of a file without rows: schema and footer. Left out of bytes a row: how many rows share them is chance."""
    return len(parquet_bytes(table.slice(0, 0), ["image_id", "mask_id"], {}))


def in_json(masks: list[pa.Table]) -> dict[str, float]:
    """Bytes a mask in the JSON of other formats."""
    categories = Categories()
    categories.add(None)
    categories.settle()
    rows = [row for table in masks for row in table.to_pylist()]
    sa1b = sum(len(json.dumps(annotation(row))) for row in rows)
    coco = sum(len(json.dumps(to_coco_mask(row, i + 1, 1, categories))) for i, row in enumerate(rows))
    return {"sa1b_json": round(sa1b / len(rows), 1), "coco_json": round(coco / len(rows), 1)}


def measure(path: str) -> dict[str, Any]:
    """All figures of one build."""
    build = Build(path)
    manifests, own = build.manifests(), f"masks/{build.own_filter}"
    images = sum(m.images for m in manifests)
    candidates, masks = tables(build, "candidates"), tables(build, own)
    rows = sum(t.num_rows for t in masks)
    size = sum(m.files[own].bytes for m in manifests) - len(masks) * empty_file(masks[0])
    generate = build.info["recipe"]["generate"]
    lowest = (generate["floor_pred_iou"], generate["floor_stability"])
    floors = [f for f in FLOORS if f[0] >= lowest[0] and f[1] >= lowest[1]]
    floors = floors[:1] if build.imported else floors  # it has no scores
    return {
        "images": images,
        "units": len(manifests),
        "points_per_side": generate.get("points_per_side"),
        "filter": build.info["filter"],
        "bytes_of_an_empty_file": empty_file(masks[0]),
        "masks_an_image": round(rows / images, 1),
        "bytes_a_mask": round(size / rows, 1),
        "bytes_a_mask_in_json": in_json(masks),
        "candidates_by_floor": [
            at_floor(candidates, images, f) for f in (floors if not build.imported else floors[:1])
        ],
        "candidates_share_of_columns": shares(column_bytes(build, "candidates")),
    }


def shares(sizes: dict[str, int]) -> dict[str, float]:
    """Of the whole, largest first."""
    total = sum(sizes.values())
    return {name: round(size / total, 3) for name, size in sizes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--name", default="build", help="for the result's file name")
    args = parser.parse_args()
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "pyarrow": pa.__version__}
    result = {"machine": machine, **measure(args.build)}
    print(json.dumps(result, indent=1))
    target = Path(__file__).parent / "results" / f"storage-{args.name}.json"
    target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
