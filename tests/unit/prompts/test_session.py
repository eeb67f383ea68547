"""An annotator's session at one image, with answers that are known."""

import numpy as np
import pytest

from maskmill.errors import UserError
from maskmill.prompts.clicks import Mask
from maskmill.prompts.session import Answer, SessionConfig, annotate_image

CFG = SessionConfig(click_noise=0)  # locate 1 s, click 1.5 s, check 1 s; patience 30 s
LOGITS = np.zeros((1, 4, 4), np.float32)


def square(x: int, y: int, side: int) -> Mask:
    mask = np.zeros((60, 80), bool)
    mask[y : y + side, x : x + side] = True
    return mask


LARGE, SMALL = square(5, 5, 30), square(50, 20, 12)


def grows(objects: list[Mask], clicks: int) -> Answer:
    """The object under the first click, whole after so many clicks; half of it before."""

    def answer(points: np.ndarray, labels: np.ndarray, logits: np.ndarray | None) -> tuple[Mask, np.ndarray]:
        x, y = points[0].astype(int)
        whole = next(o for o in objects if o[y, x])
        if len(points) >= clicks:
            return whole, LOGITS
        half = whole.copy()
        half[:, : int(np.flatnonzero(whole.any(0)).mean()) + 1] = False
        return half, LOGITS

    return answer


def test_prominent_objects_first() -> None:
    """The larger one first whatever the order, two clicks each: 1 + 2 * 2.5 seconds."""
    session = annotate_image([SMALL, LARGE], [], grows([SMALL, LARGE], 2), CFG, "i")
    assert [int(m.mask.sum()) for m in session.made] == [900, 144]
    assert [(m.edit, m.clicks, m.seconds) for m in session.made] == [("drawn", 2, 6.0)] * 2
    assert session.seconds == 12 and (session.rejected, session.given_up) == (0, 0)


def test_patience_ends() -> None:
    """An object that never gets good: 11 clicks fit into 30 s; then the next image, whatever is left on this one."""
    never = grows([LARGE, SMALL], 99)
    session = annotate_image([LARGE, SMALL], [], never, SessionConfig(click_noise=0, keep_iou=0.6), "i")
    assert session.seconds == 1 + 11 * 2.5 <= 30
    assert session.given_up == 1 and session.made == (), "half of it is below keep_iou"
    kept = annotate_image([LARGE, SMALL], [], never, SessionConfig(click_noise=0, keep_iou=0.5), "i")
    assert [m.edit for m in kept.made] == ["drawn"] and kept.made[0].clicks == 11 and kept.given_up == 0


def test_prefilled_masks_are_accepted_fixed_or_rejected() -> None:
    """IoU 1: a look. IoU .6: a look, then clicks. IoU .1: a look and a click. What is missing is drawn."""
    third = square(50, 40, 15)
    most = LARGE.copy()
    most[:, 23:] = False  # 18 of 30 columns
    wrong = square(40, 5, 15)
    seen: list[np.ndarray | None] = []

    def answer(points: np.ndarray, labels: np.ndarray, logits: np.ndarray | None) -> tuple[Mask, np.ndarray]:
        seen.append(logits)
        x, y = points[0].astype(int)
        return next(o for o in (LARGE, third) if o[y, x]), LOGITS

    logits = [np.full((1, 4, 4), v, np.float32) for v in (1, 2, 3)]
    shown = list(zip([SMALL, most, wrong], logits, strict=True))
    session = annotate_image([LARGE, SMALL, third], shown, answer, CFG, "i")
    assert [(m.edit, m.clicks, m.seconds, m.prefilled) for m in session.made] == [
        ("accepted", 0, 1.0, 0),
        ("fixed", 1, 1.0 + 2.5, 1),
        ("drawn", 1, 1 + 2.5, None),
    ]
    assert (session.made[1].mask == LARGE).all()
    assert session.rejected == 1 and session.seconds == 1 + (1 + 2.5) + (1 + 1.5) + 3.5
    assert seen[0] is logits[1] and seen[1] is None, "a fix goes on from the shown mask, a new object from nothing"


def test_without_a_look_all_is_taken() -> None:
    wrong = square(40, 40, 15)
    shown = [(LARGE, LOGITS), (wrong, LOGITS)]
    session = annotate_image([LARGE], shown, grows([LARGE], 1), SessionConfig(verify=False), "i")
    assert [m.edit for m in session.made] == ["accepted"] * 2 and session.seconds == 0


def test_chance_follows_from_the_name() -> None:
    """Noisy clicks: the same for one image, others for another."""
    points: list[list[tuple[float, ...]]] = []

    def answer(at: np.ndarray, labels: np.ndarray, logits: np.ndarray | None) -> tuple[Mask, np.ndarray]:
        points[-1].append(tuple(at[-1]))
        return LARGE, LOGITS

    for name in ("a", "a", "b"):
        points.append([])
        annotate_image([LARGE], [], answer, SessionConfig(click_noise=4), name)
    assert points[0] == points[1] != points[2]


def test_refused() -> None:
    with pytest.raises(UserError, match="too short for a single click"):
        SessionConfig(patience_s=2)
    with pytest.raises(UserError, match="accept_iou"):
        SessionConfig(accept_iou=0)
