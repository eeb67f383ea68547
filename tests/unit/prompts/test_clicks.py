import numpy as np
import pytest

from maskmill.prompts.clicks import deepest, extent, largest_part, moved, next_click, noised_box, random_point

RNG = np.random.default_rng


def rect(x0: int, y0: int, x1: int, y1: int, shape: tuple[int, int] = (20, 30)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def brute_deepest(mask: np.ndarray) -> tuple[tuple[int, int], float]:
    padded = np.pad(mask, 1)
    outside = np.argwhere(~padded) - 1
    depth = {(y, x): np.hypot(*(outside - [y, x]).T).min() for y, x in np.argwhere(mask)}
    y, x = max(depth, key=lambda p: (round(depth[p], 4), -p[0], -p[1]))
    return (int(x), int(y)), float(depth[y, x])


def test_the_deepest_point_of_simple_shapes() -> None:
    assert deepest(rect(4, 6, 8, 12)) == ((6, 8), 3.0)  # 5 wide: rows 8 to 10 are equal, the first counts
    assert deepest(rect(0, 0, 4, 4)) == ((2, 2), 3.0)  # the border of the image is a boundary
    assert deepest(rect(7, 3, 7, 3)) == ((7, 3), 1.0)
    ring = rect(2, 2, 18, 18)
    ring[6:15, 6:15] = False
    assert deepest(ring)[0] == (4, 4)  # never in the hole


def test_the_deepest_point_is_the_brute_force_one() -> None:
    rng = RNG(0)
    for _ in range(20):
        mask = rng.random((9, 13)) < 0.8
        point, depth = deepest(mask)
        want_point, want = brute_deepest(mask)
        assert depth == pytest.approx(want, abs=1e-4) and point == want_point


def test_of_points_equally_deep_it_is_always_the_first() -> None:
    rng = RNG(1)
    y, x = np.mgrid[:40, :40]
    for _ in range(60):  # mirrored at the diagonal: what is deepest has a twin, whose float distance may differ
        a, b, r, s = rng.integers(8, 32, 4)
        half = np.hypot(x - a, y - b) < 4 + r % 7
        mask = half | half.T | (np.hypot(x - s, y - s) < 3)
        outside = np.argwhere(~np.pad(mask, 1)) - 1
        inside = np.argwhere(mask)
        squares = np.square(inside[:, None] - outside[None]).sum(2).min(1)  # whole numbers, in reading order
        want = inside[int(squares.argmax())]
        assert deepest(mask)[0] == (int(want[1]), int(want[0]))


def test_an_empty_mask_has_no_point() -> None:
    for give in (lambda m: deepest(m), lambda m: random_point(m, RNG(0)), extent):
        with pytest.raises(ValueError, match="empty"):
            give(np.zeros((4, 4), bool))


def test_random_points_cover_the_mask_evenly() -> None:
    mask = rect(2, 3, 3, 4)
    rng = RNG(1)
    seen = [random_point(mask, rng) for _ in range(4000)]
    assert {*seen} == {(2, 3), (3, 3), (2, 4), (3, 4)}
    assert all(abs(seen.count(p) - 1000) < 120 for p in {*seen})


def test_the_next_click_mends_the_deepest_error() -> None:
    target = rect(5, 5, 14, 14)
    missed = target & ~rect(10, 5, 14, 14)  # 5 x 10 missed on the right: depth 3
    assert next_click(target, missed, "deepest", RNG(0)) == ((12, 7), 1)
    surplus = target | rect(15, 5, 23, 13)  # 9 x 9 too much: depth 5
    assert next_click(target, surplus, "deepest", RNG(0)) == ((19, 9), 0)
    both = missed | rect(15, 5, 23, 13)
    assert next_click(target, both, "deepest", RNG(0)) == ((19, 9), 0)
    assert next_click(target, target.copy(), "deepest", RNG(0)) is None


def test_missed_and_surplus_pixels_do_not_make_one_region() -> None:
    target, answer = rect(0, 5, 9, 9), rect(10, 5, 19, 9)  # side by side: both wrong, 20 x 5 together
    (x, y), label = next_click(target, answer, "deepest", RNG(0)) or ((0, 0), 2)
    assert ((x, y), label) == ((2, 7), 1)


def test_largest_goes_by_area_and_deepest_by_depth() -> None:
    target = rect(0, 0, 29, 2) | rect(2, 8, 8, 14)  # 30 x 3 = 90 px of depth 2; 7 x 7 = 49 px of depth 4
    nothing = np.zeros_like(target)
    assert next_click(target, nothing, "deepest", RNG(0)) == ((5, 11), 1)
    assert next_click(target, nothing, "largest", RNG(0)) == ((1, 1), 1)
    assert largest_part(target).sum() == 90


def test_random_errors_have_the_label_of_their_place() -> None:
    target, answer = rect(5, 5, 14, 14), rect(8, 5, 17, 14)
    rng = RNG(2)
    for _ in range(50):
        (x, y), label = next_click(target, answer, "random", rng) or ((0, 0), 2)
        assert (target ^ answer)[y, x] and label == int(target[y, x])


def test_box_noise_has_the_papers_deviation_and_limit() -> None:
    boxes = np.tile([100.0, 200.0, 180.0, 240.0], (20000, 1))
    drawn = noised_box(boxes, (1024, 1024), RNG(0)) - boxes
    assert np.allclose(drawn.std(0), [8, 4, 8, 4], rtol=0.03) and abs(drawn.mean()) < 0.1
    large = np.tile([100.0, 100.0, 900.0, 150.0], (20000, 1))
    off = noised_box(large, (1024, 1024), RNG(0)) - large
    assert np.abs(off[:, [0, 2]]).max() == 20 and (np.abs(off[:, 0]) == 20).mean() > 0.7  # a deviation of 80
    assert np.allclose(off[:, 1].std(), 5, rtol=0.03)


def test_boxes_and_clicks_stay_in_the_image() -> None:
    rng = RNG(0)
    drawn = noised_box(np.tile([0.0, 0.0, 29.0, 19.0], (500, 1)), (20, 30), rng)
    assert drawn.min() >= 0 and drawn[:, 2].max() <= 29 and drawn[:, 3].max() <= 19
    assert (drawn[:, 2:] >= drawn[:, :2]).all()
    clicks = np.array([moved((1, 1), 5.0, (20, 30), rng) for _ in range(500)])
    assert clicks.min() == 0 and clicks[:, 0].max() <= 29 and clicks[:, 1].max() <= 19
