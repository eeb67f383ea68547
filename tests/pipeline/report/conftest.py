"""The builds that the page and the viewer show."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from maskmill.pipeline.cli import main
from maskmill.report.viewer import Viewer
from maskmill.storage.build import Build
from tests.pipeline.conftest import build, config, drawing

SETTINGS = ("generate.points_per_side=4", "generate.crop_n_layers=1", "run.unit_size=2")


@pytest.fixture(scope="package")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four drawings, one in a subfolder, and a text file that calls itself a JPEG."""
    folder = tmp_path_factory.mktemp("few")
    (folder / "sub").mkdir()
    for i in range(4):
        drawing(i, (96 + 8 * i, 72)).save(folder / ("sub" if i == 3 else ".") / f"{i}.png")
    (folder / "bad.jpg").write_text("not a picture")
    return folder


@pytest.fixture(scope="package")
def made(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return build(few, tmp_path_factory.mktemp("report") / "b", config(*SETTINGS))


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words], catch_exceptions=False)


def entries(view: Viewer) -> list[dict[str, Any]]:
    return list(view.shelves.shelf(0, "default")["images"])
