"""The shards of a round: its images, and the same with what annotators handed in. The same bytes every time."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maskmill.errors import UserError
from maskmill.pipeline.rounds.tools import number
from maskmill.storage.annotated import AnnotatedSet
from maskmill.storage.files import at, write_bytes
from maskmill.storage.sources import image_id


def stem(name: str) -> str:
    """SA-1B's name for an image of the set."""
    return f"sa_{number(name)}"


def packed_id(name: str) -> int:
    """The id of an image of the set as a row of the round's builds, whose images lie in images.tar."""
    return image_id("images.tar", stem(name))


def png(image: np.ndarray) -> bytes:
    """H x W x 3 uint8, lossless: upright, as the annotators see it."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=1)
    return out.getvalue()


def pack_images(images: AnnotatedSet, chosen: Sequence[int], path: Path, tell: Callable[[str], None]) -> None:
    """A tar with the pixels of these images. One that cannot be read is told, and left out. UserError: none can."""
    broken: list[str] = []
    with Tar(path) as tar:
        for i in chosen:
            try:
                found = images.read(i)
            except UserError as e:
                tell(f"left out: {e}")
                broken.append(str(e))
                continue
            tar.add(f"{stem(found.name)}.png", png(found.image))
        if len(broken) == len(chosen):
            raise UserError(f"none of the {len(chosen)} images of {path.parent.name} can be read: {broken[0]}")


def names_in(path: Path) -> set[str]:
    """The images that were packed, as `stem` names them."""
    with tarfile.open(path) as tar:
        return {name.removesuffix(".png") for name in tar.getnames()}


def pack_answers(images: Path, done: Mapping[str, Path], path: Path) -> None:
    """The tar of the images that were done, with each one's JSON beside it. UserError for an answer that is none: its
    file can be mended, and the same command goes on."""
    with tarfile.open(images) as source, Tar(path) as tar:
        for member in source:
            name = member.name.removesuffix(".png")
            if name not in done:
                continue
            file = source.extractfile(member)
            assert file is not None, f"{images} was written by pack_images"
            pixels = file.read()
            width, height = Image.open(io.BytesIO(pixels)).size
            tar.add(member.name, pixels)
            tar.add(f"{name}.json", checked_answer(done[name], height, width))


ABOUT_IMAGE = ("name", "seconds", "prefilled", "rejected", "given_up", "objects", "ious")
ABOUT_MASK = ("edit", "clicks", "seconds")


def checked_answer(path: Path, height: int, width: int) -> bytes:
    """The bytes of an answer that has all that the round's record and its masks are made of."""
    try:
        data = path.read_bytes()
        tree = json.loads(data)
        wanted = [(tree["image"]["meta"], ABOUT_IMAGE), *((a["meta"], ABOUT_MASK) for a in tree["annotations"])]
        lacking = [key for found, keys in wanted for key in keys if key not in found]
        sizes = [a["segmentation"]["size"] for a in tree["annotations"]]
    except (OSError, ValueError, LookupError, TypeError) as e:
        words = f"{type(e).__name__}: {e}"
        raise UserError(f"answer {str(path)!r} cannot be taken ({words}): mend it (docs/engine.md)") from e
    if lacking:
        raise UserError(f"answer {str(path)!r} lacks {lacking[0]!r} in a `meta`: mend it (docs/engine.md)")
    if other := [size for size in sizes if size != [height, width]]:
        raise UserError(f"answer {str(path)!r} has a mask of {other[0]}, its image has [{height}, {width}]: mend it")
    return data


class Tar:
    """A tar that appears when it is whole. Nothing in it tells when or by whom it was made."""

    def __init__(self, path: Path) -> None:
        self.path, self.bytes = path, io.BytesIO()
        self.tar = tarfile.TarFile(fileobj=self.bytes, mode="w", format=tarfile.USTAR_FORMAT)

    def __enter__(self) -> "Tar":
        return self

    def add(self, name: str, data: bytes) -> None:
        """One member."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self.tar.addfile(info, io.BytesIO(data))

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        self.tar.close()
        if error is None:
            write_bytes(at(self.path), self.bytes.getvalue())
