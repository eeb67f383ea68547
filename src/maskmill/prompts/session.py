"""A simulated annotator at one image: accepts, fixes or rejects what is prefilled, then segments what is missing.

The stages are the paper's (section 4): objects in order of prominence, and on to the next image once a mask takes
longer than 30 seconds. What the annotator wants is known (the true masks); what it gets is the model's. Times are those
of SAM 2's annotation model (appendix E.1.2): find the object 1 s, click 1.5 s; and 1 s to look at an answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from maskmill.config import at_least
from maskmill.errors import UserError
from maskmill.prompts.annotator import Annotation, AnnotatorConfig, iou, task_rng
from maskmill.prompts.clicks import Mask

Edit = Literal["drawn", "accepted", "fixed"]
EDITS: tuple[Edit, ...] = get_args(Edit)
# The clicks so far (N x 2 x, y; N labels), and the logits of the answer that they mend or None -> answer, its logits.
Answer = Callable[[np.ndarray, np.ndarray, np.ndarray | None], tuple[Mask, np.ndarray]]


@dataclass(frozen=True)
class SessionConfig:
    """How annotators work. Seconds: `patience_s` for one object, then on to the next image.

    accept_iou: stop at this IoU with the object. prefill_accept, prefill_fix: a prefilled mask is accepted as it is
    from the first, mended from the second, rejected below it. keep_iou: below it, what patience ended is given up.
    verify: false takes prefilled masks unseen (an ablation).
    """

    accept_iou: float = 0.9
    keep_iou: float = 0.5
    prefill_accept: float = 0.85
    prefill_fix: float = 0.5
    patience_s: float = 30.0
    click_noise: float = 2.0
    locate_s: float = 1.0
    click_s: float = 1.5
    check_s: float = 1.0
    verify: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        names = ("click_noise", "locate_s", "click_s", "check_s")
        at_least("annotators", self, {"patience_s": 0, **dict.fromkeys(names, 0)})
        for name in ("accept_iou", "keep_iou", "prefill_accept", "prefill_fix"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"annotators.{name} is {getattr(self, name):g}: it must lie in (0, 1]")
        if self.click_s + self.check_s <= 0:
            raise UserError("annotators.click_s and check_s are both 0: a click takes some time")
        if self.max_clicks < 1:
            raise UserError(f"annotators.patience_s is {self.patience_s:g}: too short for a single click")

    @property
    def max_clicks(self) -> int:
        """As many as fit into the patience for one object."""
        return int((self.patience_s - self.locate_s) / (self.click_s + self.check_s))

    @property
    def annotator(self) -> AnnotatorConfig:
        """For one object."""
        return AnnotatorConfig(
            accept_iou=self.accept_iou, max_clicks=self.max_clicks, next="largest", click_noise=self.click_noise,
            locate_s=self.locate_s, click_s=self.click_s, check_s=self.check_s, seed=self.seed,
        )  # fmt: skip


@dataclass(frozen=True)
class Made:
    """One mask of the session and how it came about. `prefilled`: which of the prefilled masks it was."""

    mask: Mask
    edit: Edit
    clicks: int
    seconds: float
    prefilled: int | None = None


@dataclass(frozen=True)
class Session:
    """What came of one image. Seconds include what was rejected or given up."""

    made: tuple[Made, ...]
    rejected: int
    given_up: int
    seconds: float

    def count(self, edit: Edit) -> int:
        return sum(m.edit == edit for m in self.made)


def annotate_image(
    objects: Sequence[Mask],
    prefilled: Sequence[tuple[Mask, np.ndarray]],
    answer: Answer,
    cfg: SessionConfig,
    name: str,
) -> Session:
    """Work on one image.

    Args: objects: the true masks, bool H x W; prefilled: masks and their logits, best first; name: of the image, from
    which all chance follows.
    """
    left = dict(enumerate(objects))
    made: list[Made] = []
    rejected, given_up, seconds = 0, 0, 0.0
    for place, (mask, logits) in enumerate(prefilled):
        if not cfg.verify:  # taken as it is, unseen; what it covers is not drawn again
            made.append(Made(mask, "accepted", 0, 0.0, place))
            target = best_match(mask, left)
            if target is not None and iou(left[target], mask) >= cfg.prefill_fix:
                del left[target]
            continue
        seconds += cfg.check_s
        target = best_match(mask, left)
        overlap = 0.0 if target is None else iou(left[target], mask)
        if target is None or overlap < cfg.prefill_fix:
            rejected += 1
            seconds += cfg.click_s
        elif overlap >= cfg.prefill_accept:
            made.append(Made(mask, "accepted", 0, cfg.check_s, place))
            del left[target]
        else:
            done = work_on(left.pop(target), answer, cfg, f"{name}/fix/{place}", (mask, logits))
            spent = cfg.check_s + done.seconds
            seconds += done.seconds
            made.append(Made(done.mask, "fixed", done.clicks, spent, place))
    for number in sorted(left, key=lambda n: (-int(left[n].sum()), n)):  # prominence: the largest first
        done = work_on(left[number], answer, cfg, f"{name}/{number}", None)
        seconds += done.seconds
        if done.reached >= cfg.keep_iou:
            made.append(Made(done.mask, "drawn", done.clicks, done.seconds))
        else:
            given_up += 1
        if not done.accepted:  # it took too long: on to the next image
            break
    return Session(tuple(made), rejected, given_up, seconds)


@dataclass(frozen=True)
class Done:
    """One object after its last click."""

    mask: Mask
    reached: float
    accepted: bool
    clicks: int
    seconds: float


def work_on(target: Mask, answer: Answer, cfg: SessionConfig, task: str, begun: tuple[Mask, np.ndarray] | None) -> Done:
    """Click until the object is good enough or patience ends; the best answer stays. `begun`: mask, logits to mend."""
    how = cfg.annotator if begun is None else replace(cfg.annotator, locate_s=0.0)
    work = Annotation(how, target, task_rng(cfg.seed, task))
    mask, logits = begun or (None, None)
    best = (0.0 if mask is None else iou(target, mask), mask)
    while len(work.points) < how.max_clicks and work.click(mask):
        points, labels = np.array(work.points, np.float64), np.array(work.labels, np.int64)
        mask, logits = answer(points, labels, logits)
        stop = work.check(mask)
        best = max(best, (work.ious[-1], mask), key=lambda found: found[0])
        if stop:
            break
    assert best[1] is not None or not work.accepted
    kept = np.zeros_like(target) if best[1] is None else best[1]
    return Done(kept, best[0], work.accepted, len(work.points), work.seconds)


def best_match(mask: Mask, objects: dict[int, Mask]) -> int | None:
    """The object with the largest IoU; of equals the first. None if none overlaps."""
    overlaps = {number: iou(target, mask) for number, target in objects.items()}
    found = max(overlaps, key=lambda n: (overlaps[n], -n), default=None)
    return None if found is None or overlaps[found] == 0 else found
