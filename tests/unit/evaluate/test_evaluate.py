import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from maskmill.errors import UserError
from maskmill.evaluate.audit import audit
from maskmill.evaluate.bootstrap import estimate, ratio
from maskmill.evaluate.cases import pick
from maskmill.evaluate.config import EvaluateConfig
from maskmill.evaluate.prompts import Prompter, PromptScores, clicks_needed, score_image
from maskmill.evaluate.proposals import Proposals
from maskmill.evaluate.run import Evaluation, evaluate
from maskmill.masks.rle import encode
from maskmill.sam.build import load_model
from maskmill.sam.predictor import Predictor
from maskmill.storage.annotated import open_annotated
from tests.unit.training.sets import annotation, scene, write_set

NAMES = ["a", "b", "c"]


def script(
    monkeypatch: pytest.MonkeyPatch, answers: list[list[np.ndarray]], scores: list[list[float]]
) -> list[tuple[int, ...]]:
    """A model with known answers: the n-th prompt of any object has masks answers[n] with scores[n]."""
    seen: list[tuple[int, ...]] = []

    def predict(
        self: Predictor, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None,
        previous: Tensor | None, three: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        count = len(points if points is not None else boxes)  # type: ignore[arg-type]
        n = min(len(answers), points.shape[1]) - 1 if points is not None else 0
        seen.append((count, 0 if points is None else points.shape[1], int(previous is not None), int(three)))
        masks = torch.as_tensor(np.stack(answers[n]))[None].expand(count, -1, -1, -1)
        sure = torch.tensor(scores[n])[None].expand(count, -1)
        return masks, sure, torch.zeros(count, len(answers[n]), 96, 96)

    monkeypatch.setattr(Predictor, "predict_torch", predict)
    return seen


def test_known_answers_give_known_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    image, masks = scene(0)
    target = masks[0]
    half, nothing = target.copy(), np.zeros_like(target)
    rows = np.flatnonzero(target.any(1))
    half[rows[len(rows) // 2 :]] = False
    share = half.sum() / target.sum()
    seen = script(monkeypatch, [[half, target, nothing], [half], [target]], [[0.9, 0.5, 0.1], [0.7], [0.6]])
    cfg = EvaluateConfig(clicks=(1, 2, 3), max_clicks=5, noc=(0.4, 0.9), points_per_side=0)
    got = score_image(Prompter(load_model("nano", device="cpu"), image), np.stack([target]), ["a"], cfg)
    assert got.ious.tolist() == [[share, share, 1.0, 1.0, 1.0]]
    assert got.oracle.tolist() == [1.0] and got.random.tolist() == [share] and got.box.tolist() == [share]
    # three clicks, the first one for three masks, later ones with logits; nothing after the third is wrong
    assert seen[:3] == [(1, 1, 0, 1), (1, 2, 1, 0), (1, 3, 1, 0)] and seen[3:] == [
        (1, 1, 0, 1),
        (1, 0, 0, 1),
        (1, 0, 0, 0),
    ]


def test_clicking_ends_where_it_decides_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    image, masks = scene(0)
    almost = masks[0].copy()
    y, x = np.argwhere(almost)[0]
    almost[y, x] = False
    seen = script(monkeypatch, [[almost] * 3, [almost]], [[0.5] * 3, [0.5]])
    cfg = EvaluateConfig(clicks=(1, 4), max_clicks=8, noc=(0.9,), points_per_side=0)
    got = score_image(Prompter(load_model("nano", device="cpu"), image), np.stack(masks), NAMES, cfg)
    clicks = [s[:2] for s in seen if s[1] and s[3] == 0]
    assert clicks == [(3, k) for k in (2, 3, 4)] + [(2, k) for k in (5, 6, 7, 8)]  # one is above 0.9, the others never
    assert got.ious.shape == (3, 8) and not np.isnan(got.ious).any()


def test_clicks_needed_by_hand() -> None:
    ious = np.array([[0.5, 0.86, 0.8], [0.1, 0.2, 0.3], [0.9, 0.9, 0.9]])
    clicks, failed = clicks_needed(ious, 0.85, 3)
    assert clicks.tolist() == [2, 3, 1] and failed.tolist() == [False, True, False]
    assert clicks_needed(ious, 0.85, 1)[1].tolist() == [True, True, False]


def test_the_bootstrap_draws_images() -> None:
    values, groups = np.array([0.0] * 50 + [1.0] * 50), np.repeat([3, 8], 50)
    got = estimate(values, groups, 2000, 0)
    assert got.mean == 0.5 and got.low == 0.0 and got.high == 1.0  # two images: nothing is known
    rng = np.random.default_rng(0)
    many = rng.normal(0.7, 0.2, 400)
    got = estimate(many, np.arange(400), 2000, 0)
    sd = many.std() / 20
    assert abs(got.low - (got.mean - 1.96 * sd)) < 0.15 * sd and abs(got.high - (got.mean + 1.96 * sd)) < 0.15 * sd
    assert ratio(np.array([1.0, 3.0]), np.array([2.0, 3.0]), 10, 0).mean == 0.8


def greedy_recall(truth: list[np.ndarray], found: list[np.ndarray], scores: np.ndarray) -> float:
    """Average recall by hand: in the order of scores each mask takes the free human mask that it fits best."""
    recalls = []
    for threshold in np.linspace(0.5, 0.95, 10):
        free = set(range(len(truth)))
        for i in np.argsort(-scores, kind="stable"):
            ious = {j: (found[i] & truth[j]).sum() / (found[i] | truth[j]).sum() for j in free}
            best = max(ious, key=lambda j: ious[j], default=None)
            if best is not None and ious[best] >= threshold:
                free.remove(best)
        recalls.append(1 - len(free) / len(truth))
    return float(np.mean(recalls))


def test_recall_is_that_of_greedy_matching() -> None:
    rng = np.random.default_rng(0)
    proposals, wanted, counts = Proposals(), [], []
    for n in range(6):
        _, truth = scene(n)
        found = [np.roll(m, rng.integers(-4, 5, 2), (0, 1)) for m in truth for _ in range(3)]
        scores = rng.random(len(found))
        proposals.add((60, 80), [encode(m) for m in truth], [encode(m) for m in found], scores)
        wanted.append(greedy_recall(truth, found, scores))
        counts.append(len(truth))
    got = proposals.evaluate(EvaluateConfig(resamples=200))
    assert np.isclose(got.recall["all"], np.average(wanted, weights=counts))
    assert np.isclose(got.recall_interval.mean, got.recall["all"])
    assert got.recall_interval.low < got.recall["all"] < got.recall_interval.high
    assert got.recall["small"] == pytest.approx(got.recall["all"]) and np.isnan(got.recall["large"])  # below 32 x 32


def test_perfect_and_useless_proposals() -> None:
    for answer, want in ((True, 1.0), (False, 0.0)):
        proposals = Proposals()
        _, truth = scene(1)
        found = truth if answer else [np.zeros((60, 80), bool) | (np.arange(80) == 0)]
        proposals.add((60, 80), [encode(m) for m in truth], [encode(m) for m in found], np.ones(len(found)))
        got = proposals.evaluate(EvaluateConfig(resamples=10))
        assert got.recall["all"] == want and got.precision["all"] == pytest.approx(want)


def test_images_without_masks_and_crowds_count_as_in_coco(tmp_path: Path) -> None:
    """Answers on an empty image are wrong, those in a crowd neither right nor wrong."""
    _, truth = scene(1)
    counts = [encode(m) for m in truth]
    proposals = Proposals()
    proposals.add((60, 80), counts, counts, np.full(3, 0.5))
    proposals.add((60, 80), [], counts, np.full(3, 0.9))
    got = proposals.evaluate(EvaluateConfig(resamples=10))
    assert got.recall["all"] == got.recall_interval.mean == 1 and got.precision["all"] == pytest.approx(0.5, abs=0.01)
    for crowds, want in (([counts[2]], 1.0), ([], 0.67)):
        proposals = Proposals()
        proposals.add((60, 80), counts[:2], counts, np.array([0.5, 0.4, 0.9]), crowds)
        got = proposals.evaluate(EvaluateConfig(resamples=10))
        assert got.recall["all"] == 1 and got.precision["all"] == pytest.approx(want, abs=0.01)


def test_nano_on_a_set(tmp_path: Path) -> None:
    data = open_annotated(str(write_set(tmp_path / "set", 2)))
    cfg = EvaluateConfig(clicks=(1, 2), max_clicks=3, points_per_side=4, resamples=20)
    done: list[tuple[int, int]] = []
    got = evaluate(load_model("nano", device="cpu"), data, cfg, lambda a, b: done.append((a, b)))
    tree = json.loads(json.dumps(got.summary()))
    assert tree["images"] == 2 and tree["masks"] == 6 and done == [(1, 2), (2, 2)]
    assert tree["oracle"]["mean"] >= tree["miou"]["1"]["mean"] > 0.3
    assert tree["noc"]["80"]["failures"] <= tree["noc"]["90"]["failures"] and tree["recall"]["all"] > 0
    table = got.table()
    assert table.num_rows == 6 and table["mask_id"].to_pylist() == [0, 1, 2] * 2
    assert np.isclose(np.mean([row[0] for row in table["ious"].to_pylist()]), tree["miou"]["1"]["mean"], atol=1e-4)
    some = evaluate(
        load_model("nano", device="cpu"), data, EvaluateConfig(masks_per_image=1, images=1, points_per_side=0)
    )
    assert some.summary()["masks"] == 1


def test_an_image_without_masks_lowers_precision_alone(tmp_path: Path) -> None:
    cfg = EvaluateConfig(clicks=(1,), noc=(), points_per_side=4, resamples=20)
    model, folder = load_model("nano", device="cpu"), write_set(tmp_path / "set", 2)
    (folder / "sa_0.json").write_text('{"annotations": []}')
    both = evaluate(model, open_annotated(str(folder)), cfg).summary()
    (folder / "sa_0.json").unlink()
    (folder / "sa_0.png").unlink()
    one = evaluate(model, open_annotated(str(folder)), cfg).summary()
    assert both["images"] == one["images"] == 1 and both["recall"]["all"] == one["recall"]["all"] > 0
    assert both["precision"]["all"] < one["precision"]["all"]


def test_a_set_without_masks_is_said(tmp_path: Path) -> None:
    data = open_annotated(str(write_set(tmp_path / "set", 1, masks=False)))
    with pytest.raises(UserError, match="no mask to measure on"):
        evaluate(load_model("nano", device="cpu"), data, EvaluateConfig(points_per_side=0))


def test_an_audit_by_hand(tmp_path: Path) -> None:
    before, after = write_set(tmp_path / "a", 2), write_set(tmp_path / "b", 2)
    _, masks = scene(0)
    changed = masks[0].copy()
    rows = np.flatnonzero(changed.any(1))
    changed[rows[0]] = False
    share = changed.sum() / masks[0].sum()  # between 0.9 and 0.95
    extra = np.zeros_like(changed)
    extra[50:, :9] = True
    records = [annotation(changed, 0), annotation(masks[1], 1), annotation(extra, 7)]
    (after / "sa_0.json").write_text(json.dumps({"annotations": records}))
    got = audit(open_annotated(str(before)), open_annotated(str(after)))
    assert sorted(got.ious.tolist()) == sorted([share, 1, 1, 1, 1]) and (got.removed, got.added) == (1, 1)
    assert got.above[0.9].mean == np.mean(got.ious > 0.9) and got.above[0.75].mean == 1.0
    rle = [{"size": [60, 80], "counts": encode(m).encode()} for m in (masks[0], changed)]
    assert np.isclose(coco_mask.iou(rle[:1], rle[1:], [0])[0, 0], share)


def test_an_audit_of_strangers_is_refused(tmp_path: Path) -> None:
    one, two = write_set(tmp_path / "a", 1), write_set(tmp_path / "b", 2)
    with pytest.raises(UserError, match="not among the automatic ones"):
        audit(open_annotated(str(one)), open_annotated(str(two)))


def test_cases_are_of_many_images_and_of_the_right_half() -> None:
    """Six masks, two images; the second has the best mask only after four of the first."""
    found = Evaluation(EvaluateConfig(clicks=(1,), noc=()), image=[0, 0, 0, 0, 1, 1])
    ious = np.array([0.9, 0.8, 0.7, 0.6, 0.1, 0.2])
    found.scores = [PromptScores(ious[:, None], *(ious,) * 4, 0.0, 0.0)]
    assert pick(found, 2) == ([4, 3], [0, 1])  # the second image has nothing in the better half
    assert pick(found, 9) == ([4, 5, 3], [0, 1, 2])
    found.image = [0, 0, 1, 1, 1, 1]
    assert pick(found, 2) == ([4, 5], [0, 2])  # one of each image before two of one
