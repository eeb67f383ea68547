"""A real Chromium, headless, and builds to show it. Without one these tests are skipped, and say so."""

import base64
import io
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmill.report.server import serve
from maskmill.report.viewer import Viewer
from maskmill.storage.build import Build
from tests.browser.many import build_many
from tests.pipeline.conftest import build, config, drawing

MARKUP = "<img src=x onerror=document.title=1>.png"  # a key that must stay text
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """MASKMILL_CHROMIUM, or one on the path."""
    return os.environ.get("MASKMILL_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def need_chromium() -> None:
    """Skip the file that calls this at its head, in words, if there is no browser."""
    if find_chromium() is None:
        words = "no Chromium here: apt-get install chromium, or set MASKMILL_CHROMIUM to its path"
        pytest.skip(words, allow_module_level=True)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for the tests of a file. Not longer: while it is open, this thread has a running event loop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Tab:
    """A page, and what it complained about: every test ends with none."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)


@contextmanager
def tab(browser: Any, width: int = 1280, height: int = 800, **options: Any) -> Iterator[Tab]:
    """A fresh page of this size."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    made = Tab(context.new_page())
    made.page.set_default_timeout(10_000)
    made.page.on("console", lambda m: made.complaints.append(m.text) if m.type in ("error", "warning") else None)
    made.page.on("pageerror", lambda e: made.complaints.append(str(e)))
    made.page.on("request", lambda r: made.hosts.add(r.url.partition("://")[2].partition("/")[0].partition(":")[0]))
    try:
        yield made
    finally:
        context.close()


@contextmanager
def serving(made: Build) -> Iterator[str]:
    """The viewer of a build, and its address."""
    with serve(Viewer(made), 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Drawings by nano, one with markup for a name, and a file that is no image; units of two images."""
    folder = tmp_path_factory.mktemp("browser")
    for i in range(4):
        drawing(i, (128, 96)).save(folder / f"{i}.png")
    drawing(9, (90, 120)).save(folder / MARKUP)
    (folder / "bad.jpg").write_text("not a picture")
    return build(folder, folder.with_name("small-build"), config("run.unit_size=2"))


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """One image of SA-1B's size with more than 500 masks."""
    folder = tmp_path_factory.mktemp("many")
    return build_many(large_image(folder / "images"), folder / "build")


def large_image(folder: Path) -> Path:
    """A new folder with large.jpg, 2250 x 1500 pixels."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (30, 45, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((2250, 1500), Image.Resampling.BICUBIC).save(folder / "large.jpg", quality=85)
    return folder


def choose_image(page: Any, key: str) -> None:
    """Open an image, until its masks are there."""
    page.locator("#list button", has_text=key).first.click()
    page.locator("#list button[aria-current]", has_text=key).wait_for()
    page.locator("#kept", has_text="candidates are masks").wait_for()


def sweep(page: Any) -> dict[str, list[float]]:
    """Open large.jpg and move the pointer all over it. Milliseconds of every `paint` of all masks and every `hover`."""
    choose_image(page, "large.jpg")
    box = page.locator("#stage canvas").first.bounding_box()
    for i in range(30):
        x, y = (i + 0.5) / 30, 0.1 + 0.8 * (i % 7) / 7
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
    times: dict[str, list[float]] = page.evaluate(
        "Object.fromEntries(['paint', 'hover'].map(n => [n, performance.getEntriesByName(n).map(m => m.duration)]))"
    )
    return times


def alpha(page: Any) -> np.ndarray:
    """bool H x W: where the canvas of all masks is painted."""
    uri = page.evaluate("document.querySelector('#stage canvas').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"))[..., 3] > 0


def picture_folder(made: Build) -> Path:
    """Where a build's images lie."""
    return Path(made.info["inputs"]["url"])


def fits(chromium: Any, page: Path, width: int) -> None:
    """Nothing overflows at this width, and the charts' letters can be read."""
    with tab(chromium, width) as opened:
        opened.page.goto(page.as_uri())
        assert opened.page.evaluate("document.documentElement.scrollWidth") == width
        sizes = opened.page.evaluate(
            "[...document.querySelectorAll('svg.chart text')].map(t => t.getBoundingClientRect().height)"
        )
        assert len(sizes) > 50 and min(sizes) > 8
        assert opened.complaints == []
