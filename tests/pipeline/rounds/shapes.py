"""Small images of plain shapes with their masks, SA-1B style: quick to make, and found by any model."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from maskmill.masks.rle import encode

SIDE = 96


def shapes(seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Image SIDE x SIDE x 3 uint8 and three masks that do not overlap."""
    rng = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE, 3), rng.integers(0, 60, 3), np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE]
    masks = []
    for cx, cy in ((26, 28), (70, 30), (46, 72)):
        rx, ry = rng.integers(10, 19, 2)
        mask = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
        image[mask] = rng.integers(120, 255, 3)
        masks.append(mask)
    return image, masks


def write_shapes(folder: Path, count: int, first_id: int = 100) -> Path:
    """FOLDER with so many images, a JSON beside each."""
    folder.mkdir(parents=True)
    for n in range(count):
        image, masks = shapes(n)
        Image.fromarray(image).save(folder / f"im{n}.png")
        write_json(folder / f"im{n}.json", first_id + n, masks)
    return folder


def write_json(path: Path, image_id: int, masks: list[np.ndarray], meta: list[dict[str, object]] | None = None) -> None:
    """What SA-1B says about one image; `meta` of each mask."""
    about = {"image_id": image_id, "width": SIDE, "height": SIDE, "file_name": path.with_suffix(".png").name}
    annotations = [
        {
            "id": i, "bbox": bbox(mask), "area": int(mask.sum()), "meta": (meta or [{}] * len(masks))[i],
            "segmentation": {"size": [SIDE, SIDE], "counts": encode(mask)},
        }
        for i, mask in enumerate(masks)
    ]  # fmt: skip
    path.write_text(json.dumps({"image": about, "annotations": annotations}))


def bbox(mask: np.ndarray) -> list[int]:
    """COCO's: x, y, width and height of the pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(v) for v in (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)]
