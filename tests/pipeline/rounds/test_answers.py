"""What annotators hand in is looked at before it becomes masks."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from maskmill.errors import UserError
from maskmill.pipeline.rounds.pack import checked_answer, names_in, pack_answers, storage_failed
from maskmill.pipeline.rounds.quality import automatic_quality
from maskmill.storage.annotated import open_annotated
from maskmill.storage.originals import MissingOriginal
from tests.pipeline.rounds.conftest import Made
from tests.unit.training.sets import write_set


def answer(made: Made) -> tuple[Path, dict[str, Any]]:
    """A real one, with masks."""
    for path in sorted((made.out / "rounds/assisted-1/answers").iterdir()):
        tree = json.loads(path.read_bytes())
        if tree["annotations"]:
            return path, tree
    raise AssertionError("no annotator has made a mask")


def test_a_good_answer_is_taken_as_it_is(made: Made) -> None:
    path, tree = answer(made)
    height, width = tree["annotations"][0]["segmentation"]["size"]
    assert checked_answer(path, height, width, tree["image"]["image_id"]) == path.read_bytes()


def test_a_bad_answer_is_named(made: Made, tmp_path: Path) -> None:
    _, tree = answer(made)
    size, path = tree["annotations"][0]["segmentation"]["size"], tmp_path / "t-1.json"

    def said(text: str, height: int = size[0]) -> str:
        path.write_text(text)
        with pytest.raises(UserError) as e:
            checked_answer(path, height, size[1], tree["image"]["image_id"])
        assert str(path) in str(e.value)
        return str(e.value)

    first, *rest = tree["annotations"]
    meta = first["meta"]

    def with_first(**changes: object) -> str:
        return json.dumps(tree | {"annotations": [first | changes, *rest]})

    def with_image(**changes: object) -> str:
        about = tree["image"]
        return json.dumps(tree | {"image": about | {"meta": about["meta"] | changes}})

    assert "ious of the image's meta is [None]" in said(with_image(ious=[None]))
    assert "prefilled of the image's meta is 3.0: expected a whole number" in said(with_image(prefilled=3.0))
    assert "cannot be taken" in said(json.dumps(tree | {"image": tree["image"] | {"meta": None}}))
    assert "cannot be taken" in said(with_first(meta=None))
    number = tree["image"]["image_id"]
    wrong = json.dumps(tree | {"image": tree["image"] | {"image_id": 0}})
    assert f"image_id is 0: expected {number}, the task's number, or none" in said(wrong)
    assert "lacks 'seconds'" in said(json.dumps(tree).replace('"seconds"', '"minutes"'))
    assert "lacks 'meta'" in said(json.dumps({"image": {}, "annotations": []}))
    assert "broken JSON" in said("masks")
    assert "the image is" in said(json.dumps(tree), height=size[0] + 1)
    assert "annotation 0" in said(with_first(segmentation={"size": size, "counts": "zzzz"}))
    assert "seconds of the meta of annotation 0 is None" in said(with_first(meta=meta | {"seconds": None}))
    assert "'painted': expected one of drawn" in said(with_first(meta=meta | {"edit": "painted"}))
    path.unlink()
    with pytest.raises(UserError, match="cannot be taken"):
        checked_answer(path, size[0], size[1], 1)


def test_a_bad_answer_leaves_no_tar_behind(made: Made, tmp_path: Path) -> None:
    """So it can be mended, and the same command goes on."""
    images = made.out / "rounds/assisted-1/images.tar"
    good, tree = answer(made)
    name = good.stem.rpartition("-")[0]
    assert name in names_in(images)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError):
        pack_answers(images, {name: tmp_path / "bad.json"}, tmp_path / "masks.tar")
    assert not (tmp_path / "masks.tar").exists()
    (tmp_path / "bad.json").write_text(json.dumps(tree))
    pack_answers(images, {name: tmp_path / "bad.json"}, tmp_path / "masks.tar")
    with tarfile.open(tmp_path / "masks.tar") as tar:
        assert tar.getnames() == [f"{name}.png", f"{name}.json"]


def test_storage_that_fails_is_no_broken_image() -> None:
    """An image is left out for good only if it is missing or no picture."""

    def said(cause: Exception, under: Exception | None = None) -> UserError:
        error = UserError("image a.png")
        error.__cause__, cause.__cause__ = cause, under
        return error

    assert storage_failed(said(MissingOriginal("out of reach"), TimeoutError()))
    assert not storage_failed(said(MissingOriginal("gone"), FileNotFoundError()))
    assert not storage_failed(said(ValueError("broken"), OSError("truncated")))


def test_an_automatic_stage_without_a_mask_has_a_quality(tmp_path: Path) -> None:
    truth = open_annotated(str(write_set(tmp_path / "set", 2)))
    found = automatic_quality(None, truth, lambda done, of: None)
    assert found["objects"] == 6 and found["recall"] == 0 and found["mean_iou"] is None
