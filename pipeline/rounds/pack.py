"""The shards of a round: its images, and the same with what annotators handed in. The same bytes every time."""

import io
import tarfile
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

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


def pack_images(images: AnnotatedSet, chosen: Iterable[int], path: Path) -> None:
    """A tar with the pixels of these images."""
    with Tar(path) as tar:
        for i in chosen:
            found = images.read(i)
            tar.add(f"{stem(found.name)}.png", png(found.image))


def pack_answers(images: Path, answers: Path, done: Collection[str], path: Path) -> None:
    """The tar of the images that were done, with each one's JSON beside it."""
    with tarfile.open(images) as source, Tar(path) as tar:
        for member in source:
            if member.name.removesuffix(".png") not in done:
                continue
            file = source.extractfile(member)
            assert file is not None, f"{images} was written by pack_images"
            name = member.name.replace(".png", ".json")
            tar.add(member.name, file.read())
            tar.add(name, (answers / name).read_bytes())


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
