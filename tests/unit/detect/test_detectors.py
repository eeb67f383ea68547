"""Detectors behind one interface, and how their boxes are scored."""

from pathlib import Path

import numpy as np
import pytest
import torch

from maskmill.detect.boxes import Boxes, Seen
from maskmill.detect.detector import open_detector
from maskmill.detect.foreign import read_detections, write_detections
from maskmill.detect.head import BoxHead, DetectorConfig, detect
from maskmill.detect.train import save_head
from maskmill.errors import UserError
from maskmill.evaluate.box_recall import box_scores
from maskmill.masks.rle import encode
from maskmill.storage.annotated import Annotated

CPU = torch.device("cpu")


def seen(image_id: int, size: tuple[int, int] = (60, 80)) -> Seen:
    embedding = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(image_id))
    return Seen(image_id, np.zeros((*size, 3), np.uint8), embedding, (48, 64), 64)


def boxes(*rows: tuple[float, float, float, float], scores: list[float] | None = None) -> Boxes:
    return Boxes(np.array(rows, np.float32), np.array(scores or [0.9] * len(rows), np.float32))


def test_every_bit_of_a_box_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 4000, (500, 2, 2)).astype(np.float32)
    low, high = corners.min(1), corners.max(1)
    found = Boxes(np.concatenate([low, high], 1), np.sort(rng.random(500).astype(np.float32))[::-1].copy())
    write_detections({7: found, 2**62: boxes((0.1, 0.2, 3.3, 4.7))}, tmp_path / "d.json")
    again = read_detections(tmp_path / "d.json")
    assert np.array_equal(again[7].xyxy, found.xyxy) and np.array_equal(again[7].scores, found.scores)
    assert np.array_equal(again[2**62].xyxy, np.array([[0.1, 0.2, 3.3, 4.7]], np.float32))


def test_listed_boxes_are_cut_at_the_border(tmp_path: Path) -> None:
    """Known by the image's number; nothing for a number that is not listed; none that lies outside."""
    listed = boxes((-5, 10, 20, 90), (10, 10, 30, 30), (85, 0, 120, 50), scores=[0.9, 0.8, 0.7])
    write_detections({3: listed}, tmp_path / "d.json")
    detector = open_detector(tmp_path / "d.json", CPU)
    found = detector(seen(3))
    assert found.xyxy.tolist() == [[0, 10, 20, 60], [10, 10, 30, 30]] and found.scores == pytest.approx([0.9, 0.8])
    assert found.above(0.85).xyxy.tolist() == [[0, 10, 20, 60]]
    assert detector(seen(4)).xyxy.shape == (0, 4) and detector(seen(4)).scores.shape == (0,)


def test_a_head_is_opened_as_a_detector(tmp_path: Path) -> None:
    """It gives what `detect` gives for the embedding."""
    head = BoxHead(DetectorConfig(channels=8, depth=1, sizes=(0.3,)), 4).eval()
    save_head(head, tmp_path / "d.safetensors")
    found = open_detector(tmp_path / "d.safetensors", CPU)(seen(1))
    wanted = detect(head, seen(1).embedding, (48, 64), (60, 80), 64)
    assert len(found.scores) and np.array_equal(found.xyxy, wanted.xyxy)
    (tmp_path / "x.safetensors").write_bytes(b"no detector at all")
    with pytest.raises(UserError, match="is not a detector"):
        open_detector(tmp_path / "x.safetensors", CPU)


def annotated(*squares: tuple[int, int, int]) -> Annotated:
    """An image of 200 x 200 with squares (x, y, side)."""
    masks = []
    for x, y, side in squares:
        mask = np.zeros((200, 200), bool)
        mask[y : y + side, x : x + side] = True
        masks.append(encode(mask))
    image, nothing = np.zeros((200, 200, 3), np.uint8), (None,) * len(masks)
    return Annotated("a", image, tuple(range(len(masks))), tuple(masks), nothing)


def test_scores_of_known_boxes() -> None:
    """One small and one large object found exactly, a medium one with IoU 0.72, another not at all."""
    one = annotated((0, 0, 20), (50, 50, 100)), boxes((0, 0, 20, 20), (50, 50, 150, 150))
    two = annotated((0, 0, 50), (100, 100, 50)), boxes((0, 0, 50, 36), (180, 0, 190, 10))
    scores = box_scores([one, two])
    half = 5 / 10  # IoU 0.72 passes 0.50 to 0.70, five of the ten thresholds
    assert scores["recall"]["small"] == scores["recall"]["large"] == 1.0
    assert scores["recall"]["medium"] == pytest.approx(half / 2)
    assert scores["recall"]["all"] == pytest.approx((2 + half) / 4) and scores["recall_50"] == pytest.approx(3 / 4)
    assert 0 < scores["precision"] < 1
    assert box_scores([(annotated(), boxes((0, 0, 5, 5)))])["recall"]["all"] is None
    nothing = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    assert box_scores([(annotated((0, 0, 9)), nothing)])["recall"]["all"] == 0
