import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskmill.config import from_tree
from maskmill.errors import UserError
from maskmill.masks.rle import encode
from maskmill.storage.annotated import open_annotated
from maskmill.training.augment import resized, resized_mask, symmetry, tile, window
from maskmill.training.config import DataConfig, TrainConfig
from maskmill.training.data import Broken, Example, Samples, usable
from maskmill.training.losses import target_grid
from tests.pipeline.rounds.runs import make_build
from tests.unit.training.sets import annotation, scene, write_set


def samples(folder: Path, **data: object) -> Samples:
    tree = {"data": {"sources": [{"path": str(folder)}], **data}}
    return Samples(from_tree(TrainConfig, tree), 64)


def good(found: Example | Broken) -> Example:
    assert isinstance(found, Example), found
    return found


def test_a_sample_depends_on_its_number_alone(tmp_path: Path) -> None:
    one, two = (samples(write_set(tmp_path / "set", 4), symmetry="square", masks_per_image=2) for _ in range(2))
    numbers = [7, 0, 3, 7, 11]
    for a, b in zip([good(one[n]) for n in numbers], [good(two[n]) for n in reversed(numbers)][::-1], strict=True):
        assert a.name == b.name and torch.equal(a.pixels, b.pixels) and torch.equal(a.masks, b.masks)
    for epoch in range(3):
        assert {good(one[4 * epoch + i]).name for i in range(4)} == {f"sa_{i}.png" for i in range(4)}


@pytest.mark.parametrize("kind", ["folder", "tar", "build"])
def test_a_copy_in_another_process_gives_the_same_samples(tmp_path: Path, kind: str) -> None:
    """Where processes are not forked they get a pickled copy."""
    source = write_set(tmp_path / "set", 2) if kind != "build" else make_build(tmp_path / "set", [])
    if kind == "tar":
        with tarfile.open(source.with_suffix(".tar"), "w") as tar:
            for file in sorted(source.iterdir()):
                tar.add(file, file.name)
        source = source.with_suffix(".tar")
    mine = samples(source)
    first = good(mine[0])
    copy = pickle.loads(pickle.dumps(mine))
    for n in range(4):
        assert torch.equal(good(copy[n]).masks, good(mine[n]).masks) and good(copy[n]).name == good(mine[n]).name
    assert len(first.masks)


