"""RT-DETR with a tiny config: it learns, is kept, and starts from weights of others. Skipped without transformers."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from maskmill.detect.boxes import Seen
from maskmill.detect.detector import open_detector
from maskmill.detect.rtdetr import RtDetrConfig, label, need_transformers, new_model, train_rtdetr
from maskmill.detect.train import DetectorTraining
from maskmill.errors import UserError

CPU = torch.device("cpu")
TINY = RtDetrConfig(
    image_size=64, queries=20, width=32, decoder_layers=1,
    backbone_depths=(1, 1, 1, 1), backbone_sizes=(16, 16, 32, 32),
    training=DetectorTraining(steps=40, batch_size=2, lr=2e-3, weight_decay=1e-4, warmup=4),
)  # fmt: skip
extra = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="no transformers here: pip install 'maskmill[detr]'"
)


def square(x: int, y: int, side: int) -> tuple[np.ndarray, Tensor]:
    """A bright square on a dark image of 48 x 64, and its box."""
    image = np.full((48, 64, 3), 30, np.uint8)
    image[y : y + side, x : x + side] = (240, 200, 40)
    return image, torch.tensor([[x, y, x + side, y + side]], dtype=torch.float32)


def test_boxes_as_shares_of_the_image() -> None:
    image, boxes = square(16, 12, 24)
    found = label(image, boxes, CPU)
    assert found["boxes"].tolist() == [[28 / 64, 24 / 48, 24 / 64, 24 / 48]] and found["class_labels"].tolist() == [0]


@pytest.mark.parametrize(
    ("key", "value", "words"), [("image_size", 70, "multiple of 32"), ("queries", 0, "at least 1")]
)
def test_what_cannot_be(key: str, value: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        RtDetrConfig(**{key: value})  # type: ignore[arg-type]


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskmill.detect.rtdetr.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs transformers: pip install 'maskmill\[detr\]'"):
        need_transformers()


@extra
def test_it_learns_and_is_kept(tmp_path: Path) -> None:
    """The loss falls; the same bits from the same seed and from the file; boxes lie in the image, best first."""
    examples = [square(4, 4, 24), square(30, 16, 28), (np.zeros((48, 64, 3), np.uint8), torch.zeros(0, 4))]
    losses: list[float] = []
    detector = train_rtdetr([lambda e=e: e for e in examples], TINY, CPU, lambda n, loss: losses.append(loss))  # type: ignore[misc]
    assert len(losses) == 40 and np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    detector.save(tmp_path / "d.safetensors")
    again = open_detector(tmp_path / "d.safetensors", CPU)
    shown = Seen(0, examples[0][0], torch.zeros(1, 1, 1, 1), (48, 64), 64)
    one, two = detector(shown), again(shown)
    assert np.array_equal(one.xyxy, two.xyxy) and np.array_equal(one.scores, two.scores)
    assert 0 < len(one.scores) <= 20 and (np.diff(one.scores) <= 0).all()
    assert one.xyxy.min() >= 0 and (one.xyxy[:, 2:] <= [64, 48]).all()
    short = replace(TINY, training=replace(TINY.training, steps=2))
    a, b = (train_rtdetr([lambda: examples[0]], short, CPU).model.state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)


@extra
def test_it_starts_from_a_checkpoint(tmp_path: Path) -> None:
    """With classes of its own, which are left out; the rest of the weights is taken."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection

    first = new_model(TINY)
    theirs = RTDetrForObjectDetection(RTDetrConfig.from_dict({**first.config.to_dict(), "num_labels": 5}))
    theirs.save_pretrained(tmp_path / "theirs")
    model = new_model(replace(TINY, checkpoint=str(tmp_path / "theirs")))
    assert model.config.num_labels == 1
    name = next(n for n, _ in theirs.named_parameters() if "backbone" in n)
    assert torch.equal(model.state_dict()[name], theirs.state_dict()[name])
    with pytest.raises(UserError, match=r"rtdetr\.checkpoint"):
        new_model(replace(TINY, checkpoint=str(tmp_path / "none")))
