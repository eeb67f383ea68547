"""The GPU benchmark on a CPU, small: that it runs to its end, without Ray, and loses nothing when it is cut short."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu

ROOT = Path(__file__).resolve().parents[3]

# A GPU machine has the source tree and PyTorch, not what the engine needs.
WITHOUT = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "pyarrow", "fsspec", "upath", "click", "rich"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
sys.argv[:] = ["gpu", *sys.argv[1:]]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


def test_runs_from_the_source_tree(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--tiny", "--only", "vit_b", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["machine"]["tiny"] is True
    assert [name for name in result["parts"] if "agreement" in name] == [
        "vit_b default agreement bfloat16",
        "vit_b default agreement float32",
        "vit_b default agreement float16",
        "vit_b SA-1B agreement bfloat16 with own float32",
        "vit_b SA-1B agreement float32",
    ]
    for name, figures in result["parts"].items():
        if "agreement" in name:
            assert figures["first"] > 0 and figures["share"] > 0.5
            assert figures["unexcused"] == 0 or "agreement float32" not in name
        if name in ("vit_b default bfloat16", "vit_b default float32", "vit_b SA-1B bfloat16"):
            assert figures["images_s"] > 0
            assert figures["steps"]["not_found"] == []
            assert {"encode", "decode", "post"} <= set(figures["steps"]["seconds"])
            assert 0 < figures["passing"]["pass_nms"] <= figures["passing"]["pass_iou"] < 1
    assert result["parts"]["vit_b SA-1B bfloat16"]["crops"] == 5
    assert result["parts"]["vit_b SA-1B official"]["images_s"] < 1000  # computed, not remembered
    assert result["skipped"] == {"vit_b default transformers": "left out of a tiny run"}


def run(tmp_path: Path, **changed: Any) -> gpu.Run:
    args = {"device": "cpu", "tiny": True, "minutes": 1.0, "precision": "float32", "only": "", "assignments": []}
    return gpu.Run(argparse.Namespace(**{**args, "out": tmp_path / "gpu.json", **changed}))


def test_a_part_that_fails_takes_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(subject: object) -> dict[str, Any]:
        raise ValueError("broken")

    def slow(subject: object) -> dict[str, Any]:
        while True:
            pass

    parts = [gpu.Part("bad", None, fails), gpu.Part("slow", None, slow), gpu.Part("good", None, lambda s: {"x": 1})]
    monkeypatch.setattr(gpu, "plan", lambda precision: parts)
    monkeypatch.setattr(gpu, "MOST_SECONDS", 0.2)
    made = run(tmp_path)
    made.all()
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert made.failed() == ["bad"]
    assert result["parts"]["bad"] == {"error": "ValueError: broken"}
    assert result["parts"]["good"]["x"] == 1
    assert result["skipped"]["slow"] == "stopped after 0 s"
    assert not {"bad", "good"} & set(result["skipped"])


def test_no_time_left(tmp_path: Path) -> None:
    made = run(tmp_path, minutes=0.0)
    made.all()
    result = json.loads((tmp_path / "gpu.json").read_text())
    names = [part.name for part in gpu.plan("float32")]
    assert set(result["skipped"]) - {"ceilings"} == set(names)


def test_an_unknown_precision_is_told(tmp_path: Path) -> None:
    made = run(tmp_path, precision="float1", only="vit_b default float1")
    made.all()
    assert "float1" in made.result["skipped"]["vit_b default float1"]
    assert made.failed() == []
