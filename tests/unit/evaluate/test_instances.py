"""COCO mask AP from boxes: known answers, and pycocotools' own figures on the same files."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from maskmill.errors import UserError
from maskmill.evaluate.boxes import Box, read_boxes
from maskmill.evaluate.config import EvaluateConfig
from maskmill.evaluate.instances import Instances, InstanceScores
from maskmill.evaluate.prompts import Prompter
from maskmill.masks.rle import encode
from maskmill.prompts.clicks import extent
from maskmill.sam.build import load_model
from maskmill.sam.predictor import Predictor
from maskmill.storage.annotated import Annotated, open_annotated
from tests.pipeline.exchange import complaint, done, run
from tests.unit.training.sets import scene, write_set

QUICK = [
    word
    for pair in ("points_per_side=0", "clicks=[1]", "noc=[]", "resamples=5")
    for word in ("--set", f"evaluate.{pair}")
]


def found(masks: list[np.ndarray], categories: list[str | None], crowds: list[np.ndarray] | None = None) -> Annotated:
    """An image `a` of 60 x 80 with these masks."""
    image, _ = scene(0)
    hidden = tuple(("cup", encode(c)) for c in crowds or [])
    return Annotated("a", image, tuple(range(len(masks))), tuple(map(encode, masks)), tuple(categories), hidden)


def drawn(
    monkeypatch: pytest.MonkeyPatch, data: Annotated, boxes: dict[str, list[Box]] | None, grow: int = 0
) -> tuple[InstanceScores, list[bool]]:
    """Scores of a model that answers a box with the box itself, at first cut `grow` pixels short on the left; and
    whether each question came with a mask."""
    asked: list[bool] = []

    def predict(
        self: Predictor, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None,
        previous: Tensor | None, three: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        assert boxes is not None and points is None
        asked.append(previous is not None)
        masks = torch.zeros(len(boxes), 3 if three else 1, 60, 80, dtype=torch.bool)
        scale = 80 / self.model.input_size(60, 80)[1]
        for n, (x0, y0, x1, y1) in enumerate((boxes * scale).round().int().tolist()):
            masks[n, -1, y0 : y1 + 1, x0 + (0 if previous is not None else grow) : x1 + 1] = True
        scores = torch.linspace(0.1, 0.9, masks.shape[1]).expand(len(boxes), -1)  # the last one is the most confident
        return masks, scores, torch.zeros(len(boxes), masks.shape[1], 96, 96)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_torch", predict)
        instances = Instances(boxes)
        instances.add(Prompter(load_model("nano", device="cpu"), data.image), data, 2)
    return instances.evaluate(), asked


def test_the_refined_answer_counts_and_the_first_is_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:30, 20:60] = True
    got, asked = drawn(monkeypatch, found([mask], [None]), None, grow=12)  # IoU 28/40 = 0.7
    assert asked == [False, True] and got.boxes == 1
    assert got.ap["AP"] == got.ap["AP_small"] == pytest.approx(1.0) and np.isnan(got.ap["AP_large"])
    assert got.first["AP"] == pytest.approx(0.5) and got.first["AP50"] > 0.99 > got.first["AP75"] == 0
    assert got.by_category == {"object": pytest.approx(1.0)}


def test_more_masks_than_coco_counts_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    for n in range(130):
        mask = np.zeros((60, 80), bool)
        mask[4 * (n // 20) : 4 * (n // 20) + 3, 4 * (n % 20) : 4 * (n % 20) + 3] = True
        masks.append(mask)
    got, _ = drawn(monkeypatch, found(masks, ["cell"] * 130), None)
    assert got.ap["AP"] == pytest.approx(1.0) and got.ap["AR"] == 1.0 and got.boxes == 130


def test_categories_crowds_and_false_boxes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    _, masks = scene(0)
    data = found(masks[:2], ["cup", "dog"], [masks[2]])
    ends = [tuple(map(float, extent(m))) for m in masks]
    boxes = [Box("cup", ends[0], 0.9), Box("cup", ends[2], 0.95), Box("dog", ends[1], 0.5)]  # type: ignore[arg-type]
    got, _ = drawn(monkeypatch, data, {"a": boxes})
    assert got.by_category == pytest.approx({"cup": 1.0, "dog": 1.0})  # what lies in a crowd is no error
    boxes += [Box("dog", ends[0], 0.8), Box("cat", ends[0], 0.99)]  # type: ignore[arg-type]
    got, _ = drawn(monkeypatch, data, {"a": boxes})
    assert got.by_category == pytest.approx({"cup": 1.0, "dog": 0.5}) and got.ap["AP"] == pytest.approx(
        0.75
    )  # precision 1/2 at the only recall
    got, _ = drawn(monkeypatch, data, {})
    assert got.ap["AP"] == got.ap["AR"] == 0.0 and got.boxes == 0


def coco_files(folder: Path) -> tuple[Path, Path]:
    """Four images, one of them without masks; three categories, a crowd; and a detector's boxes, some of them wrong."""
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    (folder / "images").mkdir(parents=True)
    for n in range(4):
        image, masks = scene(n)
        Image.fromarray(image).save(folder / "images" / f"{n}.png")
        images.append({"id": 10 + n, "file_name": f"{n}.png", "height": 60, "width": 80})
        for k, mask in enumerate(masks):
            x0, y0, x1, y1 = extent(mask)
            box = [x0, y0, x1 - x0 + 1, y1 - y0 + 1]
            about = {"image_id": 10 + n, "category_id": (3, 7, 3)[k], "bbox": box}
            rle = {"size": [60, 80], "counts": encode(mask)}
            crowd = int(n == 1 and k == 2)
            if n < 3:
                more = {"id": 1 + len(annotations), "segmentation": rle, "area": int(mask.sum()), "iscrowd": crowd}
                annotations.append(about | more)
            moved = (np.array(box) + rng.normal(0, 2, 4)).clip(0.5).tolist()
            wrong = {"category_id": 9} if (n, k) == (0, 1) else {}
            boxes.append(about | {"bbox": moved, "score": float(rng.random())} | wrong)
    categories = [{"id": i, "name": name} for i, name in ((3, "cup"), (7, "dog"), (9, "cat"))]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(tree))
    (folder / "boxes.json").write_text(json.dumps(boxes))
    return folder / "instances.json", folder / "boxes.json"


