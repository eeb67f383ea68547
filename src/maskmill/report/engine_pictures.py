"""Pictures of the rounds: images with their masks, coloured by who made them."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np
import pyarrow.compute as pc
from PIL import Image

from maskmill.masks.rle import decode
from maskmill.report.overlay import overlay
from maskmill.storage.build import Build
from maskmill.storage.ledger import Manifest
from maskmill.storage.originals import MissingOriginal, Originals
from maskmill.storage.pixels import decode_image

EDITS = {"drawn": (66, 124, 255), "accepted": (46, 204, 113), "fixed": (255, 149, 20)}
GREY = (160, 160, 160)
SIDE = 420  # pixels of the longer side
MAX_MPX = 536.0


@dataclass(frozen=True)
class Shot:
    """One picture as a data URI, and what is said below it."""

    uri: str
    words: str


def shots(path: Path, count: int) -> Iterator[Shot]:
    """`count` images of a build at equal distances, with their masks; those of a round are coloured by edit."""
    build = Build(path)
    manifests = [m for m in build.manifests() if m.images]
    originals = Originals(build)
    ends = np.cumsum([m.images for m in manifests])
    total = int(ends[-1]) if len(ends) else 0
    for place in np.unique(np.linspace(0, total, min(count, total), endpoint=False).astype(int)).tolist():
        unit = int(np.searchsorted(ends, place, side="right"))
        yield shot(build, originals, manifests[unit], place - (int(ends[unit - 1]) if unit else 0))


def shot(build: Build, originals: Originals, manifest: Manifest, i: int) -> Shot:
    """The i-th image of a unit. On grey if the image is not to be had any more."""
    about = (
        build.read_unit(manifest, "images", ["image_id", "shard", "key", "width", "height"]).slice(i, 1).to_pylist()[0]
    )
    table = build.read_unit(manifest, f"masks/{build.own_filter}", ["image_id", "counts", "height", "width", "meta"])
    rows = table.filter(pc.equal(table["image_id"], about["image_id"])).to_pylist()
    masks = [decode(row["counts"], row["height"], row["width"]) for row in rows]
    try:
        image = decode_image(originals.read(about["shard"], about["key"]), MAX_MPX)
    except (MissingOriginal, ValueError):
        image = np.full((about["height"] or SIDE, about["width"] or SIDE, 3), 128, np.uint8)
    edits = [(json.loads(row["meta"]) if row["meta"] else {}).get("edit") for row in rows]
    if not any(edits):
        return Shot(jpeg(overlay(image, masks)), f"{len(rows)} masks")
    colours = [np.array(EDITS.get(str(edit), GREY)) for edit in edits]
    counted = {edit: edits.count(edit) for edit in EDITS}
    return Shot(jpeg(overlay(image, masks, colours=colours)), ", ".join(f"{n} {e}" for e, n in counted.items() if n))


def jpeg(image: np.ndarray) -> str:
    """H x W x 3 uint8 as a data URI, no side longer than SIDE."""
    scale = SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    data = io.BytesIO()
    Image.fromarray(small).save(data, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def strip(title: str, path: Path, count: int) -> Iterator[str]:
    """The pictures of one build under a heading."""
    yield f'<div class="group"><h3>{escape(title)}</h3><ul class="shots">'
    for one in shots(path, count):
        yield f'<li><img src="{one.uri}" alt="{escape(f"{title}: {one.words}")}">{escape(one.words)}</li>'
    yield "</ul></div>"
