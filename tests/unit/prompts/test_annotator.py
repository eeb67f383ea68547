from dataclasses import replace

import numpy as np
import pytest

from maskmill.errors import UserError
from maskmill.prompts.annotator import Annotator, AnnotatorConfig, iou

TARGET = np.zeros((40, 40), bool)
TARGET[10:30, 10:30] = True


class Painter:
    """Answers with what of the object lies within `reach` of its clicks."""

    def __init__(self, reach: int) -> None:
        self.reach, self.calls = reach, 0

    def __call__(self, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
        self.calls += 1
        yy, xx = np.mgrid[:40, :40]
        out = np.zeros((40, 40), bool)
        for (x, y), label in zip(points, labels, strict=True):
            out |= (abs(xx - x) <= self.reach) & (abs(yy - y) <= self.reach) & bool(label)
        return out & TARGET


def test_accepted_at_once() -> None:
    work = Annotator(AnnotatorConfig()).annotate(TARGET, "a", lambda p, n: TARGET)
    assert work.points == [(19, 19)] and work.labels == [1] and work.ious == [1.0] and work.accepted
    assert work.seconds == 1 + 1.5 + 1


def test_clicks_until_accepted() -> None:
    paint = Painter(5)
    work = Annotator(AnnotatorConfig(accept_iou=0.7)).annotate(TARGET, "a", paint)
    assert work.accepted and len(work.points) == paint.calls == len(work.ious) > 1
    assert work.ious[-1] >= 0.7 > work.ious[-2]
    assert work.seconds == 1 + 2.5 * len(work.points)


def test_gives_up_after_the_last_click() -> None:
    work = Annotator(AnnotatorConfig(max_clicks=3)).annotate(TARGET, "a", lambda p, n: np.zeros_like(TARGET))
    assert not work.accepted and len(work.points) == 3 and work.ious == [0.0] * 3


def test_chance_is_the_tasks_own() -> None:
    cfg = AnnotatorConfig(first="random", next="random", click_noise=2.0, max_clicks=4)
    annotator, paint = Annotator(cfg), Painter(2)
    first = annotator.annotate(TARGET, "a", paint).points
    annotator.annotate(TARGET, "b", paint)
    assert annotator.annotate(TARGET, "a", paint).points == first
    assert annotator.annotate(TARGET, "b", paint).points != first
    assert Annotator(replace(cfg, seed=1)).annotate(TARGET, "a", paint).points != first


def test_iou_by_hand() -> None:
    a = np.zeros((4, 4), bool)
    assert iou(a, a) == 1.0
    b = a.copy()
    b[0, :3] = True
    a[0, 1:] = True
    assert iou(a, b) == 2 / 4


@pytest.mark.parametrize(
    ("key", "value"), [("accept_iou", 0.0), ("max_clicks", 0), ("first", "middle"), ("click_noise", -1.0)]
)
def test_bad_settings_are_named(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"annotator.{key}"):
        AnnotatorConfig(**{key: value})  # type: ignore[arg-type]
