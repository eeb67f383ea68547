"""The worst and the best answers to one click, to look at."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from maskmill.evaluate.prompts import Prompter
from maskmill.evaluate.run import Evaluation, take
from maskmill.evaluate.windows import parts
from maskmill.prompts.clicks import deepest
from maskmill.sam.sam import Sam
from maskmill.storage.annotated import AnnotatedSet


@dataclass(frozen=True)
class Case:
    """One mask: the image, what is right, what the model answered to a click at `point`."""

    name: str
    mask_id: int
    image: np.ndarray
    target: np.ndarray
    answer: np.ndarray
    point: tuple[int, int]
    iou: float


def pick(evaluation: Evaluation, count: int) -> tuple[list[int], list[int]]:
    """The masks with the lowest and the highest IoU at the first click, of the worse and the better half; one for each
    image while there are enough."""
    first, images = evaluation.column("ious")[:, 0], np.array(evaluation.image)
    found = []
    for order in (np.argsort(first, kind="stable"), np.argsort(-first, kind="stable")):
        order = order[: max(1, len(order) // 2)]
        _, ahead = np.unique(images[order], return_index=True)
        rest = np.setdiff1d(np.arange(len(order)), ahead)
        chosen = np.concatenate([np.sort(ahead), rest])[:count]
        found.append([int(i) for i in order[np.sort(chosen)]])
    return found[0], found[1]


def cases(model: Sam, data: AnnotatedSet, evaluation: Evaluation, rows: list[int]) -> Iterator[Case]:
    """Masks of an evaluation by number, asked for once more."""
    for row in rows:
        place = evaluation.image[row]
        whole = data.read(evaluation.index[place])
        (found,) = parts(take(whole, [whole.ids.index(evaluation.mask_id[row])]), evaluation.cfg.window)
        target = found.masks[0]
        point = deepest(target)[0]
        points, labels = np.array([[point]], float), np.ones((1, 1), int)
        masks, scores, _ = Prompter(model, found.image).ask(points, labels, None, None, True)
        answer = masks[0, scores[0].argmax()]
        iou = float(evaluation.column("ious")[row, 0])
        yield Case(found.name, evaluation.mask_id[row], found.image, target, answer, point, iou)
