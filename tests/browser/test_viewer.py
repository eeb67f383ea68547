"""The viewer in a real browser: what is drawn, hovered, clicked, moved and typed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from pycocotools import mask as coco

from maskmill.config import FilterConfig, from_tree
from maskmill.report import shelves
from maskmill.report.refilter import candidates_of, generate_config
from maskmill.report.viewer import Viewer
from maskmill.storage.build import Build
from tests.browser.conftest import MARKUP, Tab, alpha, choose_image, need_chromium, picture_folder, serving, sweep, tab
from tests.browser.many import build_many

need_chromium()


@pytest.fixture(scope="module")
def address(small: Build) -> Iterator[str]:
    with serving(small) as url:
        yield url


@pytest.fixture
def view(chromium: Any, address: str) -> Iterator[Tab]:
    """The small build at its first image with masks; afterwards: no complaint, and no host but this one."""
    with tab(chromium) as opened:
        opened.page.goto(address)
        choose_image(opened.page, "0.png")
        yield opened
        assert opened.complaints == []
        assert opened.hosts == {"127.0.0.1"}


def stored(made: Build, key: str) -> list[dict[str, Any]]:
    """The masks of one image, the largest first."""
    images = made.images()
    image_id = images.filter(pc.equal(images["key"], key))["image_id"][0].as_py()
    masks = made.masks()
    rows: list[dict[str, Any]] = masks.filter(pc.equal(masks["image_id"], image_id)).to_pylist()
    return sorted(rows, key=lambda r: (-r["area"], r["mask_id"]))


def union(rows: list[dict[str, Any]]) -> np.ndarray:
    """bool H x W: what any of them covers."""
    rles = [{"size": [r["height"], r["width"]], "counts": r["counts"].encode()} for r in rows]
    return coco.decode(coco.merge(rles)).astype(bool)


def listed(page: Any) -> list[int]:
    """Ids in the list of masks."""
    ids: list[int] = page.locator("#rows button").evaluate_all("all => all.map(b => Number(b.dataset.id))")
    return ids


def at(page: Any, x: float, y: float) -> tuple[float, float]:
    """Where the middle of the image's pixel (x, y) is on the screen."""
    box = page.locator("#stage canvas").first.bounding_box()
    width = page.evaluate("document.querySelector('#stage canvas').width")
    scale = box["width"] / width
    return box["x"] + (x + 0.5) * scale, box["y"] + (y + 0.5) * scale


