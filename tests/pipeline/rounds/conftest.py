"""One undisturbed run for all tests."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pipeline.rounds.engine import ROUNDS, ends, start, write_config


@dataclass(frozen=True)
class Made:
    """A finished run, its config, and how long it took."""

    out: Path
    config: Path
    seconds: float


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("engine")
    config, begun = write_config(folder), time.monotonic()
    shown, _ = ends(start(config, folder / "run"))
    assert all(name in shown for name in ROUNDS)
    return Made(folder / "run", config, time.monotonic() - begun)
