"""The engine's images: which are held out, which a round shows."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskmill.errors import UserError
from maskmill.masks.boxes import xyxy_to_xywh
from maskmill.masks.rle import encode
from maskmill.pipeline.rounds.config import EngineData
from maskmill.pipeline.rounds.pack import png
from maskmill.pipeline.rounds.watch import Watch
from maskmill.prompts.clicks import extent
from maskmill.storage.annotated import Annotated, AnnotatedSet, BuildSet, CocoSet, open_annotated
from maskmill.storage.files import at, exists, to_json, write_bytes
from maskmill.training.scenes import Textures, draw_scene

SIDE = 256  # pixels of a drawn scene


class Part:
    """Some images of a set, as a set."""

    def __init__(self, whole: AnnotatedSet, chosen: Sequence[int]) -> None:
        self.whole, self.chosen = whole, list(chosen)
        self.names = [whole.names[i] for i in chosen]

    def read(self, i: int) -> Annotated:
        return self.whole.read(self.chosen[i])

    def image_id(self, i: int) -> int:
        return self.whole.image_id(self.chosen[i])


class EngineImages:
    """The annotated set, in the order in which it is worked through, and its held-out part."""

    def __init__(self, cfg: EngineData, seed: int, out: Path, watch: Watch) -> None:
        begun = exists(at(out / "engine.json"))
        self.source = cfg.source or str(draw_scenes(out / "data", cfg, seed, watch, keep=begun))
        self.images = cfg.images
        self.whole = open_annotated(self.source, self.images)
        order = sorted(range(len(self.whole.names)), key=lambda i: drawn(seed, self.whole.names[i]))
        _, count = parts(cfg, len(order))
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
        check_enough(start + count, len(self.pool), len(self.held))
        return self.pool[start : start + count]

    @property
    def inputs(self) -> str:
        """The images alone, as `maskmill generate` takes them."""
        if self.images is not None:
            return self.images
        if isinstance(self.whole, BuildSet):
            return str(self.whole.build.info["inputs"]["url"])
        return self.whole.folder if isinstance(self.whole, CocoSet) else self.source


def parts(cfg: EngineData, count: int) -> tuple[int, int]:
    """Of so many images: those for annotators, those held out."""
    held = max(1, round(cfg.held_out * count))
    return count - held, held


def check_enough(wanted: int, pool: int, held: int) -> None:
    """UserError if the rounds ask for more images than there are."""
    if wanted > pool:
        raise UserError(
            f"the rounds ask for {wanted} images, there are {pool} beside the {held} held out: fewer rounds, or fewer "
            f"images in each (assisted.images, semi.images)"
        )


def drawn(seed: int, name: str) -> bytes:
    """A place in a random order that only the image's own name and the seed decide."""
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()


def draw_scenes(folder: Path, cfg: EngineData, seed: int, watch: Watch, keep: bool) -> Path:
    """FOLDER: `cfg.scenes` drawn scenes with their exact masks, SA-1B style. keep: those that are there are this run's;
    else they are of a start that came to nothing, perhaps under another config."""
    for old in [] if keep else sorted(folder.glob("scene-*")):
        old.unlink()
    paths = {n: folder / f"scene-{n:04d}.png" for n in range(cfg.scenes)}
    missing = [n for n, path in paths.items() if not exists(at(path.with_suffix(".json")))]
    textures = Textures([]) if missing else None
    if missing:
        watch.tell(f"drawing {len(missing)} scenes")
    for n in missing:
        assert textures is not None
        path = paths[n]
        scene = draw_scene(np.random.default_rng([seed, n]), cfg.scene, textures, SIDE)
        annotations = []
        for i, mask in enumerate(m for m in scene.masks if m.any()):
            box = xyxy_to_xywh(np.array([extent(mask)]))[0].tolist()
            rle = {"size": list(mask.shape), "counts": encode(mask)}
            annotations.append({"id": i, "bbox": box, "area": int(mask.sum()), "segmentation": rle})
        image = {"image_id": n, "width": SIDE, "height": SIDE, "file_name": path.name}
        write_bytes(at(path), png(scene.image))
        write_bytes(at(path.with_suffix(".json")), to_json({"image": image, "annotations": annotations}))
    return folder