def deep_inside(mask: np.ndarray, others: np.ndarray) -> tuple[int, int]:
    """A pixel of `mask` that none of `others` covers."""
    y, x = np.argwhere(mask & ~others)[len(np.argwhere(mask & ~others)) // 2]
    return int(x), int(y)


def test_all_masks_are_drawn_where_they_lie(view: Tab, small: Build) -> None:
    rows = stored(small, "0.png")
    assert len(rows) > 1 and listed(view.page) == [r["mask_id"] for r in rows]
    assert (alpha(view.page) == union(rows)).all()
    assert view.page.evaluate("document.querySelector('#stage img').naturalWidth") == 128


def test_hover_names_the_smallest_mask_below(view: Tab, small: Build) -> None:
    rows = stored(small, "0.png")
    for i, row in enumerate(rows):
        smaller = np.logical_or.reduce([Build.decode(r) for r in rows[i + 1 :]] or [np.zeros((96, 128), bool)])
        if not (Build.decode(row) & ~smaller).any():
            continue
        view.page.mouse.move(*at(view.page, *deep_inside(Build.decode(row), smaller)))
        assert view.page.locator("#tip").text_content().split()[0] == str(row["mask_id"])
    view.page.mouse.move(2, 2)
    assert view.page.locator("#tip").is_hidden()


def test_a_click_shows_all_that_is_stored_and_the_next_what_lies_below(view: Tab, small: Build) -> None:
    rows, page = stored(small, "0.png"), view.page
    depth = sum(Build.decode(r).astype(int) for r in rows)
    y, x = np.argwhere(depth == depth.max())[0]
    under = [r for r in reversed(rows) if Build.decode(r)[y, x]]
    for row in [*under, under[0]]:
        page.mouse.click(*at(page, float(x), float(y)))
        assert page.locator("#detail h2").text_content() == f"Mask {row['mask_id']}"
        words = page.locator("#detail").text_content()
        for value in (f"{row['predicted_iou']:.3f}", f"{row['stability_score']:.3f}", f"{row['area']:,} px"):
            assert value in words
        assert ", ".join(f"{row[f'bbox_{n}']:g}" for n in "xywh") in words
        assert ", ".join(f"{round(row[f'point_{n}'], 2):g}" for n in "xy") in words
        assert ", ".join(str(row[f"crop_{n}"]) for n in "xywh") in words and row["model"] in words
        rle = json.loads(page.locator("#detail textarea").input_value())
        assert rle == {"size": [96, 128], "counts": row["counts"]}
        point = page.locator("#stage .point")
        assert [float(point.get_attribute(n)) for n in ("cx", "cy")] == [row["point_x"], row["point_y"]]
        assert page.locator("#rows [aria-current]").get_attribute("data-id") == str(row["mask_id"])
    page.keyboard.press("Escape")
    assert page.locator("#detail").is_hidden() and page.locator("#stage .point").count() == 0


def test_a_slider_gives_what_the_filter_would(view: Tab, small: Build) -> None:
    """Promise 5 on the screen."""
    page, rows = view.page, stored(small, "0.png")
    images, candidates = small.images(), small.candidates()
    image_id = images.filter(pc.equal(images["key"], "0.png"))["image_id"][0].as_py()
    image = candidates_of(candidates, image_id, 96, 128, generate_config(small))
    threshold = float(f"{np.median([r['predicted_iou'] for r in rows]):.2f}") + 0.01
    page.locator("#set-pred_iou_thresh").fill(f"{threshold:.2f}")
    page.locator("#live").wait_for()
    page.locator("#controls summary").click()
    page.locator("#set-min_area").fill("200")
    page.locator("#controls .moved", has_text="min_area").first.wait_for()
    tree = {**Viewer(small).settings("default"), "pred_iou_thresh": round(threshold, 2), "min_area": 200}
    masks = image.apply(from_tree(FilterConfig, tree))
    page.locator("#kept", has_text=f"{len(masks)} of {len(image.table)} candidates are masks").wait_for()
    assert sorted(listed(page)) == sorted(masks.mask_id.tolist()) != sorted(r["mask_id"] for r in rows)
    here = [{"counts": masks.counts(i), "height": 96, "width": 128} for i in range(len(masks))]
    assert (alpha(page) == union(here)).all()
    command = page.locator("#words-of-command").text_content()
    assert (
        f"--set filter.pred_iou_thresh={threshold:.2f}".rstrip("0") in command
        and "--set filter.min_area=200" in command
    )
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")  # the settings stay for the next image
    page.locator("#list button[aria-current]", has_text="1.png").wait_for()
    assert page.locator("#live").is_visible()
    page.locator("#reset").click()
    page.locator("#kept", has_text="as stored").wait_for()
    assert sorted(listed(page)) == sorted(r["mask_id"] for r in stored(small, "1.png"))


def test_below_the_floor_the_page_says_why(view: Tab) -> None:
    assert view.page.locator("#set-pred_iou_thresh").get_attribute("min") == "0.25"
    exact = view.page.get_by_label("pred_iou_thresh, exact")
    exact.fill("0.1")
    exact.press("Enter")
    view.page.locator("#kept", has_text="lies below the build's floor 0.25").wait_for()
    view.complaints[:] = [c for c in view.complaints if "422" not in c]  # Chromium logs the refused request


def test_keys_walk_and_toggle(view: Tab, small: Build) -> None:
    page = view.page
    keys = [b.text_content() for b in page.locator("#list b").all()]
    assert sorted(keys) == sorted(small.images()["key"].to_pylist())
    page.keyboard.press("ArrowRight")
    page.locator("#list button[aria-current]", has_text="1.png").wait_for()
    page.keyboard.press("ArrowLeft")
    page.locator("#list button[aria-current]", has_text="0.png").wait_for()
    page.locator("#kept", has_text="as stored").wait_for()
    page.keyboard.press("m")
    assert page.locator("#stage canvas").first.evaluate("e => e.style.visibility") == "hidden"
    assert page.locator("#masks").get_attribute("aria-pressed") == "false"
    page.keyboard.press("m")
    filled = alpha(page).sum()
    page.keyboard.press("o")
    assert 0 < alpha(page).sum() < filled
    page.keyboard.press("o")
    page.keyboard.press("ArrowDown")
    first = stored(small, "0.png")[0]["mask_id"]
    assert page.locator("#detail h2").text_content() == f"Mask {first}"
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("m")  # typing in a field is no command
    assert page.locator("#words").input_value() == "m"
    assert page.locator("#masks").get_attribute("aria-pressed") == "true"


def test_search_sort_and_names_that_are_markup(view: Tab, small: Build) -> None:
    page = view.page
    page.locator("#words").fill("onerror")
    page.locator("#shown", has_text="1 found").wait_for()
    assert [b.text_content() for b in page.locator("#list b").all()] == [MARKUP]
    assert page.title() != "1"
    page.locator("#words").fill("")
    page.locator("#shown", has_text="6 images").wait_for()
    counts = {k: len(stored(small, k)) for k in small.images()["key"].to_pylist()}
    for order, sign in (("most", -1), ("fewest", 1)):
        page.locator("#sort").select_option(order)
        keys = [b.text_content() for b in page.locator("#list b").all()]
        assert [counts[k] for k in keys] == sorted(counts.values(), key=lambda n: sign * n)
    page.locator("#sort").select_option("status")
    page.locator("#list button").first.click()
    page.locator("#notice", has_text="Quarantined: ValueError: cannot decode the image").wait_for()


def test_a_link_opens_the_same_image(view: Tab, chromium: Any) -> None:
    choose_image(view.page, "2.png")
    with tab(chromium) as other:
        other.page.goto(view.page.url)
        other.page.locator("#list button[aria-current]", has_text="2.png").wait_for()


def test_zoom_and_drag_keep_the_pixel_below_the_pointer(view: Tab, small: Build) -> None:
    page = view.page
    x, y = at(page, 40, 30)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -600)
    near = at(page, 40, 30)
    assert abs(near[0] - x) < 6 and abs(near[1] - y) < 6
    page.mouse.down()
    page.mouse.move(x + 60, y + 20, steps=4)
    page.mouse.up()
    moved = at(page, 40, 30)
    assert moved == pytest.approx((near[0] + 60, near[1] + 20), abs=2)
    assert page.locator("#detail").is_hidden()  # a drag is no click
    page.keyboard.press("0")
    assert at(page, 40, 30) == pytest.approx((x, y), abs=1)


