"""The report in a real browser: nothing is fetched, nothing overflows, every picture and chart shows."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from maskmill.pipeline.cli import main
from maskmill.storage.build import Build
from tests.browser.conftest import fits, need_chromium, tab

need_chromium()


@pytest.fixture(scope="module")
def page(small: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    result = CliRunner().invoke(main, ["report", str(small.path), "--out", str(out), "--quiet"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("width", [320, 390, 900, 1440])
def test_it_fits_every_screen(page: Path, chromium: Any, width: int) -> None:
    fits(chromium, page, width)


def test_it_fetches_nothing_and_shows_all(page: Path, chromium: Any) -> None:
    with tab(chromium) as opened:
        opened.page.goto(page.as_uri())
        widths = opened.page.evaluate("[...document.images].map(i => i.naturalWidth)")
        assert len(widths) > 5 and min(widths) > 0
        charts = opened.page.evaluate(
            "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height)"
        )
        assert len(charts) >= 8 and min(charts) > 50
        assert opened.hosts <= {"", page.as_uri()}  # file:// has no host
        assert opened.complaints == []
        targets = opened.page.evaluate(
            "[...document.querySelectorAll('nav a')].map(a => document.querySelector(a.hash) !== null)"
        )
        assert len(targets) >= 6 and all(targets)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_its_texts_stand_out(page: Path, chromium: Any, scheme: str) -> None:
    """WCAG AA: a contrast of 4.5 for text, in both modes."""
    with tab(chromium, color_scheme=scheme) as opened:
        opened.page.goto(page.as_uri())
        names = ["bg", "surface", "ink", "soft", "accent", "good", "warn", "bad", "cut"]
        colours = opened.page.evaluate(
            "names => { const s = getComputedStyle(document.documentElement);"
            "return Object.fromEntries(names.map(n => [n, s.getPropertyValue('--' + n).trim()])) }",
            names,
        )
        for text in names[2:]:
            for ground in names[:2]:
                assert contrast(colours[text], colours[ground]) >= 4.5, (scheme, text, ground)


def contrast(a: str, b: str) -> float:
    """The ratio of two #rrggbb colours."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


def test_on_paper(page: Path, chromium: Any) -> None:
    with tab(chromium, color_scheme="dark") as opened:
        opened.page.goto(page.as_uri())
        opened.page.emulate_media(media="print")
        assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert opened.page.locator("nav").is_hidden()
        assert opened.page.pdf(format="A4").count(b"/Type /Page\n") >= 2
