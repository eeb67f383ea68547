import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskmill.errors import UserError
from maskmill.evaluate import one_click


def rectangle(h: int, w: int, box: tuple[int, int, int, int]) -> np.ndarray:
    x0, y0, x1, y1 = box
    mask = np.zeros((h, w), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def write_tar(path: Path, masks: list[np.ndarray], crowd: list[int]) -> None:
    h, w = masks[0].shape
    picture = io.BytesIO()
    Image.fromarray(np.full((h, w, 3), 90, np.uint8)).save(picture, "png")
    rows = []
    for mask, flag in zip(masks, crowd, strict=True):
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        rows.append({"segmentation": {**rle, "counts": rle["counts"].decode()}, "iscrowd": flag})
    record = json.dumps({"image": {"height": h, "width": w}, "annotations": rows}).encode()
    with tarfile.open(path, "w") as tar:
        for name, data in (("a.png", picture.getvalue()), ("a.json", record)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_crowds_and_empty_masks_are_left_out(tmp_path: Path) -> None:
    masks = [rectangle(30, 40, (5, 5, 15, 15)), np.zeros((30, 40), bool), rectangle(30, 40, (20, 5, 30, 15))]
    write_tar(tmp_path / "a.tar", masks, [0, 0, 1])
    ((image, kept),) = one_click.read_masks(tmp_path / "a.tar")
    assert image.shape == (30, 40, 3) and len(kept) == 1 and np.array_equal(kept[0], masks[0])
    assert list(one_click.read_masks(tmp_path / "a.tar", smallest=101)) == []
    with pytest.raises(UserError, match="is not a file"):
        next(one_click.read_masks(tmp_path / "b.tar"))
