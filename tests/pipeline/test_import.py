"""Imports: bad input, continued, grown."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from maskmill.storage.build import Build
from maskmill.storage.ledger import Ledger
from tests.pipeline.conftest import drawing, make_tar
from tests.pipeline.exchange import H, W, complaint, done, foreign, import_, run, sa1b_folder, sorted_masks


def test_what_a_coco_import_refuses(tmp_path: Path) -> None:
    """One line that names the thing, the value and the mend; nothing is written."""
    good = json.loads(foreign(tmp_path / "good").read_text())
    image, annotation = good["images"][0], good["annotations"][0]
    text = json.dumps(good)
    cases: dict[str, tuple[str, str]] = {
        "cut": (text[: len(text) // 2], "it is cut short"),
        "garbage": (text.replace('"images"', "images"), "it is broken near byte"),
        "results": (json.dumps(good["annotations"]), "give the instances file"),
        "empty": ("", "it is empty"),
        "no-images": (json.dumps({"annotations": []}), "it has no 'images'"),
        "none": (json.dumps({**good, "images": []}), "its list of images is empty"),
        "same-id": (json.dumps({**good, "images": [image, {**image, "file_name": "b.png"}]}), "two images have id 9"),
        "same-name": (json.dumps({**good, "images": [image, {**image, "id": 3}]}), "images 9 and 3 are both a.png"),
        "text-id": (json.dumps({**good, "images": [{**image, "id": "x9"}]}), "an image has id 'x9'"),
        "nameless": (json.dumps({**good, "images": [{"id": 9}]}), "image 9 has file_name 'None'"),
        "stranger": (json.dumps({**good, "annotations": [{**annotation, "image_id": 99}]}), "1 image_ids that are not"),
        "no-record": (json.dumps({**good, "annotations": [3]}), "found '3' where a record should be"),
        "elsewhere": (
            json.dumps({**good, "images": [{**image, "file_name": "q/z.png"}], "annotations": []}),
            "--images",
        ),
    }
    for name, (content, words) in cases.items():
        path = tmp_path / "good" / f"{name}.json"
        path.write_text(content)
        line = complaint(run("import", path, "--out", tmp_path / "b", "--format", "coco"))
        assert words in line and str(path) in line, line
    assert "name the instances file itself" in complaint(
        run("import", tmp_path / "good", "--out", tmp_path / "b", "--format", "coco")
    )
    assert "no such file" in complaint(run("import", tmp_path / "no", "--out", tmp_path / "b", "--format", "coco"))
    assert "--append is for --format sa1b" in complaint(
        run("import", tmp_path / "good", "--out", tmp_path / "b", "--format", "coco", "--append")
    )
    assert "only run.*" in complaint(
        run("import", tmp_path / "good", "--out", tmp_path / "b", "--format", "coco", "--set", "filter.min_area=3")
    )
    assert "config section 'generate' is 5" in complaint(
        run("import", tmp_path / "good", "--out", tmp_path / "b", "--format", "coco", "--set", "generate=5")
    )
    assert not (tmp_path / "b").exists()


def test_broken_images_of_a_coco_import_are_quarantined_alone(tmp_path: Path) -> None:
    """Missing, cut, another size, broken masks: each a row with its id and the reason, and nobody else's."""
    path = foreign(tmp_path / "set")
    tree, folder = json.loads(path.read_text()), path.parent
    good = tree["annotations"][2]
    odd: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "missing": ({}, {}),
        "cut": ({}, {}),
        "size": ({"width": 39}, {}),
        "rle": ({}, {"segmentation": {"size": [H, W], "counts": "0garbage~"}}),
        "total": ({}, {"segmentation": {"size": [H, W], "counts": [3, 4]}}),
        "other": ({}, {"segmentation": {"size": [H, 2 * W], "counts": [2 * H * W]}}),
        "polygon": ({}, {"segmentation": [[1, 2, 3]]}),
        "nothing": ({}, {"segmentation": []}),
        "category": ({}, {"category_id": 99}),
        "twice": ({}, {}),
    }
    for i, (name, (image, mask)) in enumerate(odd.items()):
        key, number = f"{name}.png", 100 + i
        drawing(i, (W, H)).save(folder / key)
        tree["images"].append({"id": number, "file_name": key, "width": W, "height": H} | image)
        tree["annotations"].append({**good, "id": 900 + i, "image_id": number} | mask)
    tree["annotations"].append({**good, "id": 909, "image_id": 109})
    (folder / "missing.png").unlink()
    (folder / "cut.png").write_bytes((folder / "size.png").read_bytes()[:99])
    path.write_text(json.dumps(tree))
    found = import_(path, tmp_path / "b", "coco")
    errors = {r["key"]: r["error"] for r in found.images().to_pylist() if r["status"] == "quarantined"}
    words = {
        "missing": "No such file", "cut": "cannot decode", "size": "the annotations are for 39x30, the image is 40x30",
        "rle": "annotation 903: its RLE is broken", "total": "counts cover 7 pixels of 40x30",
        "other": "its size is 80x30, the image is 40x30", "polygon": "not a list of three or more x, y",
        "nothing": "it has no mask", "category": "category_id '99'", "twice": "its id stands there twice",
    }  # fmt: skip
    assert {k.removesuffix(".png") for k in errors} == set(words)
    for name, said in words.items():
        assert said in errors[f"{name}.png"], errors[f"{name}.png"]
    assert {r["image_id"] for r in found.images().to_pylist()} == {3, 9, *range(100, 110)}
    assert sorted(found.masks()["mask_id"].to_pylist()) == [70, 71, 80]


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_broken_images_of_an_sa1b_import_are_quarantined_alone(kind: str, tmp_path: Path) -> None:
    """No JSON, half a JSON, a JSON without an image."""
    folder = sa1b_folder(tmp_path / "set", 4)
    (folder / "sa_1.json").unlink()
    (folder / "sa_2.json").write_text((folder / "sa_2.json").read_text()[:50])
    (folder / "sa_3.png").unlink()
    source, said = folder, ""
    if kind == "tar":  # JSONs first: they need not stand beside their images
        files = sorted(folder.iterdir(), key=lambda p: (p.suffix, p.name))
        source = make_tar(tmp_path / "tars" / "0.tar", {f"./{p.name}": p.read_bytes() for p in files})
        said = done("import", source, "--out", tmp_path / "b0", "--format", "sa1b").stderr
        assert "0.tar: 1 .json without an image are left out (first: sa_3.json)" in said
    found = import_(source, tmp_path / "b", "sa1b")
    errors = {r["key"]: r["error"] for r in found.images().to_pylist() if r["status"] == "quarantined"}
    ext = ".png" if kind == "folder" else ""
    assert (
        "no annotations: sa_1.json is not" in errors[f"sa_1{ext}"] and "sa_2.json: broken JSON" in errors[f"sa_2{ext}"]
    )
    assert ("sa_3.jpg" in errors) is (kind == "folder") and len(errors) == (3 if kind == "folder" else 2)
    assert found.masks()["mask_id"].to_pylist() == [0, 1]


