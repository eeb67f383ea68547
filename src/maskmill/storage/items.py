"""One input image as it leaves its shard, and the numbering of keys that a shard holds twice."""

from dataclasses import dataclass
from pathlib import PurePosixPath

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp"})


@dataclass(frozen=True)
class Item:
    """An image of the plan. With `error` it is to be quarantined with these words; `data` is None then."""

    key: str
    data: bytes | None
    error: str | None


class Keys:
    """The keys given so far in one shard. Each is given once, so that every image has its own row."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}  # numbers below are taken: a column of one repeated key must not be quadratic

    def __contains__(self, key: str) -> bool:
        return key in self._taken

    def give(self, key: str) -> str:
        """`key` itself if it is free, else `key#n` with the first free n >= 2."""
        given = key
        if key in self._taken:
            n = self._next.get(key, 2)
            while (given := f"{key}#{n}") in self._taken:
                n += 1
            self._next[key] = n + 1
        self._taken.add(given)
        return given


def extension(name: str) -> str:
    """The last extension, lower case, without its dot: `a/b.tar.JPG` -> `jpg`; "" without one."""
    return PurePosixPath(name).suffix[1:].lower()


def is_image(name: str) -> bool:
    """Whether this path names an image: an image's extension, and no leading dot in the file name."""
    return extension(name) in IMAGE_EXTENSIONS and not name.rsplit("/", 1)[-1].startswith(".")
