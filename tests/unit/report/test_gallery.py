"""Which masks are picked, and what their pictures show."""

import base64
import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskmill.masks.rle import encode
from maskmill.report import gallery
from maskmill.report.detail import Detail, look
from maskmill.report.stats import Masks


def detail(shapes: list[np.ndarray], images: list[int] | None = None, iou: list[float] | None = None) -> Detail:
    n, (height, width) = len(shapes), shapes[0].shape
    boxes = []
    for mask in shapes:
        ys, xs = np.nonzero(mask)
        boxes.append([xs.min(), ys.min(), xs.max() - xs.min(), ys.max() - ys.min()])
    masks = Masks(
        image_id=np.array(images or [1] * n, np.int64),
        mask_id=np.arange(n, dtype=np.int64) * 3,
        height=np.full(n, height, np.int32),
        width=np.full(n, width, np.int32),
        area=np.array([m.sum() for m in shapes], np.int32),
        box=np.array(boxes, np.float32),
        predicted_iou=np.array(iou or [np.nan] * n, np.float32),
        stability_score=np.full(n, np.nan, np.float32),
        layer=np.zeros(n, np.int32),
    )
    return look(masks, [encode(m) for m in shapes], np.random.default_rng(0))


def block(y: int, x: int, h: int, w: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y : y + h, x : x + w] = True
    return mask


def test_suspects_are_found_and_nothing_else() -> None:
    ring = block(10, 10, 20, 20)
    ring[14:26, 14:26] = False
    shapes = [block(0, 0, 60, 79), block(50, 70, 3, 3), ring, block(30, 40, 20, 30), block(30, 40, 20, 29)]
    found = detail(shapes)
    groups = {g.title: g for g in gallery.suspects(found.masks, found, found)}
    ids = {title: [p.mask_ids for p in g.picks] for title, g in groups.items()}
    assert ids == {"Huge": [(0,)], "Tiny": [(3,)], "Holed": [(6,)], "Near-duplicates": [(9, 12)]}
    assert groups["Holed"].picks[0].words.startswith("36% hole")
    assert gallery.extreme_rows(found.masks).tolist() == [0, 1]


def test_strata_cover_every_mask_once_by_size_and_by_score() -> None:
    rng = np.random.default_rng(2)
    shapes = [block(0, 0, int(rng.integers(1, 60)), int(rng.integers(1, 80))) for _ in range(40)]
    groups = list(gallery.strata(detail(shapes, iou=rng.random(40).tolist()), rng))
    for title in ("By size", "By score"):
        assert sum(g.found for g in groups if g.title == title) == 40
    assert all(len(g.picks) == min(gallery.EACH, g.found) for g in groups)


def test_different_images_come_first() -> None:
    shapes = [block(5, 5, 20, 20)] * 12
    found = detail(shapes, images=[1] * 6 + [2, 3, 4, 5, 6, 7])
    group = gallery.some(found, np.arange(12), "t", "a", np.random.default_rng(0))
    assert len({p.image_id for p in group.picks}) == gallery.EACH


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))).astype(int)


def test_a_picture_darkens_what_is_outside() -> None:
    found = detail([block(20, 30, 15, 20)])
    shown = pixels(gallery.draw(gallery.one(found, 0), np.full((60, 80, 3), 200, np.uint8)))
    height, width = shown.shape[:2]
    assert abs(int(shown[height // 2, width // 2].mean()) - 200) < 6  # the mask's middle: as it is
    assert shown[2, 2].mean() < 140
    grey = pixels(gallery.draw(gallery.one(found, 0), None))
    assert abs(int(grey[height // 2, width // 2].mean()) - 128) < 6


@given(
    st.integers(1, 400), st.integers(1, 400), st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 1), st.floats(0.001, 1)
)
@settings(deadline=None)
def test_the_window_holds_the_mask_inside_the_image(
    height: int, width: int, top: float, left: float, tall: float, wide: float
) -> None:
    h, w = max(1, int(height * tall)), max(1, int(width * wide))
    y, x = int((height - h) * top), int((width - w) * left)
    x0, y0, x1, y1 = gallery.window(block(y, x, h, w, (height, width)))
    assert 0 <= x0 <= x and x + w <= x1 <= width
    assert 0 <= y0 <= y and y + h <= y1 <= height
