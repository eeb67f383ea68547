"""Where SAM is prompted: point grids and zoomed crops (paper, appendix B; segment-anything, utils/amg.py:179-234)."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from maskmill.config import GenerateConfig

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Crop:
    """One window of the plan. `first_prompt` is the place of its first point among all points of the image."""

    index: int
    layer: int
    box: Box  # XYXY, right and bottom exclusive
    points: np.ndarray  # N x 2 (x, y) in pixels of the crop, float64, row-major
    first_prompt: int

    @property
    def width(self) -> int:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> int:
        return self.box[3] - self.box[1]


def point_grid(n: int) -> np.ndarray:
    """n * n evenly spaced points of [0, 1]^2, x fastest: float64 n*n x 2."""
    offset = 1 / (2 * n)
    side = np.linspace(offset, 1 - offset, n)
    xs = np.tile(side[None, :], (n, 1))
    ys = np.tile(side[:, None], (1, n))
    return np.stack([xs, ys], axis=-1).reshape(-1, 2)


def layer_grids(cfg: GenerateConfig) -> list[np.ndarray]:
    """The grid of every crop layer, in [0, 1]: points_per_side / factor**layer points a side, or the given grids."""
    if cfg.point_grids is not None:
        return [np.asarray(grid, dtype=np.float64).reshape(-1, 2) for grid in cfg.point_grids]
    assert cfg.points_per_side is not None, "the config gives one of points_per_side and point_grids"
    factor = cfg.crop_n_points_downscale_factor
    return [point_grid(max(1, int(cfg.points_per_side / factor**i))) for i in range(cfg.crop_n_layers + 1)]


def crop_boxes(height: int, width: int, n_layers: int, overlap_ratio: float) -> tuple[list[Box], list[int]]:
    """Boxes and their layers: the image, then 2**i windows a side in layer i, x outer and y inner (amg.py:200-234)."""
    boxes: list[Box] = [(0, 0, width, height)]
    layers = [0]
    for layer in range(1, n_layers + 1):
        n = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / n))
        crop_w = math.ceil((overlap * (n - 1) + width) / n)
        crop_h = math.ceil((overlap * (n - 1) + height) / n)
        lefts = [int((crop_w - overlap) * i) for i in range(n)]
        tops = [int((crop_h - overlap) * i) for i in range(n)]
        for x0, y0 in itertools.product(lefts, tops):
            boxes.append((x0, y0, min(x0 + crop_w, width), min(y0 + crop_h, height)))
            layers.append(layer)
    return boxes, layers


def crop_plan(height: int, width: int, cfg: GenerateConfig) -> list[Crop]:
    """Every crop of an image with its points. The order gives each prompt its place, and so each mask its id."""
    grids = layer_grids(cfg)
    plan: list[Crop] = []
    first = 0
    boxes, layers = crop_boxes(height, width, cfg.crop_n_layers, cfg.crop_overlap_ratio)
    for index, (box, layer) in enumerate(zip(boxes, layers, strict=True)):
        points = grids[layer] * np.array([[box[2] - box[0], box[3] - box[1]]])
        plan.append(Crop(index, layer, box, points, first))
        first += len(points)
    return plan
