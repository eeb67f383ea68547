"""A picture under construction: its pixels, and whose they are.

Every pixel has one owner: the target that was painted on it last. Owners form a tree (a part's parent is the thing that
it is a part of), and a target's mask is the pixels of all owners below it in the tree: exact, whatever is hidden.
"""

import numpy as np

from maskmill.training.scenes.base import SMALLEST, SMALLEST_PART, Image, Mask, Sample

Box = tuple[int, int, int, int]  # y0, y1, x0, x1
NOBODY = 0


class Canvas:
    """`image` S x S x 3 float32; `base` K x S x S masks that the first image brings along (they may overlap)."""

    def __init__(self, image: Image, base: Mask | None = None) -> None:
        self.image = image
        self.size = image.shape[0]
        self.base = np.zeros((0, self.size, self.size), bool) if base is None else base
        self.owner = np.zeros((self.size, self.size), np.int16)
        self.parents = [-1]  # of NOBODY
        self.drawn = [0]  # pixels that each owner got when it was painted
        self.boxes: list[Box] = [(0, self.size, 0, self.size)]

    def claim(self, box: Box, mask: Mask, parent: int | None = None) -> int:
        """A new target over the masked pixels of a window; returns its number.

        A part gets only pixels of its parent. It must come before anything but brothers and their parts is painted:
        whoever was painted after the parent is then a part of it.
        """
        y0, y1, x0, x1 = box
        owner = self.owner[y0:y1, x0:x1]
        if parent is not None:
            mask = mask & (owner >= parent)
        number = len(self.parents)
        owner[mask] = number
        self.parents.append(NOBODY if parent is None else parent)
        self.drawn.append(int(np.count_nonzero(mask)))
        self.boxes.append(box)
        return number

    def disown(self, box: Box, mask: Mask) -> None:
        """What was painted there belongs to nobody: it hides, but is no target."""
        y0, y1, x0, x1 = box
        self.owner[y0:y1, x0:x1][mask] = NOBODY

    def blend(self, box: Box, colour: Image, alpha: Image) -> None:
        """Paint h x w x 3 colours with h x w alpha into a window."""
        y0, y1, x0, x1 = box
        under = self.image[y0:y1, x0:x1]
        under += (colour - under) * alpha[..., None]

    def finish(self, pixels: np.ndarray) -> Sample:
        """The sample with these final S x S x 3 uint8 pixels. Targets that nearly vanished are dropped, and parts
        that are as good as their whole."""
        n = len(self.parents)
        inside = np.eye(n, dtype=bool)  # inside[a, b]: b is a or below it
        for b in range(1, n):
            inside[:, b] |= inside[:, self.parents[b]]
        inside[NOBODY] = False
        area = inside @ np.bincount(self.owner.ravel(), minlength=n)[:n]
        kept: list[int] = []
        for a in range(1, n):
            up = self.parents[a]
            least, most = (SMALLEST, np.inf) if up == NOBODY else (SMALLEST_PART, 0.9 * area[up])
            if least <= area[a] <= most and area[a] > 0.06 * self.drawn[a]:
                kept.append(a)
        masks = [self._mask(a, inside[a]) for a in kept]
        place = {a: i for i, a in enumerate(kept)}
        parents = [self._above(a, place) for a in kept]
        for whole in self.base:
            seen = whole & (self.owner == NOBODY)
            if seen.sum() >= SMALLEST:
                masks.append(seen)
                parents.append(-1)
        stacked = np.stack(masks) if masks else np.zeros((0, self.size, self.size), bool)
        return Sample(np.asarray(pixels, np.uint8), stacked, np.array(parents, np.int64))

    def _mask(self, number: int, inside: Mask) -> Mask:
        """The pixels of all owners in `inside` (bool of each); they lie in the target's own window."""
        y0, y1, x0, x1 = self.boxes[number]
        owner, mask = self.owner[y0:y1, x0:x1], np.zeros((self.size, self.size), bool)
        mask[y0:y1, x0:x1] = owner == number if inside.sum() == 1 else inside[owner]
        return mask

    def _above(self, number: int, place: dict[int, int]) -> int:
        """The index of the nearest kept target that holds this one, or -1."""
        up = self.parents[number]
        while up != NOBODY and up not in place:
            up = self.parents[up]
        return place.get(up, -1)