def test_figures_are_those_of_pycocotools_on_the_files(tmp_path: Path) -> None:
    truth, boxes = coco_files(tmp_path / "set")
    shown = done("evaluate", "nano", truth, "--out", tmp_path / "out", "--boxes", boxes, *QUICK).output
    tree = json.loads((tmp_path / "out/evaluation.json").read_text())["boxes"]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        check = COCOeval(coco, coco.loadRes(str(tmp_path / "out/boxes.json")), "segm")
        check.evaluate()
        check.accumulate()
        check.summarize()
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    want = {name: None if v == -1 else pytest.approx(v, abs=1e-5) for name, v in zip(names, check.stats, strict=False)}
    assert tree["ap"] == want | {"AR": pytest.approx(check.stats[8], abs=1e-5)} and tree["boxes"] == 12
    assert 0.05 < tree["ap"]["AP"] < tree["ap"]["AP50"] < 1 and tree["by_category"].keys() == {"cup", "dog"}
    for k, name in enumerate(("cup", "dog")):
        assert tree["by_category"][name] == pytest.approx(check.eval["precision"][:, :, k, 0, -1].mean(), abs=1e-5)
    assert f"{tree['ap']['AP']:.3f}" in shown
    page = (tmp_path / "out/evaluation.html").read_text()
    assert page.index("by category") < page.index("<td>cup</td>") and "<td>dog</td>" in page
    truths = done("evaluate", "nano", truth, "--out", tmp_path / "own", "--boxes", "truth", *QUICK).output
    assert json.loads((tmp_path / "own/evaluation.json").read_text())["boxes"]["boxes"] == 8 and "mask AP" in truths


def test_a_mask_without_a_category_among_others(tmp_path: Path) -> None:
    truth, _ = coco_files(tmp_path / "set")
    tree = json.loads(truth.read_text())
    del tree["annotations"][0]["category_id"]
    truth.write_text(json.dumps(tree))
    done("evaluate", "nano", truth, "--out", tmp_path / "out", "--boxes", "truth", *QUICK)
    ids = [row["category_id"] for row in json.loads((tmp_path / "out/boxes.json").read_text())]
    assert sorted(set(ids)) == [3, 7, 10] and ids.count(10) == 1  # the file lists 3, 7 and 9


def test_an_answer_is_the_predictors(tmp_path: Path) -> None:
    truth, boxes = coco_files(tmp_path / "set")
    data = open_annotated(str(truth))
    detected = read_boxes(str(boxes), data)
    first, model = data.read(0), load_model("nano", device="cpu")
    instances = Instances(detected)
    instances.add(Prompter(model, first.image), first, 32)
    predictor = Predictor(model)
    predictor.set_image(first.image)
    box = np.array(detected["0.png"][1].corners)
    _, scores, low = predictor.predict(box=box)
    masks, _, _ = predictor.predict(box=box, mask_input=low[scores.argmax()][None], multimask_output=False)
    assert instances.answers[1]["segmentation"]["counts"].decode() == encode(masks[0])
    assert instances.answers[1]["score"] == detected["0.png"][1].score


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 99}, "entry 2: DATA has no image with id 99"),
        ({"category_id": 4}, "entry 2: DATA has no category with id 4"),
        ({"bbox": [1, 2, 3]}, "entry 2: bbox is .* expected 4 finite numbers"),
        ({"bbox": [1, 2, -3, 4]}, "entry 2: .* negative side"),
        ({"score": float("nan")}, "entry 2: score is"),
        ({"score": None}, "entry 2: score is"),
    ],
)
def test_a_broken_box_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    truth, boxes = coco_files(tmp_path / "set")
    rows = json.loads(boxes.read_text())
    rows[2] |= change
    boxes.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=words):
        read_boxes(str(boxes), open_annotated(str(truth)))


def test_what_is_no_results_file_is_refused(tmp_path: Path) -> None:
    truth, boxes = coco_files(tmp_path / "set")
    words = ["evaluate", "nano", truth, "--out", tmp_path / "out", "--boxes"]
    assert "no such file" in complaint(run(*words, tmp_path / "gone.json"))
    assert "is no list" in complaint(run(*words, truth))
    boxes.write_text("[]")
    assert "is empty" in complaint(run(*words, boxes))
    boxes.write_text("[{")
    assert "no JSON" in complaint(run(*words, boxes))
    folder = write_set(tmp_path / "sa1b", 1)
    assert "ids in a COCO file" in complaint(run("evaluate", "nano", folder, "--out", tmp_path / "o", "--boxes", boxes))


def test_config_limits_do_not_cut_the_human_masks(tmp_path: Path) -> None:
    """Boxes are measured on whole images, however few masks are clicked on."""
    truth, _ = coco_files(tmp_path / "set")
    data, model = open_annotated(str(truth)), load_model("nano", device="cpu")
    from maskmill.evaluate.run import evaluate

    cfg = EvaluateConfig(clicks=(1,), noc=(), points_per_side=0, masks_per_image=1, resamples=5)
    got = evaluate(model, data, cfg, instances=Instances(None))
    assert got.instances is not None and got.instances.boxes == 8 and len(got.mask_id) == 3
