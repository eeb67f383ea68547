"""COCO run-length encoding: column-major runs, compressed to a string by pycocotools.

A mask is cut to its box first, so encoding costs what the object covers, not what the image covers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco

from maskmill.errors import UserError


@dataclass(frozen=True)
class CutMask:
    """A mask of a height x width image, kept as the packed bits of its bounding box."""

    height: int
    width: int
    x0: int
    y0: int
    shape: tuple[int, int]
    bits: np.ndarray

    @classmethod
    def cut(cls, inside: np.ndarray, x0: int, y0: int, height: int, width: int) -> "CutMask":
        """From the bool pixels `inside` the box whose top-left corner is (x0, y0) in a height x width image."""
        return cls(height, width, x0, y0, (inside.shape[0], inside.shape[1]), np.packbits(inside))

    def inside(self) -> np.ndarray:
        """The bool pixels of the box."""
        size = self.shape[0] * self.shape[1]
        return np.unpackbits(self.bits, count=size).view(bool).reshape(self.shape)

    def runs(self) -> np.ndarray:
        """Uncompressed COCO counts of the whole image: int64, zeros first."""
        return runs_of(self.inside(), self.x0, self.y0, self.height, self.width)

    def counts(self) -> str:
        """Compressed COCO counts of the whole image."""
        return compress(self.runs(), self.height, self.width)


def runs_of(inside: np.ndarray, x0: int, y0: int, height: int, width: int) -> np.ndarray:
    """Counts of a height x width image that is `inside` (bool h x w) at (x0, y0) and empty elsewhere."""
    columns = np.zeros((inside.shape[1], inside.shape[0] + 2), dtype=np.int8)
    columns[:, 1:-1] = inside.T
    step = np.diff(columns, axis=1)
    x, y = np.nonzero(step == 1)
    starts = (x + x0) * height + y + y0
    x, y = np.nonzero(step == -1)
    ends = (x + x0) * height + y + y0
    split = np.ones(len(starts) + 1, dtype=bool)
    split[1:-1] = starts[1:] != ends[:-1]  # a run over the foot of a column goes on at the head of the next
    edges = np.empty(2 * int(split[1:].sum()) + 2, dtype=np.int64) if len(starts) else np.zeros(2, dtype=np.int64)
    if len(starts):
        edges[1:-1:2], edges[2:-1:2] = starts[split[:-1]], ends[split[1:]]
    edges[0], edges[-1] = 0, height * width
    counts = np.diff(edges)
    return counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts


def compress(runs: np.ndarray, height: int, width: int) -> str:
    """Uncompressed counts -> the COCO string."""
    rle = coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return str(rle["counts"].decode("ascii"))


def encode(mask: np.ndarray) -> str:
    """bool H x W -> compressed counts."""
    return compress(runs_of(mask, 0, 0, *mask.shape), *mask.shape)


def decode(counts: str, height: int, width: int) -> np.ndarray:
    """Compressed counts -> bool H x W."""
    return coco.decode({"size": [height, width], "counts": counts.encode("ascii")}).view(bool)  # type: ignore[no-any-return]


def uncompress(counts: str, height: int, width: int) -> list[int]:
    """Compressed counts -> the list of runs, zeros first."""
    runs: list[int] = runs_of(decode(counts, height, width), 0, 0, height, width).tolist()
    return runs


def area(counts: str, height: int, width: int) -> int:
    """Pixels of a compressed mask, without decoding it."""
    return int(coco.area({"size": [height, width], "counts": counts.encode("ascii")}))


def compress_edges(edges: np.ndarray, ends: np.ndarray, height: int, width: int) -> list[str]:
    """Many masks at once: byte for byte what `compress` gives for each.

    Args: edges: int64, the places (column-major pixel indices) where runs of ones begin and end, ascending, one mask
    after another; mask i has edges[ends[i] : ends[i + 1]], ends int64 N + 1.
    """
    from maskmill.masks.coder import write

    text, at = write(np.ascontiguousarray(edges, np.int64), np.ascontiguousarray(ends, np.int64), height * width)
    whole = text.tobytes().decode("ascii")
    return [whole[a:b] for a, b in zip(at[:-1].tolist(), at[1:].tolist(), strict=True)]


def edges_of(counts: Sequence[str], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `compress_edges`. UserError if a string is no COCO string of height x width pixels."""
    from maskmill.masks.coder import read

    whole = "".join(c if c.isascii() else " " * len(c) for c in counts).encode("ascii")  # a space is no digit of theirs
    ends = np.cumsum([0, *map(len, counts)], dtype=np.int64)
    edges, at, broken = read(np.frombuffer(whole, np.uint8).copy(), ends, height * width)
    if broken >= 0:
        raise UserError(
            f"counts {counts[broken][:40]!r} are no run lengths of {height} x {width} pixels: mend the file"
        )
    return edges, at
