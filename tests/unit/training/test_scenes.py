from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest

from maskmill.errors import UserError
from maskmill.training.photos import Photo, paste_scene, resized
from maskmill.training.scenes import SMALLEST, Canvas, Sample, SceneConfig, Textures, draw_scene
from maskmill.training.scenes.config import KINDS
from maskmill.training.scenes.draw import LAYOUTS
from maskmill.training.scenes.fields import make_bank
from maskmill.training.scenes.painter import Painter, Place
from maskmill.training.scenes.pieces import Piece
from maskmill.training.scenes.shapes import rectangle

SIDE = 128
SWITCHES = [f.name for f in fields(SceneConfig) if f.name not in KINDS]


def checker(size: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.integers(0, 255, (size, size, 3), dtype=np.uint8)


@cache
def textures() -> Textures:
    return Textures([checker(96)])


def only(kind: str) -> SceneConfig:
    return replace(SceneConfig(), **{k: float(k == kind) for k in KINDS})


@cache
def draw(kind: str, seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    if kind != "paste":
        return draw_scene(rng, only(kind), textures(), SIDE)
    mask = np.zeros((1, 80, 120), bool)
    mask[:, 20:60, 30:90] = True
    photo = Photo("a", checker(120)[:80], mask, np.array([True]))
    return paste_scene(rng, [photo], textures(), SIDE)


@pytest.mark.parametrize("kind", [*KINDS, "paste"])
def test_equal_seeds_give_equal_scenes_and_others_do_not(kind: str) -> None:
    one = draw(kind, 0)
    again = draw.__wrapped__(kind, 0)
    assert np.array_equal(one.image, again.image) and np.array_equal(one.masks, again.masks)
    assert not np.array_equal(one.image, draw(kind, 1).image)


@pytest.mark.parametrize("kind", [*KINDS, "paste"])
def test_masks_are_large_enough_and_parts_lie_inside_their_whole(kind: str) -> None:
    counts = []
    for seed in range(6):
        s = draw(kind, seed)
        assert s.image.shape == (SIDE, SIDE, 3) and s.image.dtype == np.uint8
        assert s.masks.shape[1:] == (SIDE, SIDE) and s.masks.dtype == np.bool_
        assert (s.masks.sum((1, 2)) >= SMALLEST).all()
        assert s.parents.shape == (len(s.masks),) and (s.parents < len(s.masks)).all()
        for mask, parent in zip(s.masks, s.parents, strict=True):
            if parent >= 0:
                assert not (mask & ~s.masks[parent]).any() and mask.sum() <= 0.9 * s.masks[parent].sum()
        # of two masks, one is inside the other or they share nothing: whatever hides a pixel owns it
        roots = s.masks[s.parents < 0]
        assert len(roots) == 0 or roots.sum(0).max() == 1
        counts.append(len(s.masks))
    assert max(counts) > 1


def test_parts_of_parts_occur() -> None:
    samples = [draw(kind, seed) for kind in KINDS for seed in range(6)]
    above = [int(s.parents[p]) for s in samples for p in s.parents if p >= 0]  # of each part, what its whole is part of
    assert len(above) > 20 and max(above) >= 0


def test_a_mask_is_exactly_what_later_things_leave_of_it() -> None:
    canvas = Canvas(np.zeros((40, 40, 3), np.float32))
    square = np.ones((20, 20), bool)
    back = canvas.claim((0, 20, 0, 20), square)
    part = np.zeros((20, 20), bool)
    part[5:15] = True
    inner = canvas.claim((0, 20, 0, 20), part, back)
    canvas.claim((5, 20, 0, 20), np.ones((15, 20), bool), inner)  # as large as what is left of the part: both go on
    canvas.claim((10, 30, 10, 30), square)
    s = canvas.finish(np.zeros((40, 40, 3), np.uint8))
    whole = np.zeros((40, 40), bool)
    whole[:20, :20] = True
    whole[10:, 10:] = False
    band = whole.copy()
    band[:5] = band[15:] = False
    assert np.array_equal(s.masks[0], whole) and np.array_equal(s.masks[1], band)
    assert s.masks[-1].sum() == 400 and s.parents.tolist() == [-1, 0, -1]


def test_masks_that_a_photograph_brings_lose_what_is_painted_over_them() -> None:
    base = np.zeros((2, 30, 30), bool)
    base[0, :20], base[1, 10:] = True, True
    canvas = Canvas(np.zeros((30, 30, 3), np.float32), base)
    canvas.claim((0, 30, 0, 10), np.ones((30, 10), bool))
    s = canvas.finish(np.zeros((30, 30, 3), np.uint8))
    assert s.masks.sum((1, 2)).tolist() == [300, 400, 400]


def test_a_painted_thing_has_the_pixels_of_its_outline_and_a_hole_shows_the_ground() -> None:
    plain = replace(SceneConfig(), shade=0, shadows=0, prints=0, camouflage=0, parts=1)
    p = Painter(np.random.default_rng(0), plain, textures(), 60)
    p.backdrop(np.zeros((60, 60, 3), np.float32))
    frame = [Piece((rectangle(-1, -1, 1, 1), rectangle(-0.5, -0.5, 0.5, 0.5))), Piece((rectangle(-1, -1, 1, -0.6),), 0)]
    p.put(frame, p.look(frame), Place((30.0, 30.0), 20.0))
    ground, whole, top = p.canvas.finish(np.zeros((60, 60, 3), np.uint8)).masks
    # OpenCV's anti-aliased filling counts the outline as inside: half a pixel all around, and into the hole
    assert whole.sum() == 41 * 41 - 19 * 19 and not whole[21:40, 21:40].any()
    assert top.sum() == 41 * 9 and not (top & ~whole).any()
    assert np.array_equal(ground, ~whole)
    inked = p.canvas.image.max(-1) > 0
    assert inked[whole].mean() > 0.97 and inked[30, 30] == np.False_


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_changes_what_is_drawn(name: str) -> None:
    kinds = dict.fromkeys(("crowd", "tiling", "cells"), 0.0)  # the four kinds that know every switch
    on = replace(SceneConfig(), **kinds, **{name: 1.0})
    off = replace(on, **{name: 0.0})

    def image(cfg: SceneConfig, seed: int) -> np.ndarray:
        return draw_scene(np.random.default_rng(seed), cfg, textures(), 96).image

    assert any(not np.array_equal(image(on, seed), image(off, seed)) for seed in range(6))


def test_without_parts_holes_and_stuff_nothing_is_nested() -> None:
    cfg = replace(only("pile"), parts=0, stuff=0)
    samples = [draw_scene(np.random.default_rng(i), cfg, textures(), 96) for i in range(4)]
    assert all((s.parents < 0).all() for s in samples) and max(len(s.masks) for s in samples) > 3


def test_kinds_have_layouts_and_a_share_of_zero_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    for kind in KINDS:
        monkeypatch.setitem(LAYOUTS, kind, lambda p, kind=kind: drawn.append(kind))
    cfg = replace(SceneConfig(), room=0.0, cells=0.0)
    for seed in range(200):
        draw_scene(np.random.default_rng(seed), cfg, textures(), 8)
    assert set(drawn) == set(KINDS) - {"room", "cells"}


@pytest.mark.parametrize(("wrong", "words"), [({"noise": 1.5}, "scenes.noise=1.5"), (dict.fromkeys(KINDS, 0), "kind")])
def test_a_wrong_share_is_named(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SceneConfig(**wrong)


def test_noise_has_the_spectrum_of_its_exponent() -> None:
    """The first 16 fields: power falls as 1/f^beta, beta from 0.6 to 4.2."""
    for beta, field in zip(np.linspace(0.6, 4.2, 16), make_bank(1)[:16], strict=True):
        power = np.abs(np.fft.rfft2(field)) ** 2
        f = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None])
        ring = (f > 4 / 256) & (f < 0.4)
        slope = np.polyfit(np.log(f[ring]), np.log(power[ring]), 1)[0]
        assert abs(slope + beta) < 0.1


def test_resized_keeps_the_aspect_and_the_place_of_the_mask() -> None:
    mask = np.zeros((1, 80, 120), bool)
    mask[:, 20:60, 30:90] = True
    small = resized(Photo("a", checker(120)[:80], mask, np.array([True])), 60)
    assert small.image.shape == (40, 60, 3)
    assert np.array_equal(np.argwhere(small.masks[0])[[0, -1]], [[10, 15], [29, 44]])