def test_colour_jitter_changes_colours_alone(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", 3)
    plain, coloured = (samples(folder, symmetry="square", colour_jitter=c) for c in (False, True))
    grounds = set()
    for n in range(20):
        one, two = good(plain[n]), good(coloured[n])
        assert one.name == two.name and torch.equal(one.masks, two.masks)
        assert two.pixels.dtype == torch.uint8 and not torch.equal(one.pixels, two.pixels)
        assert torch.equal(two.pixels, good(coloured[n]).pixels)
        ground = ~two.masks.any(0)
        grounds.add(int(two.pixels[:, ground].float().mean()))
    assert max(grounds) - min(grounds) > 20  # the ground is drawn at 90 to 102


@pytest.mark.parametrize("how", [{"jitter": [0.5, 2.0]}, {"jitter": [0.4, 0.49], "tile": True}])
def test_masks_lie_on_their_objects_after_all_that_is_done_to_them(tmp_path: Path, how: dict[str, object]) -> None:
    made = samples(write_set(tmp_path / "set", 3), symmetry="square", **how)
    seen = 0
    for n in range(30):
        example = good(made[n])
        assert example.pixels.shape[1:] == example.masks.shape[1:] and max(example.masks.shape[1:]) <= 64
        for mask in example.masks:
            inner = torch.nn.functional.avg_pool2d(mask[None].float(), 3, 1, 1, count_include_pad=False)[0] == 1
            colours = example.pixels[:, inner].float()
            if colours.shape[1]:
                seen += 1
                assert (colours.max(0).values - colours.min(0).values).mean() > 100  # the ground is grey
    assert seen > 40


def test_sources_are_repeated_and_limited(tmp_path: Path) -> None:
    write_set(tmp_path / "a", 3)
    write_set(tmp_path / "b", 4)
    sources = [{"path": str(tmp_path / "a"), "repeat": 10}, {"path": str(tmp_path / "b"), "limit": 2}]
    made = samples(tmp_path, sources=sources)
    assert len(made.entries) == 32 and made.entries.count((0, 1)) == 10 and made.entries.count((1, 1)) == 1


def test_masks_over_ninety_percent_are_left_out(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", 1)
    image, _ = scene(0)
    masks = [np.zeros(image.shape[:2], bool) for _ in range(4)]
    masks[0][:54], masks[1][:55], masks[2][:1, :1] = True, True, True  # 90%, more, one pixel, nothing
    records = [annotation(m, i) for i, m in enumerate(masks)]
    (folder / "sa_0.json").write_text(json.dumps({"annotations": records}))
    found = open_annotated(str(folder)).read(0)
    assert usable(found, DataConfig()) == [encode(masks[0]), encode(masks[2])]
    example = good(samples(folder)[0])
    assert len(example.masks) == 1  # a pixel leaves no cell of the grid
    assert (target_grid(example.masks, 4) > 0.5).any()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", 1)
    records = [annotation(np.ones((9, 9), bool), 5)]
    (folder / "sa_0.json").write_text(json.dumps({"annotations": records}))
    found = samples(folder)[0]
    assert isinstance(found, Broken) and "sa_0.png" in found.words and "annotation 5" in found.words
    assert "9x9" in found.words and "80x60" in found.words and "\n" not in found.words


def test_no_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data"):
        samples(tmp_path, sources=[])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        samples(tmp_path / "empty")


def test_coco_json_is_read_without_its_crowds(tmp_path: Path) -> None:
    image, masks = scene(1)
    Image.fromarray(image).save(tmp_path / "a.png")
    records = [
        annotation(m, i + 1) | {"image_id": 1, "category_id": 1, "iscrowd": int(i == 2)} for i, m in enumerate(masks)
    ]
    tree = {
        "images": [{"id": 1, "file_name": "a.png", "width": 80, "height": 60}],
        "annotations": records,
        "categories": [{"id": 1, "name": "box"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(tree))
    found = open_annotated(str(tmp_path / "instances.json")).read(0)
    assert found.ids == (1, 2) and np.array_equal(found.masks, np.stack(masks[:2]))
    assert np.array_equal(found.image, image)


def test_jitter_by_hand() -> None:
    rng = np.random.default_rng(0)
    assert window(60, 80, 64, 0.5, rng) == ((24, 32), (0, 0))
    (h, w), (top, left) = window(60, 80, 64, 2.0, rng)
    assert (h, w) == (96, 128) and 0 <= top <= 32 and 0 <= left <= 64
    corners = {window(60, 80, 64, 2.0, rng)[1] for _ in range(200)}
    assert len({c[0] for c in corners}) > 25
    image, (mask, *_) = scene(0)
    assert resized(image, (96, 128), (top, left), 64).shape == (64, 64, 3)
    assert resized_mask(mask, (96, 128), (top, left), 64).shape == (64, 64)
    assert np.array_equal(resized_mask(mask, (60, 80), (0, 0), 80), mask)


def test_tiles_by_hand() -> None:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    masks = np.zeros((60, 4, 6), bool)
    masks[:30, 1:3, 2:5] = masks[30:, 0, 0] = True
    tops, places = set(), set()
    for seed in range(40):
        full, spread = tile(image, masks, 16, np.random.default_rng(seed))
        top, left = (int(n[0]) for n in np.nonzero((full == image[0, 0]).all(-1)))
        rows, columns = (np.arange(16) - top) % 4, (np.arange(16) - left) % 6
        assert np.array_equal(full, image[rows][:, columns])
        tops.add((top, left))
        for mask, small in zip(masks, spread, strict=True):
            y, x = np.nonzero(small)
            places.add((int(y[0]), int(x[0])))
            assert y.size and np.ptp(y) < 4 and np.ptp(x) < 6  # one copy alone
            assert mask[rows[y], columns[x]].all()
            whole = min(y.min(), x.min()) > 0 and max(y.max(), x.max()) < 15  # nothing of it is outside
            assert y.size == mask.sum() or not whole
    assert len(tops) > 15 and len(places) > 150


def test_an_image_that_is_tiled_fills_the_input_and_a_larger_one_stays(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", 3)
    filled, alone = (samples(folder, jitter=[0.3, 0.9], tile=t) for t in (True, False))
    sizes = set()
    for n in range(20):
        one, two = good(filled[n]), good(alone[n])
        small = max(two.pixels.shape[1:]) < 32
        assert one.pixels.shape == ((3, 64, 64) if small else two.pixels.shape)
        assert small or torch.equal(one.pixels, two.pixels)
        sizes.add(small)
    assert sizes == {True, False}


def test_the_eight_symmetries() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    masks = (image[None, ..., 0] > 6).copy()
    rng = np.random.default_rng(0)
    for kind, count in (("none", 1), ("mirror", 2), ("square", 8)):
        got = [symmetry(image, masks, kind, rng) for _ in range(200)]
        assert len({(i.shape, i.tobytes()) for i, _ in got}) == count
        assert all(np.array_equal(m[0], i[..., 0] > 6) for i, m in got)
