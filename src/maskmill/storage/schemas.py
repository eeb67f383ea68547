"""The tables of a build: their Arrow schemas, and mask tables as rows (DESIGN section 3.2)."""

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco

from maskmill.masks.boxes import xyxy_to_xywh
from maskmill.masks.table import TOKENS, MaskTable

SCHEMA_VERSION = 1

IMAGES = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sha256", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("num_candidates", pa.int32(), nullable=False),
        pa.field("meta", pa.string()),
    ]
)

MASKS = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("mask_id", pa.int64(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("counts", pa.string(), nullable=False),
        pa.field("area", pa.int32(), nullable=False),
        pa.field("bbox_x", pa.float32(), nullable=False),
        pa.field("bbox_y", pa.float32(), nullable=False),
        pa.field("bbox_w", pa.float32(), nullable=False),
        pa.field("bbox_h", pa.float32(), nullable=False),
        pa.field("predicted_iou", pa.float32()),
        pa.field("stability_score", pa.float32()),
        pa.field("point_x", pa.float64()),
        pa.field("point_y", pa.float64()),
        pa.field("crop_x", pa.int32()),
        pa.field("crop_y", pa.int32()),
        pa.field("crop_w", pa.int32()),
        pa.field("crop_h", pa.int32()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("model", pa.string()),
        pa.field("meta", pa.string()),
    ]
)

OK, EMPTY, QUARANTINED = "ok", "empty", "quarantined"


def mask_rows(image_id: int, masks: MaskTable, model: str) -> pa.Table:
    """The rows of one image, by mask_id."""
    masks = masks.take(np.argsort(masks.mask_id, kind="stable"))
    n = len(masks)
    bbox, crop = xyxy_to_xywh(masks.box), xyxy_to_xywh(masks.crop_box)
    columns = {
        "image_id": np.full(n, image_id, np.int64),
        "mask_id": masks.mask_id,
        "height": np.full(n, masks.height, np.int32),
        "width": np.full(n, masks.width, np.int32),
        "counts": [masks.counts(i) for i in range(n)],
        "area": masks.area.astype(np.int32),
        **{f"bbox_{name}": bbox[:, i].astype(np.float32) for i, name in enumerate("xywh")},
        "predicted_iou": masks.predicted_iou,
        "stability_score": masks.stability_score,
        "point_x": masks.point[:, 0],
        "point_y": masks.point[:, 1],
        **{f"crop_{name}": crop[:, i].astype(np.int32) for i, name in enumerate("xywh")},
        "source": ["auto"] * n,
        "model": [model] * n,
        "meta": pa.nulls(n, pa.string()),
    }
    return pa.table(columns, schema=MASKS)


def to_mask_table(rows: pa.Table, height: int, width: int, first_prompts: np.ndarray) -> MaskTable:
    """The inverse of `mask_rows` for one image: what `apply_filter` takes.

    first_prompts: for each crop of the image's plan the place of its first prompt; it tells each mask's crop index.
    Imports may lack scores and points, which are NaN then, and crops, which are the whole image then.
    """

    def column(name: str) -> np.ndarray:
        return rows.column(name).to_numpy()  # type: ignore[no-any-return]

    def xyxy(prefix: str, missing: tuple[int, int, int, int]) -> np.ndarray:
        """float or int XYWH columns -> int64 N x 4."""
        columns = (rows.column(f"{prefix}_{name}") for name in "xywh")
        xywh = [c.fill_null(v) if c.null_count else c for c, v in zip(columns, missing, strict=True)]
        x, y, w, h = (c.to_numpy().astype(np.int64) for c in xywh)
        return np.stack([x, y, x + w, y + h], axis=1)

    mask_id = column("mask_id")
    return MaskTable(
        height=height,
        width=width,
        mask_id=mask_id,
        predicted_iou=column("predicted_iou"),
        stability_score=column("stability_score"),
        box=xyxy("bbox", (0, 0, 0, 0)),
        area=column("area").astype(np.int64),
        point=np.stack([column("point_x"), column("point_y")], axis=1),
        crop_index=(np.searchsorted(first_prompts, mask_id // TOKENS, side="right") - 1).astype(np.int32),
        crop_box=xyxy("crop", (0, 0, width, height)),
        masks=tuple(rows.column("counts").to_pylist()),
    )


def chosen_rows(candidates: pa.Table, masks: MaskTable) -> pa.Table:
    """The rows of those candidates of one image (by mask_id) that became `masks`, with the pixels they have now."""
    masks = masks.take(np.argsort(masks.mask_id, kind="stable"))
    rows = candidates.take(np.searchsorted(candidates["mask_id"].to_numpy(), masks.mask_id))
    bbox = xyxy_to_xywh(masks.box)
    columns = {
        "counts": [masks.counts(i) for i in range(len(masks))],
        "area": masks.area.astype(np.int32),
        **{f"bbox_{name}": bbox[:, i].astype(np.float32) for i, name in enumerate("xywh")},
    }
    for name, values in columns.items():
        rows = rows.set_column(MASKS.get_field_index(name), MASKS.field(name), pa.array(values, MASKS.field(name).type))
    return rows


def broken_masks(rows: pa.Table) -> list[str]:
    """One line for each row whose RLE disagrees with its size, area or box. Reads runs only, decodes no pixels."""
    problems = []
    names = ["image_id", "mask_id", "height", "width", "counts", "area", "bbox_x", "bbox_y", "bbox_w", "bbox_h"]
    for row in rows.select(names).to_pylist():
        rle = {"size": [row["height"], row["width"]], "counts": row["counts"].encode("ascii", "replace")}
        where = f"image_id {row['image_id']} mask_id {row['mask_id']}"
        end = run_total(row["counts"])
        if end != row["height"] * row["width"]:
            problems.append(f"{where}: counts cover {end} pixels of {row['height']}x{row['width']}")
            continue
        x, y, w, h = coco.toBbox(rle).tolist()
        box = [row["bbox_x"], row["bbox_y"], row["bbox_w"], row["bbox_h"]]
        if coco.area(rle) != row["area"]:
            problems.append(f"{where}: area is {row['area']}, its counts cover {coco.area(rle)}")
        elif row["area"] and box != [x, y, w - 1, h - 1]:
            problems.append(f"{where}: bbox is {box}, its counts give {[x, y, w - 1, h - 1]}")
    return problems


def run_total(counts: str) -> int:
    """Pixels that a compressed COCO string covers, zeros and ones together; -1 if it is no such string."""
    runs = runs_of_counts(counts)
    return -1 if runs is None else sum(runs)


def runs_of_counts(counts: str) -> list[int] | None:
    """The runs of a compressed COCO string, zeros first; None if it is no such string.

    Six bits a character from 48: five of value, one that says more follow; from the third run on, a run is stored as
    its difference to the run two before (cocoapi, maskApi.c, rleFrString).
    """
    runs: list[int] = []
    value = shift = 0
    for char in counts:
        code = ord(char) - 48
        if not 0 <= code < 64:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            return None
        value = shift = 0
    return runs if shift == 0 else None
