"""Large images seen in parts: no mask is lost, cut or asked for twice, and figures are those of the parts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskmill.errors import UserError
from maskmill.evaluate.cases import cases
from maskmill.evaluate.config import EvaluateConfig
from maskmill.evaluate.run import evaluate
from maskmill.evaluate.windows import parts, place
from maskmill.masks.rle import encode
from maskmill.prompts.annotator import iou
from maskmill.prompts.clicks import deepest
from maskmill.sam.build import load_model
from maskmill.sam.predictor import Predictor
from maskmill.storage.annotated import Annotated, open_annotated
from tests.unit.training.sets import scene, write_set

CFG = EvaluateConfig(clicks=(1, 2), noc=(), points_per_side=0, resamples=10)


def boxes_in(height: int, width: int, boxes: list[tuple[int, int, int, int]]) -> Annotated:
    """An image of noise with masks that are boxes, XYXY with exclusive ends."""
    masks = np.zeros((len(boxes), height, width), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    ids = tuple(range(10, 10 + len(boxes)))
    return Annotated("a", image, ids, tuple(encode(m) for m in masks), (None,) * len(boxes))


def test_places_by_hand() -> None:
    """Windows of 40 on 100 pixels begin at 0, 20, 40, 60."""
    given = {(15, 25): 0, (0, 3): 0, (26, 36): 20, (55, 65): 40, (97, 100): 60}
    assert {span: place(*span, 100, 40) for span in given} == given
    assert place(20, 60, 100, 40) == 20 and place(19, 60, 100, 40) is None and place(10, 45, 100, 40) is None
    assert place(3, 30, 40, 40) == 0 and place(0, 7, 7, 40) == 0
    assert all(place(low, low + 20, 101, 40) is not None for low in range(82)), "half a window always fits"


def test_each_mask_is_whole_in_one_part() -> None:
    boxes = [(1, 2, 9, 12), (70, 40, 90, 55), (0, 0, 100, 3), (30, 20, 36, 60), (95, 55, 100, 60)]
    found = boxes_in(60, 100, boxes)
    shown = parts(found, 40)
    assert sorted(i for part in shown for i in part.ids) == list(found.ids)
    assert all(len(p.counts) == len(p.categories) == len(p.ids) > 0 and p.name == "a" for p in shown)
    areas = {i: int(m.sum()) for part in shown for i, m in zip(part.ids, part.masks, strict=True)}
    assert areas == {i: (x1 - x0) * (y1 - y0) for i, (x0, y0, x1, y1) in zip(found.ids, boxes, strict=True)}
    whole = [p for p in shown if p.image.shape == found.image.shape]
    assert [p.ids for p in whole] == [(12,)], "the long one fits into no window"
    first = next(p for p in shown if 10 in p.ids)
    assert first.image.shape == (40, 40, 3) and (first.image == found.image[:40, :40]).all()
    assert (first.masks[0] == found.masks[0][:40, :40]).all()
    for side in (None, 100, 200):
        assert parts(found, side) == [found]


def test_figures_are_those_of_the_parts(tmp_path: Path) -> None:
    data, model = open_annotated(str(write_set(tmp_path / "s", 2))), load_model("nano", device="cpu")
    got = evaluate(model, data, replace(CFG, window=40))
    whole = evaluate(model, data, CFG)
    assert sorted(zip(got.image, got.mask_id, got.area, strict=True)) == sorted(
        zip(whole.image, whole.mask_id, whole.area, strict=True)
    )
    by_hand = {}
    predictor = Predictor(model)
    for n in range(2):
        for part in parts(data.read(n), 40):
            predictor.set_image(part.image)
            for mask_id, mask in zip(part.ids, part.masks, strict=True):
                masks, scores, _ = predictor.predict(np.array([deepest(mask)[0]]), np.array([1]))
                by_hand[n, mask_id] = iou(mask, masks[scores.argmax()])
    first = dict(zip(zip(got.image, got.mask_id, strict=True), got.column("ious")[:, 0], strict=True))
    assert first.keys() == by_hand.keys() and np.allclose(
        [first[k] for k in by_hand], list(by_hand.values()), atol=1e-3
    )
    assert not np.allclose(np.sort(got.column("ious")[:, 0]), np.sort(whole.column("ious")[:, 0]))
    shown = list(cases(model, data, got, [0, 4]))
    for case in shown:
        assert iou(case.target, case.answer) == pytest.approx(case.iou, abs=1e-3)
        assert case.target[case.point[::-1]] and case.image.shape[:2] == case.target.shape


def test_a_window_changes_nothing_for_smaller_images(tmp_path: Path) -> None:
    data, model = open_annotated(str(write_set(tmp_path / "s", 1))), load_model("nano", device="cpu")
    assert scene(0)[0].shape == (60, 80, 3)
    assert evaluate(model, data, replace(CFG, window=80)).table().equals(evaluate(model, data, CFG).table())


def test_a_window_is_of_some_size() -> None:
    with pytest.raises(UserError, match=r"evaluate\.window"):
        EvaluateConfig(window=8)