def test_json_by_any_name_is_found(tmp_path: Path) -> None:
    """In capitals, and beside an image whose name is no UTF-8."""
    folder = sa1b_folder(tmp_path / "set")
    (folder / "sa_1.json").rename(folder / "sa_1.JSON")
    for ending in ("png", "json"):
        (folder / f"sa_2.{ending}").rename(os.fsdecode(bytes(folder) + b"/caf\xe9." + ending.encode()))
    found = import_(folder, tmp_path / "b", "sa1b")
    assert {r["key"]: r["status"] for r in found.images().to_pylist()} == {
        "sa_0.png": "ok", "sa_1.png": "ok", "caf\\xe9.png": "ok"
    }  # fmt: skip


def test_images_that_share_an_id_are_never_closed(tmp_path: Path) -> None:
    """Whatever unit they are in; --ids hash is the way out, and keeps the old ids."""
    folder = sa1b_folder(tmp_path / "set")
    for i in (0, 2):
        tree = json.loads((folder / f"sa_{i}.json").read_text())
        tree["image"]["image_id"] = 0
        (folder / f"sa_{i}.json").write_text(json.dumps(tree))
    words = ("import", folder, "--format", "sa1b", "--quiet")
    for size in (1, 64):
        out = tmp_path / f"b{size}"
        for _ in range(2):
            refused = run("--debug", *words, "--out", out, "--set", f"run.unit_size={size}")
            line = refused.stderr.splitlines()[-1]
            assert refused.exit_code == 2 and "image_id 0 is that of 2 images: sa_0.png (.) and sa_2.png (.)" in line
            assert "--ids hash" in line
        assert not (out / "_SUCCESS").exists()
    found = import_(folder, tmp_path / "b", "sa1b", "--ids", "hash")
    assert found.masks().num_rows == 6
    assert sorted(json.loads(r["meta"])["image_id"] for r in found.images().to_pylist()) == [0, 0, 1]


