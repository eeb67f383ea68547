"""What every detector takes and gives."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Boxes:
    """N boxes, best first: `xyxy` N x 4 float32 in image pixels, `scores` N float32 in [0, 1]."""

    xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]

    def above(self, least: float) -> "Boxes":
        """Those whose score is at least `least`."""
        good = self.scores >= least
        return Boxes(self.xyxy[good], self.scores[good])


@dataclass(frozen=True)
class Seen:
    """One image as a detector may look at it: by its number, its pixels or its embedding.

    image: H x W x 3 uint8; embedding: 1 x C x h x w of SAM's encoder; input_size: (height, width) of the image in the
    encoder's input, which is a square of img_size pixels.
    """

    image_id: int
    image: np.ndarray
    embedding: Tensor
    input_size: tuple[int, int]
    img_size: int


class Detector(Protocol):
    """Finds objects of one class."""

    def __call__(self, seen: Seen) -> Boxes: ...
