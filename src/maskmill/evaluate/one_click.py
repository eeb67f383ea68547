"""One click per object: how good is the best of three masks, and what does a disc at the click reach?

`python -m maskmill.evaluate.one_click TARS... [--model nano] [--checkpoint F]`. The protocol is SAM's (paper section 7,
appendix D): the click lies at the place of the human mask farthest from its boundary, figures are means over masks.
The baseline knows nothing but the click: of three discs, whose radii are fixed fractions of the image's longer side,
the best one counts, as of the three masks.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from maskmill.errors import UserError
from maskmill.sam.build import load_model
from maskmill.sam.sam import Sam

RADII = (0.03, 0.08, 0.2)  # of the longer side
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """IoU of every mask of some images: best of three masks, the most confident of them, the best of three discs."""

    best: NDArray[np.float64]
    confident: NDArray[np.float64]
    disc: NDArray[np.float64]


def deepest_point(mask: Mask) -> tuple[int, int]:
    """(x, y) of the pixel farthest from the mask's boundary; the image's border is a boundary too."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


def disc_iou(mask: Mask, x: int, y: int, radii: tuple[float, ...] = RADII) -> float:
    """The best IoU of the discs around (x, y) with an H x W mask; radii are fractions of the longer side."""
    h, w = mask.shape
    square = (np.arange(h)[:, None] - y) ** 2 + (np.arange(w)[None] - x) ** 2
    discs = (square <= (r * max(h, w)) ** 2 for r in radii)
    return max(float((d & mask).sum() / (d | mask).sum()) for d in discs)


@torch.inference_mode()
def click_masks(model: Sam, image: NDArray[np.uint8], points: NDArray[np.float32]) -> Iterator[tuple[Mask, NDArray[np.float32]]]:
    """For each of N x 2 clicks (x, y) on an H x W x 3 uint8 image: 3 x H x W masks and their 3 predicted IoUs."""
    h, w = image.shape[:2]
    embedding, size = model.encode(image)
    scale = np.array([size[1] / w, size[0] / h])
    pe = model.prompt_encoder.get_dense_pe()
    for start in range(0, len(points), 16):
        coords = torch.as_tensor(points[start : start + 16] * scale, dtype=torch.float32, device=model.device)[:, None]
        labels = torch.ones(len(coords), 1, dtype=torch.int, device=model.device)
        sparse, dense = model.prompt_encoder((coords, labels), None, None)
        low, scores = model.mask_decoder(embedding, pe, sparse, dense, multimask_output=True)
        masks = model.postprocess_masks(low, size, (h, w)) > model.mask_threshold
        yield from zip(masks.cpu().numpy(), scores.cpu().numpy(), strict=True)


def score_image(model: Sam | None, image: NDArray[np.uint8], masks: list[Mask]) -> Scores:
    """One click for each mask; without a model only the discs (the other figures are zero)."""
    points = np.array([deepest_point(m) for m in masks], np.float32)
    disc = np.array([disc_iou(m, int(x), int(y)) for m, (x, y) in zip(masks, points, strict=True)])
    if model is None:
        return Scores(np.zeros_like(disc), np.zeros_like(disc), disc)
    best, confident = [], []
    for mask, (answers, predicted) in zip(masks, click_masks(model, image, points), strict=True):
        iou = (answers & mask).sum((1, 2)) / (answers | mask).sum((1, 2)).clip(1)
        best.append(iou.max())
        confident.append(iou[predicted.argmax()])
    return Scores(np.array(best), np.array(confident), disc)


def read_masks(path: str | Path) -> Iterator[tuple[NDArray[np.uint8], list[Mask]]]:
    """Images of a WebDataset tar in SA-1B form with their human masks; crowds and empty masks are left out."""
    if not Path(path).is_file():
        raise UserError(f"{str(path)!r} is not a file: expected a WebDataset tar of images and masks")
    with tarfile.open(path) as tar:
        files = {m.name: m for m in tar if m.isfile()}

        def read(name: str) -> bytes:
            handle = tar.extractfile(files[name])
            assert handle is not None  # only regular files were listed
            return handle.read()

        for name in sorted(n for n in files if n.endswith(".json")):
            stem = name.removesuffix(".json")
            picture = next((stem + e for e in (".jpg", ".jpeg", ".png") if stem + e in files), None)
            if picture is None:
                raise UserError(f"{str(path)!r}: {name} has no picture beside it")
            rows = [a for a in json.loads(read(name))["annotations"] if not a.get("iscrowd", 0)]
            masks = [coco_mask.decode({**a["segmentation"], "counts": a["segmentation"]["counts"].encode()}) for a in rows]
            kept = [m.astype(bool) for m in masks if m.any()]
            if kept:
                yield np.asarray(Image.open(io.BytesIO(read(picture))).convert("RGB")), kept


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m maskmill.evaluate.one_click", description="One click per mask.")
    parser.add_argument("tars", nargs="+", help="WebDataset tars of images and human masks")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--checkpoint", default=None, help="weights (default: those in the package)")
    parser.add_argument("--baseline", action="store_true", help="the discs alone, no model")
    args = parser.parse_args()
    model = None if args.baseline else load_model(args.model, args.checkpoint, "cpu")
    total: list[Scores] = []
    for tar in args.tars:
        scores = [score_image(model, image, masks) for image, masks in read_masks(tar)]
        total += scores
        print(json.dumps({"tar": Path(tar).name, **summary(scores)}), flush=True)
    print(json.dumps({"tar": "all", **summary(total)}), flush=True)


def summary(scores: list[Scores]) -> dict[str, float]:
    """Images, masks, and the means over all masks."""
    means = {name: np.concatenate([getattr(s, name) for s in scores]) for name in ("best", "confident", "disc")}
    line: dict[str, float] = {"images": len(scores), "masks": len(means["disc"])}
    return line | {name: round(float(values.mean()), 4) for name, values in means.items()}


if __name__ == "__main__":
    main()
