"""A simulated annotator: clicks until the answer is good enough, and counts the seconds that a person would need."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from maskmill.config import at_least, one_of
from maskmill.errors import UserError
from maskmill.prompts.clicks import FOREGROUND, Mask, Rule, deepest, moved, next_click, random_point

Segment = Callable[[NDArray[np.float64], NDArray[np.int64]], Mask]


@dataclass(frozen=True)
class AnnotatorConfig:
    """How an annotator works. Seconds: to find an object (locate), for a click, to look at an answer (check)."""

    accept_iou: float = 0.9
    max_clicks: int = 20
    first: str = "deepest"  # or random
    next: Rule = "deepest"  # or largest, random
    click_noise: float = 0.0  # standard deviation in pixels
    locate_s: float = 1.0
    click_s: float = 1.5
    check_s: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("annotator", self, {"max_clicks": 1, "click_noise": 0, "locate_s": 0, "click_s": 0, "check_s": 0})
        one_of("annotator", self, {"first": ("deepest", "random"), "next": ("deepest", "largest", "random")})
        if not 0 < self.accept_iou <= 1:
            raise UserError(f"annotator.accept_iou is {self.accept_iou:g}: it must lie in (0, 1]")

    def seconds(self, clicks: int) -> float:
        """Time for one object: find it once, then click and look, `clicks` times."""
        return self.locate_s + clicks * (self.click_s + self.check_s)


@dataclass
class Annotation:
    """One object in work: its clicks so far (x, y), their labels (1 object, 0 background), and each answer's IoU."""

    cfg: AnnotatorConfig
    target: Mask
    rng: np.random.Generator
    points: list[tuple[int, int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)

    def click(self, answer: Mask | None) -> bool:
        """Add the next click on an answer, or the first one. False if there is nothing left to mend."""
        if answer is None:
            point = deepest(self.target)[0] if self.cfg.first == "deepest" else random_point(self.target, self.rng)
            found = (point, FOREGROUND)
        elif (error := next_click(self.target, answer, self.cfg.next, self.rng)) is not None:
            found = error
        else:
            return False
        point, label = found
        if self.cfg.click_noise > 0:
            height, width = self.target.shape
            point = moved(point, self.cfg.click_noise, (height, width), self.rng)
        self.points.append(point)
        self.labels.append(label)
        return True

    def check(self, answer: Mask) -> bool:
        """Look at an answer to the clicks so far: is it accepted?"""
        self.ious.append(iou(self.target, answer))
        return self.accepted

    @property
    def accepted(self) -> bool:
        return bool(self.ious) and self.ious[-1] >= self.cfg.accept_iou

    @property
    def seconds(self) -> float:
        return self.cfg.seconds(len(self.points))


class Annotator:
    """Begins annotations. Its chance depends on the seed and the task's name alone, not on what was done before."""

    def __init__(self, cfg: AnnotatorConfig) -> None:
        self.cfg = cfg

    def begin(self, target: Mask, task: str) -> Annotation:
        """`target`: bool H x W, not empty; `task`: any text that names the object, for instance image and mask id."""
        return Annotation(self.cfg, target, task_rng(self.cfg.seed, task))

    def annotate(self, target: Mask, task: str, segment: Segment) -> Annotation:
        """Click until an answer is accepted, or the clicks are used up.

        segment: points N x 2 (x, y) and labels N -> bool mask of the target's shape.
        """
        work = self.begin(target, task)
        answer: Mask | None = None
        while len(work.points) < self.cfg.max_clicks and work.click(answer):
            answer = segment(np.array(work.points, np.float64), np.array(work.labels, np.int64))
            if work.check(answer):
                break
        return work


def task_rng(seed: int, task: str) -> np.random.Generator:
    """A generator of its own for each task, the same on every machine."""
    digest = hashlib.sha256(task.encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest[:16], "<u4").tolist()])


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two masks of one shape; 1 if both are empty."""
    either = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / either if either else 1.0
