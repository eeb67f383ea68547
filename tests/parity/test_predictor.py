"""`Predictor` against SamPredictor: nano's weights, float32; the embedding and the logits differ in their last bits."""

from typing import Any

import numpy as np
import pytest
import torch

from maskmill import Predictor
from maskmill.errors import UserError
from maskmill.sam.build import load_config
from tests.parity.images import render
from tests.parity.official import SamPredictor
from tests.parity.pair import Pair

SIZE = load_config("nano").image_encoder.img_size
IMAGES = {"wide": render(21, 240, 380), "tall": render(22, 333, 217)}
MASK = np.random.default_rng(0).normal(0, 4, (1, SIZE // 4, SIZE // 4)).astype(np.float32)
POINTS = np.array([[60.5, 71.0], [100.0, 120.25], [10.0, 200.0]])
BOX = np.array([20.0, 30.5, 150.0, 180.0])
PROMPTS: dict[str, dict[str, Any]] = {
    "point": {"point_coords": POINTS[:1], "point_labels": np.array([1])},
    "points": {"point_coords": POINTS, "point_labels": np.array([1, 0, 1])},
    "integer points": {"point_coords": POINTS.astype(int), "point_labels": np.array([1, 1, 0])},
    "box": {"box": BOX},
    "box of integers": {"box": BOX.astype(int)},
    "mask": {"mask_input": MASK},
    "point and mask": {"point_coords": POINTS[:1], "point_labels": np.array([1]), "mask_input": MASK},
    "points and box": {"point_coords": POINTS[:2], "point_labels": np.array([1, 0]), "box": BOX},
    "everything": {"point_coords": POINTS, "point_labels": np.array([1, 0, 1]), "box": BOX, "mask_input": MASK},
    "nothing": {},
}


@pytest.fixture(scope="module", params=IMAGES)
def predictors(request: pytest.FixtureRequest, nano: Pair) -> tuple[SamPredictor, Predictor]:
    """Both, with the same image set."""
    made = SamPredictor(nano.official), Predictor(nano.ours)
    for predictor in made:
        predictor.set_image(IMAGES[request.param])
    return made


def same(theirs: tuple[np.ndarray, ...], ours: tuple[np.ndarray, ...]) -> None:
    """Masks or logits, predicted IoU, low-resolution logits: of one type and shape, and equal but for rounding."""
    for a, b in zip(theirs, ours, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if a.dtype == bool:
            assert (a != b).sum() <= 2
        else:
            assert np.abs(a - b).max() <= 1e-4 * max(1, np.abs(a).max())


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", PROMPTS)
def test_predict(kind: str, multimask: bool, predictors: tuple[SamPredictor, Predictor]) -> None:
    theirs, ours = (p.predict(**PROMPTS[kind], multimask_output=multimask) for p in predictors)
    assert ours[0].dtype == bool and len(ours[0]) == (3 if multimask else 1)
    same(theirs, ours)


def test_logits(predictors: tuple[SamPredictor, Predictor]) -> None:
    theirs, ours = (p.predict(**PROMPTS["point"], return_logits=True) for p in predictors)
    assert ours[0].dtype == np.float32 and ours[0].std() > 0
    same(theirs, ours)


def test_the_last_masks_refine_the_next(predictors: tuple[SamPredictor, Predictor]) -> None:
    """The low-resolution logits of one call are the mask_input of the next."""
    theirs, ours = (
        p.predict(**PROMPTS["points"], mask_input=p.predict(**PROMPTS["point"])[2][:1], multimask_output=False)
        for p in predictors
    )
    same(theirs, ours)


def test_predict_torch_batch(predictors: tuple[SamPredictor, Predictor]) -> None:
    """Four objects at once, in input pixels."""
    points = torch.tensor([[[30.0, 40]], [[200, 100]], [[50, 300]], [[500, 5]]])
    labels = torch.ones(4, 1, dtype=torch.int)
    theirs, ours = (p.predict_torch(points, labels) for p in predictors)
    same(*(tuple(x.numpy() for x in side) for side in (theirs, ours)))


def test_many_prompts_at_once(predictors: tuple[SamPredictor, Predictor]) -> None:
    """More than the decoder takes at a time, each with a box, a point and no mask, its own or that of all."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(21, 1, 2, generator=generator) * 200
    boxes = torch.cat([points - 30, points + 30], dim=1).flatten(1)
    masks = torch.randn(21, 1, SIZE // 4, SIZE // 4, generator=generator) * 4
    labels = torch.ones(21, 1, dtype=torch.int)
    for mask in (None, masks, masks[:1]):
        theirs, ours = (p.predict_torch(points, labels, boxes, mask, return_logits=True) for p in predictors)
        same(*(tuple(x.numpy() for x in side) for side in (theirs, ours)))


def test_a_new_embedding_is_used(nano: Pair) -> None:
    """What prompts share is made anew with the image, and with an embedding that is put in by hand."""
    fresh, used = Predictor(nano.ours), Predictor(nano.ours)
    for name in IMAGES:
        used.set_image(IMAGES[name])
        used.predict(**PROMPTS["point"])
    fresh.set_image(IMAGES["tall"])
    assert np.array_equal(fresh.predict(**PROMPTS["point"])[2], used.predict(**PROMPTS["point"])[2])
    used.features = torch.zeros_like(used.get_image_embedding())
    assert not np.array_equal(fresh.predict(**PROMPTS["point"])[2], used.predict(**PROMPTS["point"])[2])


def test_embedding(predictors: tuple[SamPredictor, Predictor]) -> None:
    theirs, ours = (p.get_image_embedding() for p in predictors)
    assert (theirs - ours).abs().max() <= 1e-4 and ours.shape == (1, 128, SIZE // 16, SIZE // 16)


@pytest.mark.parametrize("name", IMAGES)
def test_bgr(name: str, nano: Pair) -> None:
    """A BGR image gives what the official one gives, which is what its RGB twin gives."""
    theirs, ours, twin = SamPredictor(nano.official), Predictor(nano.ours), Predictor(nano.ours)
    for predictor in (theirs, ours):
        predictor.set_image(IMAGES[name], image_format="BGR")
    twin.set_image(np.ascontiguousarray(IMAGES[name][..., ::-1]))
    assert (theirs.features - ours.get_image_embedding()).abs().max() <= 1e-4
    assert torch.equal(twin.get_image_embedding(), ours.get_image_embedding())
    same(theirs.predict(**PROMPTS["points"]), ours.predict(**PROMPTS["points"]))


@pytest.mark.parametrize("size", [(SIZE, SIZE // 2 + 44), (SIZE // 2 - 45, SIZE)])
def test_set_torch_image(size: tuple[int, int], nano: Pair) -> None:
    """An image that is already at input size, with another size to go back to."""
    pixels = torch.as_tensor(render(23, *size)).permute(2, 0, 1)[None].float()
    original = (size[0] // 2, size[1] // 2)
    theirs, ours = SamPredictor(nano.official), Predictor(nano.ours)
    for predictor in (theirs, ours):
        predictor.set_torch_image(pixels, original)
    same(theirs.predict(**PROMPTS["point"]), ours.predict(**PROMPTS["point"]))


def test_no_image(nano: Pair) -> None:
    """As in the official one: RuntimeError; reset_image forgets."""
    predictor = Predictor(nano.ours)
    with pytest.raises(RuntimeError, match="set_image"):
        predictor.predict(**PROMPTS["point"])
    predictor.set_image(IMAGES["tall"])
    predictor.reset_image()
    assert not predictor.is_image_set
    with pytest.raises(RuntimeError, match="set_image"):
        predictor.get_image_embedding()


def test_an_image_that_fails_leaves_none(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """No prompt may meet the image before."""
    pixels = torch.zeros(1, 3, SIZE, SIZE)
    for fails in (lambda p: p.set_image(IMAGES["wide"]), lambda p: p.set_torch_image(pixels, (SIZE, SIZE))):
        predictor = Predictor(nano.ours)
        predictor.set_image(IMAGES["tall"])
        with monkeypatch.context() as patch, pytest.raises(torch.cuda.OutOfMemoryError):
            patch.setattr(nano.ours.image_encoder, "embed", out_of_memory)
            fails(predictor)
        assert not predictor.is_image_set
        with pytest.raises(RuntimeError, match="set_image"):
            predictor.predict(**PROMPTS["point"])


def out_of_memory(pixels: torch.Tensor) -> torch.Tensor:
    raise torch.cuda.OutOfMemoryError


@pytest.mark.parametrize("size", [(240, 380), (333, 217), (SIZE, SIZE), (31, 1000)], ids=str)
def test_transform(size: tuple[int, int], nano: Pair) -> None:
    """`predictor.transform` is the official ResizeLongestSide; what it is given stays as it was."""
    theirs, ours = SamPredictor(nano.official).transform, Predictor(nano.ours).transform
    assert theirs.target_length == ours.target_length
    image = render(24, *size)
    assert np.array_equal(theirs.apply_image(image), ours.apply_image(image))
    boxes = np.random.default_rng(1).uniform(0, size[0], (5, 4))
    for given in (boxes, boxes.astype(int), boxes.astype(np.float32)):
        for name in ("apply_boxes", "apply_coords"):
            array = given if name == "apply_boxes" else given.reshape(5, 2, 2)
            a, b = (getattr(t, name)(array, size) for t in (theirs, ours))
            assert a.dtype == b.dtype and np.array_equal(a, b)
            tensor = torch.from_numpy(array)
            a, b = (getattr(t, f"{name}_torch")(tensor, size) for t in (theirs, ours))
            assert a.dtype == b.dtype and torch.equal(a, b) and torch.equal(tensor, torch.from_numpy(array))


def test_wrong_use_is_named(nano: Pair) -> None:
    predictor = Predictor(nano.ours)
    with pytest.raises(UserError, match="'HSV'"):
        predictor.set_image(IMAGES["tall"], image_format="HSV")
    with pytest.raises(UserError, match=f"long side {SIZE}"):
        predictor.set_torch_image(torch.zeros(1, 3, 100, 100), (100, 100))
    with pytest.raises(UserError, match="expected 1 x 3 x h x w"):
        predictor.set_torch_image(torch.zeros(1, 1, SIZE, SIZE), (100, 100))
    predictor.set_image(IMAGES["tall"])
    with pytest.raises(UserError, match="point_labels"):
        predictor.predict(point_coords=POINTS)
