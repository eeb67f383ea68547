import importlib.util
import logging
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.sam import resize as module
from maskmill.sam.resize import _compiled, _covered, by_pillow, resize

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    _compiled.cache_clear()
    yield
    _compiled.cache_clear()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def by_loops(image: np.ndarray, height: int, width: int) -> np.ndarray:
    loops = _compiled()
    assert loops is not None and _covered(image, height, width)
    return loops(image, height, width)


def equal(image: np.ndarray, height: int, width: int) -> bool:
    made, want = by_loops(image, height, width), by_pillow(image, height, width)
    return made.shape == want.shape and made.dtype == want.dtype and bool((made == want).all())


@pytest.mark.parametrize(
    "size", [(1500, 2250), (480, 640), (1023, 1025), (1, 3000), (1, 1), (129, 4000), (1500, 1500), (64, 64), (700, 400)]
)
def test_as_sam_scales(size: tuple[int, int]) -> None:
    for side in (64, 1024):
        scale = side / max(size)
        out = [max(1, int(x * scale + 0.5)) for x in size]
        assert equal(noise(*size), *out)


# Small and prime sizes, and those around the 64 rows and 256 columns that are worked on together
SIDES = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 128, 129, 255, 256, 257, 509, 1031]))


@settings(max_examples=300, deadline=None)
@given(h=SIDES, w=SIDES, height=SIDES, width=SIDES, extremes=st.booleans(), seed=st.integers(0, 9))
def test_any_size(h: int, w: int, height: int, width: int, extremes: bool, seed: int) -> None:
    image = noise(h, w, seed)
    if extremes:
        image = (image >> 7) * np.uint8(255)
    np.testing.assert_array_equal(resize(image, height, width), by_pillow(image, height, width))
    if _covered(image, height, width):
        assert equal(image, height, width)


def test_flat_images_stay_flat() -> None:
    for value in (0, 1, 128, 254, 255):
        made = by_loops(np.full((300, 500, 3), value, np.uint8), 77, 128)
        assert (made == value).all()


def test_channels_are_kept_apart() -> None:
    image = noise(200, 300)
    image[..., 1] = 0
    made = by_loops(image, 80, 120)
    assert (made[..., 1] == 0).all() and made[..., 0].any() and made[..., 2].any()


def test_views_and_read_only_arrays() -> None:
    whole = noise(400, 600)
    for view in (whole[37:351, 5:590], whole[::-1, ::2], whole.swapaxes(0, 1)[:300, :300], whole[..., ::-1]):
        view.flags.writeable = False
        before = view.copy()
        assert equal(view, 50, 90)
        assert (view == before).all()


def test_the_same_size_is_a_copy() -> None:
    image = noise(20, 30)
    made = resize(image, 20, 30)
    assert (made == image).all() and not np.shares_memory(made, image) and made.flags.writeable


def test_tall_images_are_pillows() -> None:
    """From Pillow 13 on its passes change places there: its own order is always right."""
    for h, w in ((2000, 300), (1025, 1), (9000, 3000)):
        image = noise(h, w)
        height, width = 1024, max(1, round(w * 1024 / h))
        assert not _covered(image, height, width)
        np.testing.assert_array_equal(resize(image, height, width), by_pillow(image, height, width))
    assert _covered(noise(900, 600), 1024, 683) and _covered(noise(1600, 1200), 1024, 768)


def test_without_numba_pillow_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(300, 400)
    made = resize(image, 48, 64)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _compiled.cache_clear()
    assert _compiled() is None
    np.testing.assert_array_equal(resize(image, 48, 64), made)


def test_another_pillow_is_noticed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def other(image: np.ndarray, height: int, width: int) -> np.ndarray:
        return by_pillow(image, height, width) ^ np.uint8(1)

    monkeypatch.setattr(module, "by_pillow", other)
    image = noise(300, 400)
    with caplog.at_level(logging.WARNING):
        assert (resize(image, 48, 64) == other(image, 48, 64)).all()
        resize(image, 24, 32)
    assert len(caplog.records) == 1 and "Pillow" in caplog.text


def test_threads_agree() -> None:
    image = noise(900, 1200)
    want, made = by_pillow(image, 384, 512), []
    threads = [threading.Thread(target=lambda: made.append(resize(image, 384, 512))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4 and all((x == want).all() for x in made)
