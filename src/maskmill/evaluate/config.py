"""What an evaluation measures."""

from dataclasses import dataclass

from maskmill.config import at_least
from maskmill.errors import UserError


@dataclass(frozen=True)
class EvaluateConfig:
    """SAM's protocol (section 7, appendix D), with what interactive segmentation adds to it.

    clicks: numbers of clicks that mIoU is given for. noc: IoUs that clicks are counted to; a mask that needs more than
    max_clicks is a failure and counts as max_clicks. images, masks_per_image: at random, at the most; None for all.
    mask_share: each mask is measured with this chance, so that means stay those of the whole set.
    window: pixels; of larger images each mask is asked for in a part so large, as by someone who zooms in (windows.py);
    None: in the whole image. Automatic masks and --boxes always see it whole.
    points_per_side: of the automatic masks, whose recall is measured; 0 leaves that out. The paper's grid is 64 x 64,
    its NMS 0.9. baselines: what the first click reaches without a model. resamples: of the bootstrap.
    """

    clicks: tuple[int, ...] = (1, 2, 3, 5, 9)
    noc: tuple[float, ...] = (0.8, 0.85, 0.9)
    max_clicks: int = 20
    images: int | None = None
    masks_per_image: int | None = None
    mask_share: float = 1.0
    min_area: int = 1
    window: int | None = None
    points_per_side: int = 64
    nms: float = 0.9
    baselines: bool = False
    batch: int = 32
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("evaluate", self, {"max_clicks": 1, "min_area": 1, "points_per_side": 0, "batch": 1})
        at_least("evaluate", self, {"resamples": 1, "seed": 0})
        if not self.clicks or min(self.clicks) < 1:
            raise UserError(f"evaluate.clicks are {list(self.clicks)}: expected numbers from 1 on")
        if not all(0 < t <= 1 for t in self.noc):
            raise UserError(f"evaluate.noc are {list(self.noc)}: expected IoUs in (0, 1]")
        for name in ("mask_share", "nms"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"evaluate.{name} is {getattr(self, name):g}: it must lie in (0, 1]")
        for name, least in {"images": 1, "masks_per_image": 1, "window": 32}.items():
            if getattr(self, name) is not None:
                at_least("evaluate", self, {name: least})

    @property
    def most_clicks(self) -> int:
        """How far clicking goes."""
        return max(*self.clicks, self.max_clicks) if self.noc else max(self.clicks)
