"""The ids by which results of other tools name the images of a set."""

import json
import tarfile
from pathlib import Path

import pytest

from maskmill.errors import UserError
from maskmill.storage import originals
from maskmill.storage.annotated import AnnotatedSet, open_annotated
from tests.pipeline.rounds.runs import make_build
from tests.pipeline.rounds.shapes import SIDE, bbox, shapes, write_shapes


def ids(images: AnnotatedSet) -> dict[str, int]:
    return {name.removeprefix("./"): images.image_id(i) for i, name in enumerate(images.names)}


def test_ids_are_those_of_the_files(tmp_path: Path) -> None:
    """Of SA-1B's JSON, of COCO's images, of a build's rows, which an import takes from its source."""
    folder = write_shapes(tmp_path / "set", 3, first_id=70)
    assert ids(open_annotated(str(folder))) == {"im0.png": 70, "im1.png": 71, "im2.png": 72}
    images = [{"id": 9 - n, "file_name": f"im{n}.png", "width": SIDE, "height": SIDE} for n in range(2)]
    box = bbox(shapes(0)[1][0])
    square = [[box[0], box[1], box[0] + 9, box[1], box[0] + 9, box[1] + 9]]
    annotations = [{"id": 1, "image_id": 9, "category_id": 1, "segmentation": square, "bbox": box, "area": 40}]
    tree = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "instances.json").write_text(json.dumps(tree))
    assert ids(open_annotated(str(tmp_path / "instances.json"), str(folder))) == {"im0.png": 9, "im1.png": 8}
    build = make_build(tmp_path / "masks", [])
    assert ids(open_annotated(str(build))) == {"im0.png": 0, "im1.png": 1}


def test_an_image_without_an_id(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "set", 1)
    (folder / "im0.json").write_text('{"annotations": []}')
    with pytest.raises(UserError, match=r"im0\.png: its JSON has no image_id"):
        open_annotated(str(folder)).image_id(0)
    (folder / "im0.json").write_text("nothing")
    with pytest.raises(UserError, match=r"im0\.json"):
        open_annotated(str(folder)).image_id(0)


def test_a_tar_is_walked_once_for_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training reads in a random order over all tars, also over more than an index is kept of elsewhere."""
    walks: list[int] = []
    find = originals.find_members
    monkeypatch.setattr(originals, "find_members", lambda file: walks.append(1) or find(file))
    count = originals.OPENED + 4
    folder = write_shapes(tmp_path / "set", count)
    for n in range(count):
        with tarfile.open(tmp_path / f"{n:03d}.tar", "w") as tar:
            for suffix in ("json", "png"):
                tar.add(folder / f"im{n}.{suffix}", f"im{n}.{suffix}")
    images = open_annotated(str(tmp_path / "*.tar"))
    for i in (*range(count), *range(count)):
        assert len(images.read(i).counts) == 3
    assert len(walks) == count
