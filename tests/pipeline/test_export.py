"""Exports: stopped and continued, grown, refused, in constant memory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from maskmill.storage.build import Build
from tests.pipeline.conftest import build, drawing, png
from tests.pipeline.exchange import complaint, everything, export, import_, index_of, run, sorted_masks
from tests.pipeline.synthetic import write_build


@pytest.mark.parametrize("format", ["sa1b", "sa1b-tar", "coco"])
def test_an_export_that_was_stopped_anywhere_goes_on(
    format: str, made: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any number of images; it never looks finished, and nothing is written twice that was done."""
    whole = everything(export(made.path, tmp_path / "whole", format))
    from maskmill.pipeline.exchange.exporting import Exporter

    real = Exporter.write_image
    for after in range(4):
        dest, count = tmp_path / f"cut{after}", iter(range(100))

        def cut(self: Exporter, *words: Any, count: Any = count, after: int = after) -> Any:
            if next(count) == after:
                raise KeyboardInterrupt
            return real(self, *words)

        monkeypatch.setattr(Exporter, "write_image", cut)
        stopped = run("export", made.path, dest, "--format", format, "--threads", "1", "--quiet")
        assert stopped.exit_code == 75 and not (dest / "_SUCCESS").exists() and not (dest / "index.csv").exists()
        monkeypatch.setattr(Exporter, "write_image", real)
        kept = {p: p.stat().st_mtime_ns for p in (dest / ".export").glob("*.csv")}
        assert len(kept) == (0 if after < 2 else 1)
        export(made.path, dest, format)
        assert everything(dest) == whole and {p: p.stat().st_mtime_ns for p in kept} == kept


def test_an_export_follows_a_build_that_grows(tmp_path: Path) -> None:
    """Only the new unit is written; the JSON of COCO covers all."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        drawing(i).save(folder / f"{i}.png")
    grown = build(folder, tmp_path / "b")
    dest = export(grown.path, tmp_path / "coco", "coco")
    before = {p: p.stat().st_mtime_ns for p in (dest / "images").iterdir()}
    drawing(8).save(folder / "9.png")
    build(folder, tmp_path / "b", append=True)
    export(grown.path, dest, "coco")
    assert len(index_of(dest)) == 4 and {p: p.stat().st_mtime_ns for p in before} == before
    assert len(json.loads((dest / "annotations" / "instances.json").read_text())["images"]) == 4
    assert everything(export(grown.path, tmp_path / "fresh", "coco")) == everything(dest)


def test_what_an_export_refuses(made: Build, pictures: Path, tmp_path: Path) -> None:
    full, dest = tmp_path / "full", export(made.path, tmp_path / "dest", "sa1b")
    full.mkdir()
    (full / "thesis.txt").write_text("not ours")
    (tmp_path / "file").write_text("in the way")
    moved = tmp_path / "moved"
    shutil.copytree(made.path, moved)
    info = json.loads((moved / "build.json").read_text())
    (moved / "build.json").write_text(json.dumps({**info, "inputs": {"url": str(tmp_path / "gone"), "kind": "folder"}}))
    half = tmp_path / "half"
    shutil.copytree(made.path, half)
    (half / "ledger" / "images" / "000001.json").unlink()
    for source, where, more, words in (
        (made.path, full, ("sa1b",), "is not empty and not an export: give a new DEST"),
        (made.path, tmp_path / "file" / "x", ("sa1b",), "cannot write to DEST"),
        (made.path, made.path / "out", ("sa1b",), "lies inside the build"),
        (made.path, pictures / "out", ("sa1b",), "lies inside the images"),
        (made.path, dest, ("coco",), "holds another export (format: sa1b -> coco)"),
        (moved, dest, ("sa1b",), "holds another export (of another build)"),
        (made.path, tmp_path / "x", ("sa1b", "--filter", "strict"), "has no filter 'strict': it has default"),
        (half, tmp_path / "x", ("sa1b",), "is not finished: 1 of 2 units are open (first: 000001)"),
        (tmp_path, tmp_path / "x", ("sa1b",), "is not a build"),
        (made.path, tmp_path / "x", ("sa1b", "--images", str(full)), "no images"),
    ):
        assert words in complaint(run("export", source, where, "--quiet", "--format", *more)), words
    assert not (tmp_path / "x").exists()


def test_images_that_have_changed_or_moved(pictures: Path, tmp_path: Path) -> None:
    """Never the wrong picture beside a mask."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2):
        drawing(i).save(folder / f"{i}.png")
    found = build(folder, tmp_path / "b")
    good = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(png(drawing(7)))
    line = complaint(run("export", found.path, tmp_path / "out", "--format", "sa1b", "--quiet"))
    assert "image '1.png'" in line and "its bytes are others now" in line and not (tmp_path / "out/_SUCCESS").exists()
    (folder / "1.png").unlink()
    assert "No such file" in complaint(run("export", found.path, tmp_path / "out", "--format", "sa1b", "--quiet"))
    (folder / "1.png").write_bytes(good)
    folder.rename(tmp_path / "elsewhere")
    assert "give --images" in complaint(run("export", found.path, tmp_path / "out", "--format", "sa1b", "--quiet"))
    dest = export(found.path, tmp_path / "out", "sa1b", "--images", tmp_path / "elsewhere")
    assert sorted_masks(import_(dest, tmp_path / "back", "sa1b")).equals(sorted_masks(found))


def peak_mb(*words: str | Path) -> float:
    """The largest resident memory of a command in a process of its own. (VmHWM: ru_maxrss begins at the parent's.)"""
    code = (
        "import sys; from maskmill.pipeline.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as e: assert not e.code\n"
        "print('PEAK', open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("PEAK")[2]) / 1024


def test_coco_takes_constant_memory(tmp_path: Path) -> None:
    """10,000 masks against 200,000, whose JSON has some 80 MB: only what one unit holds is held."""
    peaks = []
    for units in (1, 20):
        made = write_build(tmp_path / f"b{units}", units)
        peaks.append(peak_mb("export", made.path, tmp_path / f"e{units}", "--format", "coco", "--no-images", "--quiet"))
    file = tmp_path / "e20" / "annotations" / "instances.json"
    assert file.stat().st_size > 60e6 and file.read_bytes().count(b'"iscrowd"') == 200_000
    assert peaks[1] - peaks[0] < 20, peaks


def test_a_killed_export_goes_on(made: Build, tmp_path: Path) -> None:
    """SIGKILL in the middle of a tar or of the JSON: neither is there under its name."""
    big, dest = write_build(tmp_path / "b", 6), tmp_path / "out"
    command = [sys.executable, "-m", "maskmill.pipeline.cli", "export", str(big.path), str(dest), "--quiet"]
    command += ["--format", "sa1b-tar", "--no-images", "--threads", "1"]
    first = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list((dest / ".export").glob("*.csv")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    receipts = len(list((dest / ".export").glob("*.csv")))
    assert 1 <= receipts < 6 and not (dest / "_SUCCESS").exists()
    for path in dest.glob("*.tar"):
        with tarfile.open(path) as tar:
            assert len(tar.getnames()) == 50
    export(big.path, dest, "sa1b-tar", "--no-images")
    whole = everything(export(big.path, tmp_path / "whole", "sa1b-tar", "--no-images"))
    assert {k: v for k, v in everything(dest).items() if not k.startswith(".")} == whole
