"""`maskmill diff`: sums that add up to the stored masks, the words, and the picture."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill.config import FilterConfig
from maskmill.pipeline.filtering.diff import chosen, diff, thresholds
from maskmill.storage.build import Build
from tests.chaos.builds import images
from tests.pipeline.filter_builds import CROPS, STRICT, blob_build, refilter, rows
from tests.pipeline.test_cli import complaint, run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Twelve images with crops; the filter `strict` is there, LAX is not."""
    base = tmp_path_factory.mktemp("diff")
    build = blob_build(images(base / "in", 12), base / "b", CROPS)
    assert refilter(build, "strict", STRICT) == 0
    return build


LAX = FilterConfig(0.3, 0.6, box_nms_thresh=0.9, crop_nms_thresh=0.9, shared_pixels="best")


def ids(build: Build, name: str) -> set[tuple[int, int]]:
    table = rows(build, name)
    return set(zip(table["image_id"].to_pylist(), table["mask_id"].to_pylist(), strict=True))


def test_sums_are_those_of_the_stored_masks(made: Build) -> None:
    default = FilterConfig(0.4, 0.7)
    tally = diff(made, default, STRICT, most=0, examples=3, quiet=True)
    a, b = ids(made, "default"), ids(made, "strict")
    assert tally.images == 12 and tally.masks == [len(a), len(b)]
    assert tally.went.total() == len(a - b) > 0 and tally.came.total() == len(b - a)
    assert tally.sizes.sum(axis=1).tolist() == [len(a), len(b), len(a - b), len(b - a)]
    assert {"pred_iou_thresh", "stability_score_thresh"} <= set(tally.went)
    candidates = made.candidates()
    iou = candidates["predicted_iou"].to_numpy()
    level = thresholds(made)[0]
    assert level[0] == 0.25 and level[-1] == 1
    assert tally.passed[0].tolist() == [int((iou > np.float32(t)).sum()) for t in level]
    assert [e[0] for e in sorted(tally.examples)] == sorted(e[0] for e in tally.examples) and len(tally.examples) == 3


def test_the_words_and_the_picture(made: Build, tmp_path: Path) -> None:
    picture = tmp_path / "p.jpg"
    (tmp_path / "lax.yaml").write_text("pred_iou_thresh: 0.3\nstability_score_thresh: 0.6\nshared_pixels: best\n")
    done = run("diff", made.path, "default", "strict", "--picture", picture)
    assert done.exit_code == 0, done.output
    a, b = ids(made, "default"), ids(made, "strict")
    assert re.search(rf"^went +{len(a - b)} masks$", done.stdout, re.M), done.stdout
    assert re.search(rf"^default +{len(a)} masks", done.stdout, re.M) and "dropped by strict" in done.stdout
    assert "12 images\n" in done.stdout and "candidates an image" in done.stdout
    with Image.open(picture) as drawn:
        assert drawn.width > 3 * drawn.height / 2
    done = run("diff", made.path, "strict", tmp_path / "lax.yaml")
    assert done.exit_code == 0 and "dropped by strict" in done.stdout and "other pixels" in done.stdout
    assert (Path(str(made.path)) / "diff-strict-lax.jpg").exists()
    assert not (Path(str(made.path)) / "masks/lax").exists(), "nothing is materialised"
    done = run("diff", made.path, "strict", "strict")
    assert "none: no image differs" in done.stdout


def test_dots_belong_to_the_name_of_a_filter(made: Build, tmp_path: Path) -> None:
    """Of a file only its extension goes."""
    assert refilter(made, "iou.90", STRICT) == 0
    (tmp_path / "lax.2.yml").write_text("pred_iou_thresh: 0.3\nstability_score_thresh: 0.6\n")
    done = run("diff", made.path, "iou.90", tmp_path / "lax.2.yml", "--examples", "0", "--quiet")
    assert done.exit_code == 0 and ": iou.90 -> lax.2, 12 images" in done.stdout
    assert re.search("^picture +none: --examples 0$", done.stdout, re.M)
    done = run("diff", made.path, "iou.90", "default", "--quiet")
    assert (Path(str(made.path)) / "diff-iou.90-default.jpg").exists(), done.stdout


def test_a_large_build_is_sampled_and_says_so(made: Build) -> None:
    manifests = made.manifests()
    assert chosen(manifests, 0) == chosen(manifests, 12) == manifests and len(manifests) == 4
    assert [m.unit for m in chosen(manifests, 6)] == ["000000", "000002"] and len(chosen(manifests, 1)) == 1
    done = run("diff", made.path, "default", "strict", "--images", "6", "--quiet")
    assert "6 images of 12 (units spread evenly; --images 0 looks at all)" in done.stdout


def test_bad_input(made: Build, tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text("pred_iou_thresh: 0.1\n")
    for names, words in (
        (("default", "strickt"), "unknown filter config 'strickt'"),
        (("nowhere.yaml", "strict"), "'nowhere.yaml' does not exist; filters of"),
        (("default", str(tmp_path / "low.yaml")), "below the floor generate.floor_pred_iou=0.25"),
    ):
        assert words in complaint(run("diff", made.path, *names))
    assert "is not a build" in complaint(run("diff", tmp_path, "a", "b"))
    for option in ("--images", "--examples"):
        refused = run("diff", made.path, "default", "strict", option, "-1")
        assert refused.exit_code == 2 and "-1 is not in the range" in refused.stderr
    for command in ("filter", "diff"):
        assert f"maskmill {command} masks/" in run(command, "--help").stdout