def test_what_an_sa1b_import_refuses(tmp_path: Path) -> None:
    folder = sa1b_folder(tmp_path / "set")
    bare = tmp_path / "bare"
    bare.mkdir()
    drawing(1).save(bare / "a.png")
    (bare / "instances.json").write_text("{}")
    both = sa1b_folder(tmp_path / "both")
    shutil.copy(both / "sa_0.png", both / "sa_0.jpg")
    for source, words in (
        (bare, "no image has its .json beside it (first: a.png): is it COCO?"),
        (both, "sa_0.jpg and sa_0.png share sa_0.json"),
        (tmp_path / "no", "no such file or folder"),
    ):
        assert words in complaint(run("import", source, "--out", tmp_path / "b", "--format", "sa1b"))
    import_(folder, tmp_path / "b", "sa1b")
    assert "nothing to do" in done("import", folder, "--out", tmp_path / "b", "--format", "sa1b").output
    assert "import.ids: keep -> hash" in complaint(
        run("import", folder, "--out", tmp_path / "b", "--format", "sa1b", "--ids", "hash")
    )
    assert "is an import" in complaint(run("retry", tmp_path / "b"))
    (folder / "sa_1.json").write_text("{}")
    assert "no longer as planned: 1 changed" in complaint(
        run("import", folder, "--out", tmp_path / "b", "--format", "sa1b")
    )


def test_an_import_grows_and_a_changed_coco_file_is_refused(tmp_path: Path) -> None:
    folder = sa1b_folder(tmp_path / "set")
    import_(folder, tmp_path / "b", "sa1b")
    more = sa1b_folder(tmp_path / "more", 4)
    for name in ("sa_3.png", "sa_3.json"):
        shutil.copy(more / name, folder / name)
    assert "--append" in complaint(run("import", folder, "--out", tmp_path / "b", "--format", "sa1b"))
    assert import_(folder, tmp_path / "b", "sa1b", "--append").masks().num_rows == 8
    path = foreign(tmp_path / "coco")
    import_(path, tmp_path / "c", "coco")
    path.write_text(path.read_text() + " ")
    assert "has changed since" in complaint(run("import", path, "--out", tmp_path / "c", "--format", "coco"))
    assert "another build, not an import of COCO" in complaint(
        run("import", path, "--out", tmp_path / "b", "--format", "coco")
    )


def test_a_killed_import_goes_on(tmp_path: Path) -> None:
    """SIGKILL between units, then the same command: the rows of an undisturbed import."""
    folder = sa1b_folder(tmp_path / "set", 15)
    want = import_(folder, tmp_path / "whole", "sa1b")
    out = tmp_path / "b"
    command = [sys.executable, "-m", "maskmill.pipeline.cli", "import", str(folder), "--out", str(out)]
    command += ["--format", "sa1b", "--quiet", "--set", "run.unit_size=1"]
    first = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(Ledger(out).newest()) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    committed = len(Ledger(out).newest())
    assert 3 <= committed < 15 and not (out / "_SUCCESS").exists()
    found = import_(folder, out, "sa1b")
    assert sorted_masks(found).equals(sorted_masks(want))
    assert found.images().sort_by("image_id").equals(want.images().sort_by("image_id"))


def test_an_import_on_ray_gives_the_same_rows(cluster: None, tmp_path: Path) -> None:
    folder = sa1b_folder(tmp_path / "set", 6)
    words = ("import", folder, "--format", "sa1b", "--set", "run.unit_size=2", "--quiet")
    done(*words, "--out", tmp_path / "ray", "--engine", "ray")
    assert len(Ledger(tmp_path / "ray").newest()) == 3
    assert sorted_masks(Build(tmp_path / "ray")).equals(sorted_masks(import_(folder, tmp_path / "b", "sa1b")))
