"""The data engine's page in a real browser: it fits, fetches nothing, and shows every chart and picture."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from maskmill.pipeline.cli import main
from tests.browser.conftest import fits, need_chromium, tab
from tests.pipeline.rounds.runs import make_run

need_chromium()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of one run, and of two beside each other."""
    folder = tmp_path_factory.mktemp("runs")
    runs = make_run(folder / "whole"), make_run(folder / "frozen", rounds=3, gain=0.0, retrain=False)
    for given, out in ((runs[:1], "one.html"), (runs, "two.html")):
        words = ["engine", "report", *map(str, given), "--out", str(folder / out), "--quiet"]
        assert CliRunner().invoke(main, words, catch_exceptions=False).exit_code == 0
    return folder / "one.html", folder / "two.html"


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits_every_screen(pages: tuple[Path, Path], chromium: Any, width: int) -> None:
    for page in pages:
        fits(chromium, page, width)


def test_the_table_needs_no_scrolling_on_a_laptop(pages: tuple[Path, Path], chromium: Any) -> None:
    with tab(chromium, 1280) as opened:
        opened.page.goto(pages[0].as_uri())
        wide = opened.page.evaluate("[...document.querySelectorAll('.scroll')].map(s => s.scrollWidth - s.clientWidth)")
        assert max(wide) <= 0


def test_it_fetches_nothing_and_shows_all(pages: tuple[Path, Path], chromium: Any) -> None:
    with tab(chromium) as opened:
        opened.page.goto(pages[0].as_uri())
        widths = opened.page.evaluate("[...document.images].map(i => i.naturalWidth)")
        assert len(widths) == 8 and min(widths) == 420
        charts = opened.page.evaluate(
            "[...document.querySelectorAll('svg.rounds')].map(s => s.getBoundingClientRect().height)"
        )
        assert len(charts) == 9 and min(charts) > 100
        targets = opened.page.evaluate(
            "[...document.querySelectorAll('nav a')].map(a => document.querySelector(a.hash) !== null)"
        )
        assert len(targets) == 6 and all(targets)
        assert opened.hosts <= {"", pages[0].as_uri()}  # file:// has no host
        assert opened.complaints == []
