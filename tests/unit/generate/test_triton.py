"""The Triton kernels without a GPU: interpreted, and compiled for the H200 to look at the arithmetic."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from maskmill.config import GenerateConfig
from maskmill.generate import gpu_tables
from maskmill.generate.candidates import find_candidates
from maskmill.masks.table import MaskTable
from maskmill.sam.sam import Sam
from tests.unit.generate import dense, fake

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="triton is not installed (there are wheels for Linux)"
)
HERE = Path(__file__).parent


def test_in_the_interpreter() -> None:
    """triton_interpreted.py, in a process where TRITON_INTERPRET is set before Triton is imported."""
    versions = [tuple(int(n) for n in version(name).split(".")[:2]) for name in ("triton", "numpy")]
    if versions[0] < (3, 7) and versions[1] >= (2, 4):
        pytest.skip("Triton's interpreter cannot run loops with numpy 2.4 before Triton 3.7")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_interpreted.py")]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kernels_run_on_the_models_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, which need not be the model's: tests/gpu does it with two devices."""
    from maskmill.generate import gpu_image

    current = ["cuda:0"]

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        current.append(str(wanted))
        yield
        current.pop()

    def on_device(model: Sam, image: np.ndarray, cfg: GenerateConfig) -> MaskTable:
        assert current[-1] == "cuda:1"
        return MaskTable.empty(*image.shape[:2])

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(gpu_image, "find_candidates", on_device)
    model = fake.FakeSam()
    model.device = torch.device("cuda:1")
    assert len(find_candidates(model, np.zeros((4, 5, 3), np.uint8), GenerateConfig())) == 0  # type: ignore[arg-type]
    assert current == ["cuda:0"]


def test_compiled_arithmetic(tmp_path: Path) -> None:
    """For sm_90, each interpolation is one product and one fused multiply-add, as in torch's own kernel."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.unit.generate.compile_kernels"]
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=HERE.parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    ptx = done.stdout
    interpolations = ptx.count("fma.rn.f32")
    assert interpolations >= 8 and ptx.count("mul.f32") == interpolations
    assert ptx.count("add.f32") == 0 and ".ftz" not in ptx


@pytest.mark.parametrize(
    ("n_in", "n_out"), [(256, 1024), (683, 1500), (1024, 2250), (768, 480), (1, 7), (9, 1), (5, 5)]
)
def test_source_index(n_in: int, n_out: int) -> None:
    first, weight = gpu_tables.source_index(n_in, n_out, n_out)
    theirs, _, theirs_weight = dense.neighbours(n_in, n_out)
    assert (first == theirs).all() and (weight == theirs_weight).all()


@pytest.mark.parametrize(
    ("low", "square", "cut", "out"), [(24, 96, 71, 130), (256, 1024, 683, 1500), (64, 256, 256, 40)]
)
def test_span_of_a_tile(low: int, square: int, cut: int, out: int) -> None:
    """The low-resolution indices under a tile are all those that its pixels depend on, and no others."""
    indices, _, spans = gpu_tables.axis(low, square, cut, out)
    middle, lowest = dense.neighbours(cut, out), dense.neighbours(low, square)
    first, last = indices[-2 * len(spans) : -len(spans)], indices[-len(spans) :]
    for tile, start in enumerate(range(0, out, gpu_tables.SIDE)):
        here = slice(start, start + gpu_tables.SIDE)
        rows = [*middle[0][here], *middle[1][here]]
        used = {int(i) for side in lowest[:2] for i in side[rows]}
        assert used == set(range(first[tile], last[tile] + 1)) and spans[tile] == len(used)
