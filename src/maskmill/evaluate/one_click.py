"""One click per object: how good is the best of three masks, and what does a disc at the click reach?

`python -m maskmill.evaluate.one_click TARS... [--model nano] [--checkpoint F]`. The protocol is SAM's (paper section 7,
appendix D): the click lies at the place of the human mask farthest from its boundary, figures are means over masks.
The discs are those of evaluate/baselines.py.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from maskmill.errors import UserError
from maskmill.evaluate.baselines import best_discs, disc_ious
from maskmill.prompts.clicks import deepest
from maskmill.sam.build import load_model
from maskmill.sam.sam import Sam

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """IoU of every mask (N) of some images: the best of three masks, the most confident of them (both empty without a
    model), and the disc of every radius (N x R)."""

    best: NDArray[np.float64]
    confident: NDArray[np.float64]
    discs: NDArray[np.float64]


@torch.inference_mode()
def click_masks(
    model: Sam, image: NDArray[np.uint8], points: NDArray[np.float32]
) -> Iterator[tuple[Mask, NDArray[np.float32]]]:
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
    """One click for each mask; without a model only the discs."""
    points = np.array([deepest(m)[0] for m in masks], np.float32)
    discs = np.stack([disc_ious(m, int(x), int(y)) for m, (x, y) in zip(masks, points, strict=True)])
    if model is None:
        return Scores(np.zeros(0), np.zeros(0), discs)
    best, confident = [], []
    for mask, (answers, predicted) in zip(masks, click_masks(model, image, points), strict=True):
        iou = (answers & mask).sum((1, 2)) / (answers | mask).sum((1, 2)).clip(1)
        best.append(iou.max())
        confident.append(iou[predicted.argmax()])
    return Scores(np.array(best), np.array(confident), discs)


def read_masks(path: str | Path, smallest: int = 1) -> Iterator[tuple[NDArray[np.uint8], list[Mask]]]:
    """Images of a WebDataset tar in SA-1B form with their human masks; crowds and masks under `smallest` pixels are
    left out."""
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
            rles = [{**a["segmentation"], "counts": a["segmentation"]["counts"].encode()} for a in rows]
            masks = [coco_mask.decode(rle) for rle in rles]
            kept = [m.astype(bool) for m in masks if m.sum() >= max(1, smallest)]
            if kept:
                yield np.asarray(Image.open(io.BytesIO(read(picture))).convert("RGB")), kept


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m maskmill.evaluate.one_click", description="One click per mask.")
    parser.add_argument("tars", nargs="+", help="WebDataset tars of images and human masks")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--checkpoint", default=None, help="weights (default: those in the package)")
    parser.add_argument("--min-area", type=int, default=1, help="leave out human masks of fewer pixels")
    parser.add_argument("--baseline", action="store_true", help="the discs alone, no model")
    args = parser.parse_args()
    try:
        model = None if args.baseline else load_model(args.model, args.checkpoint)
        run(args.tars, model, args.min_area)
    except UserError as e:
        parser.error(str(e))


def run(tars: list[str], model: Sam | None, smallest: int) -> None:
    """Print one JSON line for every tar and one for all of them."""
    total: list[Scores] = []
    for tar in tars:
        scores = [score_image(model, image, masks) for image, masks in read_masks(tar, smallest)]
        total += scores
        print(json.dumps({"tar": Path(tar).name, **summary(scores)}), flush=True)
    print(json.dumps({"tar": "all", **summary(total)}), flush=True)


def summary(scores: list[Scores]) -> dict[str, object]:
    """Images, masks, and the means over all masks; `radii` are those of the discs."""
    radii, disc = best_discs(np.concatenate([s.discs for s in scores]))
    best, confident = (np.concatenate([getattr(s, name) for s in scores]) for name in ("best", "confident"))
    line: dict[str, object] = {"images": len(scores), "masks": sum(len(s.discs) for s in scores)}
    if len(best):
        line |= {"best": round(float(best.mean()), 4), "confident": round(float(confident.mean()), 4)}
    return line | {"disc": round(disc, 4), "radii": radii}


if __name__ == "__main__":
    main()
