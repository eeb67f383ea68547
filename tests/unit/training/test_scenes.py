import numpy as np
import pytest

from maskmill.training.photos import Photo, paste_scene, resized
from maskmill.training.scenes import SMALLEST, Sample, Textures, crowd_scene, layered_scene, split


def checker(size: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.integers(0, 255, (size, size, 3), dtype=np.uint8)


def draw(kind: str, seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    textures = Textures([checker(64)])
    if kind == "layered":
        return layered_scene(rng, textures, 96)
    if kind == "crowd":
        return crowd_scene(rng, textures, 96)
    mask = np.zeros((1, 80, 120), bool)
    mask[:, 20:60, 30:90] = True
    photo = Photo("a", checker(120)[:80], mask, np.array([True]))
    return paste_scene(rng, [photo], textures, 96)


@pytest.mark.parametrize("kind", ["layered", "crowd", "paste"])
def test_scenes_have_large_enough_exact_masks_and_repeat_by_seed(kind: str) -> None:
    for seed in range(4):
        sample, again = draw(kind, seed), draw(kind, seed)
        assert sample.image.shape == (96, 96, 3) and sample.image.dtype == np.uint8
        assert sample.masks.shape[1:] == (96, 96) and sample.masks.dtype == np.bool_
        assert (sample.masks.sum((1, 2)) >= SMALLEST).all()
        assert np.array_equal(sample.image, again.image) and np.array_equal(sample.masks, again.masks)


def test_crowd_masks_do_not_overlap() -> None:
    samples = [draw("crowd", seed) for seed in range(6)]
    assert max(len(s.masks) for s in samples) > 5
    assert all(s.masks.sum(0).max() == 1 for s in samples if len(s.masks))


def test_parts_lie_inside_their_whole() -> None:
    whole = np.zeros((96, 96), bool)
    whole[10:80, 20:70] = True
    for seed in range(10):
        for part in split(np.random.default_rng(seed), whole):
            assert not (part & ~whole).any()


def test_resized_keeps_the_aspect_and_the_place_of_the_mask() -> None:
    mask = np.zeros((1, 80, 120), bool)
    mask[:, 20:60, 30:90] = True
    small = resized(Photo("a", checker(120)[:80], mask, np.array([True])), 60)
    assert small.image.shape == (40, 60, 3)
    assert np.array_equal(np.argwhere(small.masks[0])[[0, -1]], [[10, 15], [29, 44]])
