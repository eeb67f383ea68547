"""The figures of a mask set, as pure functions on columns and pixels (paper, section 5 and figures 5 and 6)."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from pycocotools import mask as coco

from maskmill.masks.table import TOKENS

SIZE_EDGES = np.array([0, 0.05, 0.1, 0.2, 0.4, np.inf])  # strata of the relative size
PAIRS = 200  # of one image whose pixels are compared
HUGE, TINY = 0.9, 16  # share of the image from which a mask is suspicious; pixels below which it is


@dataclass(frozen=True)
class Masks:
    """Columns of N masks or candidates of many images; what an import does not know is NaN."""

    image_id: np.ndarray  # int64 N
    mask_id: np.ndarray  # int64 N
    height: np.ndarray  # int32 N, of the image
    width: np.ndarray
    area: np.ndarray  # int32 N, pixels
    box: np.ndarray  # float32 N x 4, XYWH
    predicted_iou: np.ndarray  # float32 N
    stability_score: np.ndarray  # float32 N
    layer: np.ndarray  # int32 N: crop layer, 0 = the whole image

    def __len__(self) -> int:
        return len(self.image_id)

    def take(self, index: np.ndarray) -> "Masks":
        """The rows `index` (int64, or a bool for each row)."""
        return Masks(**{name: getattr(self, name)[index] for name in self.__dataclass_fields__})

    @property
    def share(self) -> np.ndarray:
        """float64 N: the part of its image that a mask covers."""
        return self.area / (self.height.astype(np.float64) * self.width)

    @property
    def relative_size(self) -> np.ndarray:
        """float64 N: sqrt(mask area / image area) (paper, figure 6)."""
        return np.sqrt(self.share)

    @property
    def center(self) -> np.ndarray:
        """float64 N x 2: the middle of each box, x and y as parts of the image."""
        middle = self.box[:, :2].astype(np.float64) + (self.box[:, 2:] + 1) / 2
        return middle / np.stack([self.width, self.height], axis=1)


def crop_layers(mask_id: np.ndarray, prompts: Sequence[int]) -> np.ndarray:
    """int32 N: the crop layer of each mask. `prompts`: how many prompts each layer has over all its crops."""
    ends = np.cumsum(np.asarray(prompts, np.int64))
    return np.minimum(np.searchsorted(ends, mask_id // TOKENS, side="right"), len(ends) - 1).astype(np.int32)


def masks_per_image(image_id: np.ndarray, images: np.ndarray) -> np.ndarray:
    """int64: for each of `images` (ids) how many of `image_id` (one for each mask) are its own."""
    order = np.sort(image_id)
    return np.searchsorted(order, images, side="right") - np.searchsorted(order, images, side="left")


def center_density(center: np.ndarray, bins: int = 32) -> np.ndarray:
    """float64 bins x bins (row 0 at the top): the part of the masks whose center falls in each cell (figure 5)."""
    counts, _, _ = np.histogram2d(center[:, 1], center[:, 0], bins=bins, range=((0, 1), (0, 1)))
    return counts / max(1, len(center))


def percent(values: np.ndarray, edges: np.ndarray, of: int | None = None) -> np.ndarray:
    """Percent of `values` in each bin; NaN is nowhere. `of`: what 100% is, by default all values that are no NaN."""
    known = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    counts, _ = np.histogram(known, edges)
    return 100 * counts / max(1, len(known) if of is None else of)


def concavity(mask: np.ndarray) -> float:
    """1 - area / area of the convex hull (figure 6), 0 for an empty mask. bool H x W; a pixel is a unit square."""
    rows = np.flatnonzero(mask.any(axis=1))
    if len(rows) == 0:
        return 0.0
    inside = mask[rows]
    left = inside.argmax(axis=1)
    right = mask.shape[1] - inside[:, ::-1].argmax(axis=1)
    corners = [np.stack([x, y], axis=1) for x in (left, right) for y in (rows, rows + 1)]
    hull = cv2.convexHull(np.concatenate(corners).astype(np.float32))
    return max(0.0, 1 - float(mask.sum()) / float(cv2.contourArea(hull)))


def hole_share(mask: np.ndarray) -> float:
    """Pixels of holes (background cut off from the outside, 8-connected) over pixels of mask and holes."""
    background = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(background, connectivity=8)
    holes = int(background.sum() - stats[labels[0, 0], cv2.CC_STAT_AREA])
    return holes / max(1, holes + int(mask.sum()))


def stratified(strata: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of about `count` rows, the same number from each stratum (int N) as far as it has them, sorted."""
    order = rng.permutation(len(strata))
    rank = np.empty(len(strata), np.int64)
    for name in np.unique(strata):
        rows = order[strata[order] == name]
        rank[rows] = np.arange(len(rows))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:count])


def near_duplicates(box: np.ndarray, counts: Sequence[str], height: int, width: int) -> list[tuple[int, int, float]]:
    """(i, j, IoU of the masks) of pairs of one image, the most alike first: of the PAIRS with the most alike boxes.

    box float N x 4 XYWH as stored; counts: compressed COCO runs. Pairs whose boxes have IoU below 0.6 are left out.
    """
    if len(box) < 2:
        return []
    whole = np.concatenate([box[:, :2], box[:, 2:] + 1], axis=1).astype(np.float64)
    alike = np.triu(coco.iou(whole, whole, [0] * len(whole)), 1)
    places = np.flatnonzero(alike >= 0.6)
    places = places[np.argsort(-alike.ravel()[places], kind="stable")][:PAIRS]
    rles = [{"size": [height, width], "counts": c.encode("ascii")} for c in counts]
    pairs = [divmod(int(place), len(box)) for place in places]
    found = [(i, j, float(coco.iou([rles[i]], [rles[j]], [0])[0, 0])) for i, j in pairs]
    return sorted(found, key=lambda pair: -pair[2])
