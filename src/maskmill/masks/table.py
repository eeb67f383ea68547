"""The masks of one image as columns: what `generate` makes and `filters` choose from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from maskmill.masks.rle import CutMask

TOKENS = 3  # masks for one prompt


@dataclass(frozen=True)
class MaskTable:
    """N masks of one height x width image. Boxes are XYXY with inclusive corners; crop boxes XYXY, end exclusive."""

    height: int
    width: int
    mask_id: np.ndarray  # int64 N
    predicted_iou: np.ndarray  # float32 N
    stability_score: np.ndarray  # float32 N
    box: np.ndarray  # int64 N x 4
    area: np.ndarray  # int64 N
    point: np.ndarray  # float64 N x 2, image frame
    crop_index: np.ndarray  # int32 N
    crop_box: np.ndarray  # int64 N x 4
    masks: tuple[CutMask | str, ...]  # pixels of the box, or compressed counts

    def __post_init__(self) -> None:
        assert all(len(column) == len(self.mask_id) for column in self.columns().values()), "columns differ in length"

    def __len__(self) -> int:
        return len(self.mask_id)

    def columns(self) -> dict[str, np.ndarray | tuple[CutMask | str, ...]]:
        """The columns with one entry for each mask."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("height", "width")}

    def take(self, index: np.ndarray) -> "MaskTable":
        """The rows `index` (int64), in that order."""
        rows = [int(i) for i in index]
        picked: dict[str, np.ndarray | tuple[CutMask | str, ...]] = {
            name: tuple(column[i] for i in rows) if isinstance(column, tuple) else column[index]
            for name, column in self.columns().items()
        }
        return replace(self, **picked)  # type: ignore[arg-type]

    def counts(self, i: int) -> str:
        """Compressed COCO counts of mask i."""
        mask = self.masks[i]
        return mask if isinstance(mask, str) else mask.counts()

    @classmethod
    def empty(cls, height: int, width: int) -> "MaskTable":
        """No mask at all, with every column's type."""
        i8, f4 = np.zeros(0, np.int64), np.zeros(0, np.float32)
        four = np.zeros((0, 4), np.int64)
        return cls(height, width, i8, f4, f4, four, i8, np.zeros((0, 2)), np.zeros(0, np.int32), four, ())

    @classmethod
    def concat(cls, height: int, width: int, parts: Sequence["MaskTable"]) -> "MaskTable":
        """The parts one below the other."""
        parts = [cls.empty(height, width), *parts]
        columns = {
            name: tuple(m for part in parts for m in part.masks)
            if name == "masks"
            else np.concatenate([getattr(part, name) for part in parts])
            for name in parts[0].columns()
        }
        return cls(height=height, width=width, **columns)  # type: ignore[arg-type]