def test_arrows_go_on_to_the_next_shelf(small: Build, chromium: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "SHELF", 2)
    with serving(small) as url, tab(chromium) as opened:
        page = opened.page
        page.goto(url)
        page.locator("#shown", has_text="2 images, sorted among units 1–1 of 3").wait_for()
        seen = []
        for _ in range(6):
            page.locator("#list button[aria-current]").wait_for()
            seen.append(page.locator("#list button[aria-current] b").text_content())
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(250)
        assert sorted(seen) == sorted(small.images()["key"].to_pylist())
        page.locator("#shelf-before").click()
        page.locator("#shown", has_text="units 2–2 of 3").wait_for()


def test_without_its_images_masks_are_on_grey(small: Build, chromium: Any, tmp_path: Path) -> None:
    folder = picture_folder(small)
    away = tmp_path / "away"
    shutil.move(folder, away)
    try:
        with serving(small) as url, tab(chromium) as opened:
            opened.page.goto(url)
            choose_image(opened.page, "0.png")
            opened.page.locator("#notice", has_text="The image cannot be shown").wait_for()
            assert str(folder) in opened.page.locator("#notice").text_content()
            assert opened.page.locator("#stage img").evaluate("e => e.style.visibility") == "hidden"
            assert (alpha(opened.page) == union(stored(small, "0.png"))).all()
    finally:
        shutil.move(away, folder)


def test_a_unit_that_cannot_be_read_hides_no_other(small: Build, chromium: Any, tmp_path: Path) -> None:
    made = build_many(picture_folder(small), tmp_path / "b", "run.unit_size=2")
    path = made.path / made.manifests()[-1].files["masks/default"].path
    path.write_bytes(b"broken")
    with serving(made) as url, tab(chromium) as opened:
        opened.page.goto(url)
        opened.page.locator("#broken", has_text="1 of these units cannot be read").wait_for()
        assert opened.page.locator("#list button").count() == 4
        choose_image(opened.page, "0.png")


def test_without_candidates_nothing_can_be_moved(small: Build, chromium: Any, tmp_path: Path) -> None:
    made = build_many(picture_folder(small), tmp_path / "b", candidates=False)
    with serving(made) as url, tab(chromium) as opened:
        opened.page.goto(url)
        opened.page.locator("#kept", has_text="keeps no candidates").wait_for()
        assert opened.page.locator("#controls input").count() == 0
        opened.page.locator("#list button", has_text="0.png").click()
        opened.page.locator("#rows button").first.wait_for()
        assert listed(opened.page) == [r["mask_id"] for r in stored(made, "0.png")]
        assert opened.complaints == []


def test_on_a_phone(address: str, chromium: Any) -> None:
    with tab(chromium, 360, 740, has_touch=True, is_mobile=True) as opened:
        page = opened.page
        page.goto(address)
        page.locator("#list button", has_text="0.png").click()
        page.locator("#rows button").first.wait_for(state="attached")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        box = page.locator("#stage canvas").first.bounding_box()
        assert box["width"] > 300 and box["x"] >= 0
        page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.locator("#tabs button[aria-pressed=true]", has_text="Masks and filter").wait_for()
        assert page.locator("#detail h2").is_visible() and page.locator("#list").is_hidden()


def test_more_than_500_masks(many: Build, chromium: Any) -> None:
    """2250 x 1500 pixels: all are listed, painted and found below the pointer. How fast: benchmarks/viewer.py."""
    rows = stored(many, "large.jpg")
    assert len(rows) >= 500
    with serving(many) as url, tab(chromium, 1440, 900) as opened:
        opened.page.goto(url)
        times = sweep(opened.page)
        assert len(listed(opened.page)) == len(rows)
        assert (alpha(opened.page) == union(rows)).all()
        assert len(times["paint"]) >= 1 and len(times["hover"]) > 10
        assert opened.complaints == []
