"""The shards of a round: its images, and the same with what annotators handed in. The same bytes every time."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskmill.errors import UserError
from maskmill.pipeline.rounds.tools import number
from maskmill.prompts.session import EDITS
from maskmill.storage.annotated import AnnotatedSet
from maskmill.storage.files import at, write_bytes
from maskmill.storage.foreign import Grid, foreign_rows, is_number
from maskmill.storage.originals import MissingOriginal
from maskmill.storage.sa1b import from_sa1b
from maskmill.storage.sources import image_id

COUNTS = ("prefilled", "rejected", "given_up", "objects")  # in the `meta` of an answer's image, beside `seconds`


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
                if storage_failed(e):
                    raise
                tell(f"left out: {e}")
                broken.append(str(e))
                continue
            tar.add(f"{stem(found.name)}.png", png(found.image))
        if len(broken) == len(chosen):
            raise UserError(f"none of the {len(chosen)} images of {path.parent.name} can be read: {broken[0]}")


def storage_failed(error: UserError) -> bool:
    """Whether an image is out of reach, but not known to be missing or broken: it may be read the next time."""
    missing = error.__cause__
    if not isinstance(missing, MissingOriginal):
        return False
    return isinstance(missing.__cause__, OSError) and not isinstance(missing.__cause__, FileNotFoundError)


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
            tar.add(f"{name}.json", checked_answer(done[name], height, width, int(name.removeprefix("sa_"))))


def checked_answer(path: Path, height: int, width: int, task: int) -> bytes:
    """The bytes of an answer that has all that the round's record and its masks are made of; `task`: the image's
    number, which its masks go by. UserError."""
    try:
        data = path.read_bytes()
        foreign_rows(from_sa1b(data), 0, Grid(height, width, 1))
        tree = json.loads(data)
        about = tree["image"]["meta"]
        if (said := tree["image"].get("image_id", task)) != task:
            raise ValueError(f"image_id is {said!r}: expected {task}, the task's number, or none")
        check_numbers(about, ("seconds",), "the image's meta")
        for name in COUNTS:
            if type(about[name]) is not int:
                raise ValueError(f"{name} of the image's meta is {about[name]!r}: expected a whole number")
        if not isinstance(about["ious"], list) or not all(is_number(v) for v in about["ious"]):
            raise ValueError(f"ious of the image's meta is {about['ious']!r}: expected a list of numbers")
        for mask in tree["annotations"]:
            check_numbers(mask["meta"], ("clicks", "seconds"), f"the meta of annotation {mask['id']}")
            if (edit := mask["meta"]["edit"]) not in EDITS:
                raise ValueError(f"edit of annotation {mask['id']} is {edit!r}: expected one of {', '.join(EDITS)}")
    except KeyError as e:
        raise UserError(f"answer {str(path)!r} lacks {e}: mend it (docs/engine.md)") from e
    except (OSError, ValueError, TypeError, AttributeError) as e:  # the last two: something is null, or no mapping
        raise UserError(f"answer {str(path)!r} cannot be taken: {e}: mend it (docs/engine.md)") from e
    return data


def check_numbers(found: dict[str, Any], names: Sequence[str], where: str) -> None:
    """KeyError, ValueError unless they are there and numbers."""
    for name in names:
        if not is_number(found[name]):
            raise ValueError(f"{name} of {where} is {found[name]!r}: expected a number")


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
