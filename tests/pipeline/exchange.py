"""What the tests of export and import share: commands, and small sets by other tools."""

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from click.testing import CliRunner, Result
from PIL import Image

from maskmill.masks.rle import encode
from maskmill.pipeline.cli import main
from maskmill.pipeline.verify import verify
from maskmill.storage.build import Build
from tests.pipeline.conftest import drawing

SA1B = ["image_id", "mask_id", "height", "width", "counts", "area", "bbox_x", "bbox_y", "bbox_w", "bbox_h"]
SA1B += ["predicted_iou", "stability_score", "point_x", "point_y", "crop_x", "crop_y", "crop_w", "crop_h"]
H, W = 30, 40


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words], catch_exceptions=False)


def done(*words: str | Path) -> Result:
    """A command that works; the local engine in this process."""
    result = run("--debug", *words)
    assert result.exit_code == 0, result.output
    return result


def export(source: Path, dest: Path, format: str, *more: str | Path) -> Path:
    done("export", source, dest, "--format", format, "--quiet", *more)
    return dest


def import_(source: Path, out: Path, format: str, *more: str | Path) -> Build:
    """An import that keeps every promise."""
    done("import", source, "--out", out, "--format", format, "--quiet", *more)
    assert list(verify(out, quick=False)) == []
    return Build(out)


def complaint(result: Result) -> str:
    """The one line of a refused command."""
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == 2, (result.exit_code, result.output)
    assert len(lines) == 1 and lines[0].startswith("maskmill: ") and "Traceback" not in result.output, result.output
    return lines[0]


def sorted_masks(made: Build, columns: list[str] = SA1B) -> pa.Table:
    return made.masks().sort_by([("image_id", "ascending"), ("mask_id", "ascending")]).select(columns)


def jpeg(seed: int, size: tuple[int, int], orientation: int) -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    drawing(seed, size).save(out, "JPEG", exif=exif)
    return out.getvalue()


def index_of(dest: Path) -> dict[int, dict[str, str]]:
    """image_id -> line of index.csv."""
    with (dest / "index.csv").open(newline="") as file:
        return {int(line["image_id"]): line for line in csv.DictReader(file)}


def everything(dest: Path) -> dict[str, str]:
    """Every file but the receipts' folder, hashed."""
    found = (p for p in dest.rglob("*") if p.is_file() and ".export" not in p.parts)
    return {str(p.relative_to(dest)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def foreign(folder: Path, name: str = "instances.json", **changes: Any) -> Path:
    """A COCO set by another tool: RLE of both kinds, polygons, a crowd, categories, fields that we do not know."""
    folder.mkdir(parents=True, exist_ok=True)
    drawing(1, (W, H)).save(folder / "a.png")
    drawing(2, (W, H)).save(folder / "b.png")
    mask = np.zeros((H, W), bool)
    mask[4:14, 3:19] = True
    runs = [3 * H + 4] + [10, H - 10] * 15 + [10]
    runs.append(H * W - sum(runs))
    tree: dict[str, Any] = {
        "info": {"year": 2017},
        "licenses": [{"id": 2, "name": "CC"}],
        "annotations": [
            {"id": 70, "image_id": 9, "category_id": 17, "iscrowd": 1,
             "segmentation": {"size": [H, W], "counts": runs}},
            {"id": 80, "image_id": 3, "category_id": 18, "iscrowd": 0, "area": 2.5, "bbox": [0, 0, 1, 1],
             "segmentation": [[5, 5, 20, 5, 20, 15.5, 5, 15.5]], "attributes": {"occluded": True}},
            {"id": 71, "image_id": 9, "category_id": 17, "segmentation": {"size": [H, W], "counts": encode(mask)}},
        ],
        "images": [
            {"id": 9, "file_name": "a.png", "width": W, "height": H, "license": 2},
            {"id": 3, "file_name": "b.png", "width": W, "height": H},
        ],
        "categories": [
            {"id": 17, "name": "cat", "supercategory": "animal", "keypoints": ["tail"]},
            {"id": 18, "name": "dog", "supercategory": "animal"},
        ],
    }  # fmt: skip
    tree |= changes
    (folder / name).write_text(json.dumps(tree))
    return folder / name


def sa1b_folder(folder: Path, count: int = 3) -> Path:
    """`count` drawings with a JSON of two masks each."""
    folder.mkdir(parents=True)
    for i in range(count):
        drawing(i, (W, H)).save(folder / f"sa_{i}.png")
        masks = []
        for n in range(2):
            pixels = np.zeros((H, W), bool)
            pixels[2 + i : 9, 3 + 5 * n : 30] = True
            masks.append({"id": 10 * i + n, "segmentation": {"size": [H, W], "counts": encode(pixels)}})
        image = {"image_id": i, "width": W, "height": H, "file_name": f"sa_{i}.png"}
        (folder / f"sa_{i}.json").write_text(json.dumps({"image": image, "annotations": masks}))
    return folder


def grey(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))
