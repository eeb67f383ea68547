"""What the command says: one clear line for each bad input, help with examples, and the exit codes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from maskmill.pipeline.cli import main
from maskmill.pipeline.commands.common import check_device
from tests.pipeline.conftest import QUICK, drawing, png

SETTINGS = [word for s in QUICK for word in ("--set", s)]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words], catch_exceptions=False)


def generate(images: str | Path, out: Path, *more: str) -> Result:
    return run("generate", images, "--out", out, "--engine", "local", "--quiet", *SETTINGS, *more)


def complaint(result: Result) -> str:
    """The one line of a refused command."""
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == 2, (result.exit_code, result.output)
    assert len(lines) == 1 and lines[0].startswith("maskmill: ") and "Traceback" not in result.output
    return lines[0]


def missing(tmp: Path) -> Path:
    return tmp / "nowhere"


def empty(tmp: Path) -> Path:
    (tmp / "empty").mkdir()
    return tmp / "empty"


def mixed(tmp: Path) -> Path:
    (tmp / "mixed").mkdir()
    (tmp / "mixed" / "a.png").write_bytes(png(drawing(1)))
    (tmp / "mixed" / "a.tar").write_bytes(b"")
    return tmp / "mixed"


@pytest.mark.parametrize("make", [missing, empty, mixed])
def test_bad_image_sets(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path)
    assert str(folder) in complaint(generate(folder, tmp_path / "b"))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--model", "vit_x"), "unknown model 'vit_x': did you mean"),
        (("--model", "vit_b"), "--checkpoint sam_vit_b_01ec64.pth"),
        (("--checkpoint", "nowhere.pth"), "'nowhere.pth' is not a file"),
        (("--set", "generate.point_per_side=3"), "did you mean 'points_per_side'?"),
        (("--set", "filter.pred_iou_thresh=high"), "expected float"),
        (("--set", "filter.pred_iou_thresh=0.01"), "below the floor"),
        (("--set", "points_per_side=3"), "known keys: model, generate"),
        (("--set", "=3"), "section.key=value"),
        (("--config", "sa2b"), "did you mean 'sa1b'?"),
        (("--config", "nowhere.yaml"), "does not exist"),
        (("--filter", "nothing"), "unknown filter config 'nothing'"),
        (("--device", "gpu9"), "is no device"),
    ],
)
def test_bad_settings(more: tuple[str, ...], words: str, photos: Path, tmp_path: Path) -> None:
    assert words in complaint(generate(photos, tmp_path / "b", *more))


def test_a_numbered_gpu_must_exist_and_be_ones_own(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the last GPU, and with Ray, whose processes each see one GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1", here=True)
    check_device("cuda", here=False)
    assert "2 CUDA GPUs here: the last one is cuda:1" in complaint(generate(photos, tmp_path / "b", "--device=cuda:2"))
    ray = generate(photos, tmp_path / "b", "--engine", "ray", "--device", "cuda:1")
    assert "--device 'cuda:1': each of Ray's processes" in complaint(ray)


def test_wrong_checkpoints(photos: Path, tmp_path: Path) -> None:
    foreign, garbage = tmp_path / "foreign.pth", tmp_path / "garbage.pth"
    torch.save({"weight": torch.zeros(3)}, foreign)
    garbage.write_bytes(b"\x80\x02garbage")
    assert "is not a 'nano' model" in complaint(generate(photos, tmp_path / "b", "--checkpoint", str(foreign)))
    assert "cannot be read" in complaint(generate(photos, tmp_path / "b", "--checkpoint", str(garbage)))


def test_an_output_that_cannot_be_written(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot write to --out" in complaint(generate(photos, tmp_path / "file" / "b"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("not ours")
    assert "not empty and not a build" in complaint(generate(photos, tmp_path / "full"))


def test_odd_images_cost_only_themselves(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    drawing(1).save(folder / "good.png")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (900, 1)).save(folder / "line.png")
    (folder / "text.jpg").write_text("hello")
    (folder / "nothing.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:150])
    result = generate(folder, tmp_path / "b")
    assert result.exit_code == 0, result.output
    shown = run("status", tmp_path / "b").stdout
    assert "6 of 6" in shown and "3 quarantined" in shown
    for name in ("text.jpg", "nothing.png", "cut.png"):
        assert f"{name}: " in shown
    assert run("verify", tmp_path / "b").exit_code == 0


def test_generate_status_verify_and_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    first = run("generate", photos, "--out", out, "--engine", "local", *SETTINGS)
    assert first.exit_code == 0, first.output
    assert "8 of 8" in first.stdout and "1 quarantined" in first.stdout
    assert (out / "preview.jpg").is_file() and (out / "_SUCCESS").is_file()
    assert "nothing to do" in generate(photos, out).stdout
    assert "every promise holds" in run("verify", out).stdout
    (out / "ledger" / "images" / "000000.json").unlink()
    broken = run("verify", out)
    assert broken.exit_code == 1 and "unit 000000: not committed yet" in broken.stdout


def test_plan_writes_nothing(photos: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = run("plan", photos, *SETTINGS)
    assert result.exit_code == 0, result.output
    assert "images      8" in result.stdout and "estimate" in result.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_no_build(tmp_path: Path) -> None:
    assert "is not a build" in complaint(run("status", tmp_path))
    assert "is not a build" in complaint(run("verify", tmp_path))


@pytest.mark.parametrize("command", ["generate", "plan", "status", "verify", "models"])
def test_help_has_an_example(command: str) -> None:
    assert f"maskmill {command}" in run(command, "--help").stdout


def test_models_lists_what_can_be_loaded() -> None:
    shown = run("models").stdout
    for word in ("nano", "vit_b", "vit_l", "vit_h", "01ec64", "0b3195", "4b8939"):
        assert word in shown
