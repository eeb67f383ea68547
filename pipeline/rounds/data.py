"""The engine's images: which are held out, which a round shows."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskmill.errors import UserError
from maskmill.masks.boxes import xyxy_to_xywh
from maskmill.masks.rle import encode
from maskmill.pipeline.rounds.config import EngineData
from maskmill.pipeline.rounds.pack import png
from maskmill.prompts.clicks import extent
from maskmill.storage.annotated import Annotated, AnnotatedSet, open_annotated
from maskmill.storage.files import at, exists, to_json, write_bytes
from maskmill.training.scenes import Textures, layered_scene

SIDE = 256  # pixels of a drawn scene


class Part:
    """Some images of a set, as a set."""

    def __init__(self, whole: AnnotatedSet, chosen: Sequence[int]) -> None:
        self.whole, self.chosen = whole, list(chosen)
        self.names = [whole.names[i] for i in chosen]

    def read(self, i: int) -> Annotated:
        return self.whole.read(self.chosen[i])


class EngineImages:
    """The annotated set, in the order in which it is worked through, and its held-out part."""

    def __init__(self, cfg: EngineData, seed: int, out: Path) -> None:
        self.source = cfg.source or str(draw_scenes(out / "data", cfg.scenes, seed))
        self.images = cfg.images
        self.whole = open_annotated(self.source, self.images)
        order = sorted(range(len(self.whole.names)), key=lambda i: drawn(seed, self.whole.names[i]))
        count = max(1, round(cfg.held_out * len(order)))
        self.held, self.pool = sorted(order[:count]), order[count:]

    @property
    def held_out(self) -> Part:
        return Part(self.whole, self.held)

    @property
    def fingerprint(self) -> dict[str, object]:
        """What the engine works on, by name."""
        digest = hashlib.sha256("\n".join(self.whole.names).encode()).hexdigest()
        return {"images": len(self.whole.names), "names_sha256": digest, "held_out": len(self.held)}

    def take(self, start: int, count: int) -> list[int]:
        """The next images that nobody has seen. UserError if there are none left."""
        chosen = self.pool[start : start + count]
        if len(chosen) < count:
            raise UserError(
                f"the rounds ask for {start + count} images, {self.source} has {len(self.pool)} beside the held-out "
                f"{len(self.held)}: fewer rounds, or fewer images in each"
            )
        return chosen


def drawn(seed: int, name: str) -> bytes:
    """A place in a random order that only the image's own name and the seed decide."""
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()


def draw_scenes(folder: Path, count: int, seed: int) -> Path:
    """FOLDER: so many drawn scenes with their exact masks, SA-1B style."""
    for n in range(count):
        path = folder / f"scene-{n:04d}.png"
        if exists(at(path.with_suffix(".json"))):
            continue
        scene = layered_scene(np.random.default_rng([seed, n]), Textures([]), SIDE)
        annotations = []
        for i, mask in enumerate(m for m in scene.masks if m.any()):
            box = xyxy_to_xywh(np.array([extent(mask)]))[0].tolist()
            rle = {"size": list(mask.shape), "counts": encode(mask)}
            annotations.append({"id": i, "bbox": box, "area": int(mask.sum()), "segmentation": rle})
        image = {"image_id": n, "width": SIDE, "height": SIDE, "file_name": path.name}
        write_bytes(at(path), png(scene.image))
        write_bytes(at(path.with_suffix(".json")), to_json({"image": image, "annotations": annotations}))
    return folder


def read_record(folder: Path) -> dict[str, object] | None:
    """FOLDER/round.json, if the round is over."""
    path = folder / "round.json"
    return json.loads(path.read_bytes()) if path.exists() else None  # type: ignore[no-any-return]
