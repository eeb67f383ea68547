"""Boxes, crop edges and NMS against the official code and torchvision's algorithm."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskmill.masks.boxes import nms, xyxy_to_xywh
from maskmill.masks.tensors import mask_to_box, near_crop_edge
from tests.parity.official import amg
from tests.parity.official import nms as official_nms


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 12))))
def test_mask_to_box_is_official(masks: np.ndarray) -> None:
    ours, theirs = (f(torch.from_numpy(masks)) for f in (mask_to_box, amg.batched_mask_to_box))
    assert ours.dtype == torch.int64 and torch.equal(ours, theirs)


def test_corners_are_inclusive() -> None:
    """Quirk (1.3.3d): a full mask's box ends at w - 1, h - 1; a single pixel's box is flat."""
    masks = torch.zeros(2, 5, 7, dtype=torch.bool)
    masks[0] = masks[1, 2, 3] = True
    assert mask_to_box(masks).tolist() == [[0, 0, 6, 4], [3, 2, 3, 2]]


def test_empty_mask_has_box_zero() -> None:
    """Quirk (1.3.3d): an empty mask has the box 0, 0, 0, 0."""
    assert mask_to_box(torch.zeros(1, 5, 7, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]]


def test_no_masks_keep_the_integer_type() -> None:
    """Quirk (1.3.3d): the official empty batch has float boxes, so an image's bbox may be float; ours never is."""
    none = torch.zeros(0, 5, 7, dtype=torch.bool)
    assert amg.batched_mask_to_box(none).dtype == torch.float32
    assert mask_to_box(none).dtype == torch.int64 and mask_to_box(none).shape == (0, 4)


def test_sa1b_box_is_one_less_than_cocos() -> None:
    """Quirk (1.5): w = xmax - xmin, h = ymax - ymin."""
    assert xyxy_to_xywh(np.array([[2, 3, 2, 10]])).tolist() == [[2, 3, 0, 7]]


coordinates = st.integers(0, 200)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(*[coordinates] * 4), min_size=1, max_size=8), st.tuples(*[st.integers(0, 120)] * 4))
def test_near_crop_edge_is_official(boxes: list[tuple[int, int, int, int]], crop: tuple[int, int, int, int]) -> None:
    """Ours takes boxes in the image frame, the official in the crop's."""
    x0, y0, w, h = crop
    box = (x0, y0, x0 + w + 1, y0 + h + 1)
    in_crop = torch.tensor(boxes)
    theirs = amg.is_box_near_crop_edge(in_crop, list(box), [0, 0, 220, 180])
    ours = near_crop_edge(in_crop + torch.tensor([x0, y0, x0, y0]), box, height=180, width=220, tolerance=20.0)
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize(
    ("box", "dropped"),
    [
        ((71, 30, 90, 60), False),  # 21 px from the crop's left edge
        ((70, 30, 90, 60), True),  # 20 px: at the tolerance counts as near
        ((15, 30, 60, 60), False),  # near the crop's left edge only if the image's edge is not near too
        ((75, 60, 120, 175), False),  # the crop's bottom edge is the image's
    ],
)
def test_crop_edge_rule(box: tuple[int, int, int, int], dropped: bool) -> None:
    """Quirk (1.3.3e): within 20 px, inclusive, of an inner crop edge, unless also within 20 px of the image's edge."""
    crop = (50, 0, 200, 180) if box[0] != 15 else (10, 0, 200, 180)
    assert near_crop_edge(torch.tensor([box]), crop, height=180, width=300, tolerance=20.0).tolist() == [dropped]


whole_boxes = hnp.arrays(np.int64, st.tuples(st.integers(0, 25), st.just(4)), elements=st.integers(0, 14))


@settings(max_examples=300, deadline=None)
@given(st.data(), whole_boxes, st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_nms_is_torchvisions(data: st.DataObject, boxes: np.ndarray, threshold: float) -> None:
    """Few distinct scores, so many ties; small boxes, so many flat ones."""
    boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    scores = data.draw(hnp.arrays(np.float32, len(boxes), elements=st.sampled_from([0.25, 0.5, 0.75])))
    theirs = official_nms(torch.from_numpy(boxes).float(), torch.from_numpy(scores), threshold)
    assert nms(boxes, scores, threshold).tolist() == theirs.tolist()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_nms_of_large_boxes(seed: int) -> None:
    """Areas beyond 2**24, where float32 rounds, and scores one last bit apart."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 3000, (60, 2))
    boxes = np.concatenate([start, start + rng.integers(1, 9000, (60, 2))], axis=1)
    scores = np.float32(1) + rng.integers(0, 4, 60).astype(np.float32) * np.finfo(np.float32).eps
    theirs = official_nms(torch.from_numpy(boxes).float(), torch.from_numpy(scores), 0.7)
    assert nms(boxes, scores, 0.7).tolist() == theirs.tolist()


def test_flat_boxes_do_not_suppress() -> None:
    """Quirk (1.3.5): boxes one pixel wide have area 0; 0 / 0 is NaN, which is not above any threshold."""
    flat = np.array([[5, 0, 5, 9], [5, 0, 5, 9], [3, 3, 3, 3], [3, 3, 3, 3]])
    assert nms(flat, np.array([1.0, 0.9, 0.8, 0.7]), 0.0).tolist() == [0, 1, 2, 3]


def test_iou_at_the_threshold_stays() -> None:
    """Quirk (1.3.5): only an IoU strictly above the threshold suppresses."""
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2]])  # IoU exactly 0.5
    scores = np.array([1.0, 0.5])
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, 0.49).tolist() == [0]


def test_threshold_is_compared_in_float64() -> None:
    """Quirk (1.3.5): torchvision's CPU kernel compares the float32 IoU with the double threshold: 0.7f < 0.7."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 7]])  # IoU float32(0.7) = 0.69999999
    assert nms(boxes, np.array([1.0, 0.5]), 0.7).tolist() == [0, 1]
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 6]])  # IoU float32(0.6) = 0.60000002 > 0.6
    assert nms(boxes, np.array([1.0, 0.5]), 0.6).tolist() == [0]


def test_ties_keep_arrival_order_however_many() -> None:
    """Quirk (1.3.6): above 4000 numbers torchvision sorts again without stability; ours always keeps the order."""
    n = 1500
    boxes = np.stack([np.arange(n) * 10, np.zeros(n, int), np.arange(n) * 10 + 5, np.full(n, 5)], axis=1)
    assert nms(boxes, np.full(n, 0.5), 0.7).tolist() == list(range(n))


def test_no_boxes() -> None:
    assert nms(np.zeros((0, 4), np.int64), np.zeros(0), 0.7).tolist() == []
