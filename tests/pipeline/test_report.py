"""`maskmill report` and what the viewer answers, on real builds."""

import dataclasses
import json
import re
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from maskmill.config import FilterConfig, from_tree
from maskmill.errors import UserError
from maskmill.filters.apply import apply_filter
from maskmill.masks.rle import encode
from maskmill.pipeline.cli import main
from maskmill.pipeline.generate import new_job, open_build
from maskmill.pipeline.plan import read_plan
from maskmill.pipeline.unit import Task
from maskmill.pipeline.worker import Worker
from maskmill.report import shelves, viewer
from maskmill.report.server import serve
from maskmill.report.shelves import Shelves
from maskmill.report.viewer import Viewer
from maskmill.storage.build import Build
from maskmill.storage.originals import MissingOriginal, Originals
from maskmill.storage.pixels import decode_image
from maskmill.storage.schemas import mask_rows
from maskmill.storage.sources import read_items
from tests.browser.many import build_many
from tests.chaos.s3 import make_bucket, moto, upload, use
from tests.pipeline.conftest import build, config, drawing, png, recipe_for


class Page(HTMLParser):
    """What a report holds: texts, and the tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words], catch_exceptions=False)


def report(made: Build, *more: str) -> Page:
    result = run("report", str(made.path), "--quiet", *more)
    assert result.exit_code == 0, result.output
    return Page(Path(result.stdout.strip()).read_text(encoding="utf-8"))


SETTINGS = ("generate.points_per_side=4", "generate.crop_n_layers=1", "run.unit_size=2")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four drawings, one in a subfolder, and a text file that calls itself a JPEG."""
    folder = tmp_path_factory.mktemp("few")
    (folder / "sub").mkdir()
    for i in range(4):
        drawing(i, (96 + 8 * i, 72)).save(folder / ("sub" if i == 3 else ".") / f"{i}.png")
    (folder / "bad.jpg").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def made(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return build(few, tmp_path_factory.mktemp("report") / "b", config(*SETTINGS))


@pytest.fixture(scope="module")
def page(made: Build) -> Page:
    return report(made)


def test_the_page_says_what_the_tables_hold(made: Build, page: Page) -> None:
    found = tiles(page)
    assert found["Images"] == "5" and found["Quarantined"] == "1"
    assert found["Masks"] == str(made.masks().num_rows) and found["Candidates"] == str(made.candidates().num_rows)
    assert "finished" in page.text and "unfinished" not in page.text
    assert "bad.jpg" in page.text and "not a JPEG" in page.text
    assert made.info["recipe"]["model"]["sha256"] in page.text and "filter.box_nms_thresh" in page.text


def tiles(page: Page) -> dict[str, str]:
    """The numbers at the top."""
    return dict(zip(texts_of(page, "dt"), texts_of(page, "dd"), strict=True))


def texts_of(page: Page, tag: str) -> list[str]:
    """The first text after each opening tag of this name, without the commas of numbers."""
    return [match[1].replace(",", "") for match in re.finditer(rf"<{tag}>([^<]*)", page.html)]


def test_the_page_needs_nothing_beside_itself(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "script", "iframe", "object")
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, value)
    assert "url(" not in page.html and "@import" not in page.html


def test_every_picture_and_chart_has_words(page: Page) -> None:
    pictures, charts = page.all("img"), [a for a in page.all("svg") if a.get("role") == "img"]
    assert len(pictures) >= 10 and all(a["alt"] for a in pictures)
    assert len(charts) >= 9 and len(charts) == len(page.all("svg")) and all(a["aria-label"] for a in charts)


def test_a_filter_by_name(made: Build) -> None:
    result = run("report", str(made.path), "--filter", "nosuch")
    assert result.exit_code == 2 and "has no filter 'nosuch': it has default" in result.stderr


def test_without_candidates(few: Path, tmp_path: Path) -> None:
    page = report(build_many(few, tmp_path / "b", candidates=False))
    assert "No candidates are stored" in page.text and "Candidates that pass" not in page.text


def test_without_masks(few: Path, tmp_path: Path) -> None:
    page = report(build_many(few, tmp_path / "b", "filter.max_area=1"))
    assert "There are no masks" in page.text and "Masks per image" in page.text
    assert "Suspicious" not in page.text and not page.all("img")


def test_unfinished_and_not_begun(few: Path, tmp_path: Path) -> None:
    recipe = recipe_for(few, config("run.unit_size=2"))
    opened = open_build(recipe, tmp_path / "b", append=False)
    result = run("report", tmp_path / "b")
    assert result.exit_code == 2 and "no committed unit yet" in result.stderr
    job = new_job(recipe, opened.build, "cpu")
    assert Worker(job).run(Task(opened.pending[0]), lambda *_: None).error is None
    page = report(Build(tmp_path / "b"))
    assert f"1 of {len(opened.pending)} units are committed" in page.text and "unfinished" in page.text


def test_a_sample_says_so(made: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskmill.report.facts.ROWS", 1)
    page = report(made, "--out", str(made.path.parent / "small.html"))
    assert "1 of 3 units" in page.text
    assert tiles(page)["Masks"] == str(made.masks().num_rows)


def test_verify_and_gc_leave_the_page_alone(made: Build, page: Page) -> None:
    assert (made.path / "report.html").exists()
    assert run("verify", str(made.path)).exit_code == 0
    assert "0 files removed" in run("gc", str(made.path)).stdout and (made.path / "report.html").exists()


def test_names_with_markup_stay_text(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    drawing(3).save(tmp_path / "in" / "<b onclick=x>&amp;'\".png")
    (tmp_path / "in" / "<script>.png").write_bytes(b"no")
    page = report(build_many(tmp_path / "in", tmp_path / "b"))
    assert "<b onclick=x>&amp;'\".png" in page.text and "<script>.png" in page.text
    assert not page.all("script") and not any("onclick" in a for _, a in page.tags)


def test_originals_of_every_kind(shards: Path, photos: Path, tmp_path: Path) -> None:
    doubled = tmp_path / "in"
    shutil.copytree(shards, doubled)
    with (doubled / "0000.tar").open("r+b") as f:
        f.truncate(3740)  # in its last member
    rows = {"key": ["a", "b", "a", "c"], "image": [{"bytes": png(drawing(i)), "path": None} for i in range(4)]}
    pq.write_table(pa.table(rows), tmp_path / "set.parquet", row_group_size=2)
    for images in (doubled, photos, tmp_path / "set.parquet"):
        out = tmp_path / f"b-{images.name}"
        open_build(recipe_for(images), out, append=False)
        originals = Originals(Build(out))
        seen = 0
        for unit in read_plan(Build(out).path / "plan.parquet"):
            for item in read_items(unit.kind, unit.url, unit.start, unit.count, unit.keys):
                if item.data is None:
                    with pytest.raises(MissingOriginal):
                        originals.read(unit.shard, item.key)
                else:
                    assert originals.read(unit.shard, item.key) == item.data
                    seen += 1
        assert seen >= 3
        with pytest.raises(MissingOriginal):
            originals.read(unit.shard, "never")
    with pytest.raises(MissingOriginal, match="does not say where"):
        originals.read("other.tar", "a")


def test_images_that_moved(made: Build, few: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "moved"
    shutil.copytree(few, elsewhere)
    data = Originals(made, str(elsewhere)).read(".", "0.png")
    (elsewhere / "0.png").unlink()
    assert data == (few / "0.png").read_bytes()
    with pytest.raises(MissingOriginal, match=re.escape(str(elsewhere))):
        Originals(made, str(elsewhere)).read(".", "0.png")


def test_a_later_filter(few: Path, tmp_path: Path) -> None:
    made = build_many(few, tmp_path / "b", "run.unit_size=2")
    done = run("filter", tmp_path / "b", "--name", "strict", "--set", "filter.pred_iou_thresh=0.8", "--engine", "local")
    assert done.exit_code == 0, done.output
    page = report(made, "--filter", "strict")
    assert tiles(page)["Masks"] == str(made.masks("strict").num_rows) != str(made.masks().num_rows)
    assert "pred_iou_thresh is 0.8" in page.text and (tmp_path / "b" / "report-strict.html").exists()
    view = Viewer(made)
    assert list(view.about()["filters"]) == ["default", "strict"]
    shown = [e["masks"] for e in view.shelves.shelf(0, "strict")["images"]]
    assert sum(shown) == made.masks("strict").num_rows
    entry = entries(view)[0]
    stored = view.image(entry["unit"], entry["image_id"], "strict")["stored"]
    assert view.refilter(entry["unit"], entry["image_id"], view.settings("strict"))["masks"] == stored
    (tmp_path / "b" / "ledger" / "masks.strict" / "000001.json").unlink()  # as if it had not come so far
    assert [e["masks"] for e in Viewer(made).shelves.shelf(0, "strict")["images"]].count(None) == 2


def test_masks_that_were_imported(tmp_path: Path) -> None:
    """No scores, no points, no crops; ids beyond what JavaScript can count to."""
    (tmp_path / "in").mkdir()
    mask = np.zeros((72, 96), bool)
    mask[10:40, 20:60] = True
    rle = {"size": [72, 96], "counts": encode(mask)}
    for i in range(2):
        drawing(i).save(tmp_path / "in" / f"{i}.png")
        image = {"image_id": 2**60 + i, "width": 96, "height": 72, "file_name": f"{i}.png"}
        masks = [{"id": 2**62, "segmentation": rle, "category": "<i>cat</i>"}, {"id": 5, "segmentation": rle}]
        (tmp_path / "in" / f"{i}.json").write_text(json.dumps({"image": image, "annotations": masks}))
    done = run("import", tmp_path / "in", "--format", "sa1b", "--out", tmp_path / "b", "--quiet")
    assert done.exit_code == 0, done.output
    made = Build(tmp_path / "b")
    page = report(made)
    assert "These masks have no scores" in page.text and tiles(page)["Masks"] == "4"
    assert "Near-duplicates pairs of masks of one image with IoU 0.8 or more; 2 found" in page.text
    view = Viewer(made)
    entry = view.shelves.shelf(0, "imported")["images"][0]
    assert entry["image_id"] == str(2**60) and entry["masks"] == 2 and entry["score"] is None
    stored = view.image(entry["unit"], entry["image_id"], "imported")["stored"]
    assert [m["id"] for m in stored] == [5, str(2**62)]
    assert stored[0]["predicted_iou"] is None and stored[0]["point"] is None and stored[0]["crop"] is None
    tree = view.settings("imported")
    assert view.refilter(entry["unit"], entry["image_id"], tree)["masks"] == stored
    assert len(view.refilter(entry["unit"], entry["image_id"], {**tree, "box_nms_thresh": 0.5})["masks"]) == 1


def test_on_s3(few: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with moto(tmp_path / "log") as url:
        use(monkeypatch, url)
        bucket = make_bucket("look")
        upload(shards, f"{bucket}/in")
        made = build_many(f"{bucket}/in", f"{bucket}/out")
        assert run("report", f"{bucket}/out", "--quiet").stdout.strip() == f"{bucket}/out/report.html"
        page = Page((made.path / "report.html").read_text(encoding="utf-8"))
        assert len(page.all("img")) > 10 and "are grey" not in page.text
        view = Viewer(made)
        entry = entries(view)[4]
        assert view.image(entry["unit"], entry["image_id"], "default")["original"] is None
        assert view.pixels(entry["unit"], entry["image_id"], small=False)[:2] == b"\xff\xd8"


# The viewer


def entries(view: Viewer) -> list[dict[str, Any]]:
    return list(view.shelves.shelf(0, "default")["images"])


def test_a_shelf_lists_every_image_with_its_count_and_score(made: Build) -> None:
    listed = {e["image_id"]: e for e in entries(Viewer(made))}
    images, masks = made.images().to_pylist(), made.masks()
    assert set(listed) == {str(row["image_id"]) for row in images}
    for row in images:
        own = masks.filter(pc.equal(masks["image_id"], row["image_id"]))
        entry = listed[str(row["image_id"])]
        assert entry["masks"] == own.num_rows and entry["key"] == row["key"] and entry["error"] == row["error"]
        mean = pc.mean(own["predicted_iou"]).as_py()
        assert entry["score"] == (None if mean is None else pytest.approx(mean, abs=1e-6))


def test_shelves_follow_each_other_and_read_only_their_units(made: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "SHELF", 2)
    view = Shelves(made)
    seen, start = [], 0
    while start is not None:
        shelf = view.shelf(start, "default")
        assert shelf["previous"] == (None if start == 0 else start - 1)
        seen += [e["key"] for e in shelf["images"]]
        start = shelf["next"]
    assert sorted(seen) == sorted(made.images()["key"].to_pylist())
    opened = []
    fresh = Shelves(made)
    read = fresh.read_entries
    monkeypatch.setattr(fresh, "read_entries", lambda m, f: opened.append(m.unit) or read(m, f))
    fresh.shelf(1, "default")
    assert fresh.units == ["000000", "000001", "000002"]
    assert opened == ["000001"] and len(fresh.manifests.values) == 2  # its own, and the one before: where that begins


def test_search_goes_on_where_it_stopped(made: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    view = Shelves(made)
    assert [e["key"] for e in view.find("SUB/", 0, "default")["images"]] == ["sub/3.png"]
    monkeypatch.setattr(shelves, "SEARCHING", -1)  # no time at all: it must still say where it is
    assert view.find("png", 1, "default") == {"images": [], "next": 1, "units": 3}


CHANGES: list[dict[str, Any]] = [
    {},
    {"pred_iou_thresh": 0.3, "box_nms_thresh": 0.9},
    {"stability_score_thresh": 0.9, "min_mask_region_area": 30},
    {"crop_nms_thresh": 0.3, "max_area_share": 0.4, "sample": 0.5},
]


def test_a_moved_filter_gives_what_a_fresh_run_would(made: Build, few: Path) -> None:
    """Promise 5, by the viewer's way."""
    view = Viewer(made)
    entry = next(e for e in entries(view) if e["key"] == "1.png")
    item = next(read_items("folder", str(few), keys=["1.png"]))
    worker = Worker(new_job(recipe_for(few, config(*SETTINGS)), made.path, "cpu"))
    candidates, _ = worker.segment(decode_image(item.data or b"", 9), int(entry["image_id"]))
    sizes = set()
    for change in CHANGES:
        tree = {**view.settings("default"), **change}
        masks = apply_filter(candidates, from_tree(FilterConfig, tree), 5, int(entry["image_id"]))
        answer = view.refilter(entry["unit"], entry["image_id"], tree)
        fresh = view.to_json(mask_rows(int(entry["image_id"]), masks, answer["masks"][0]["model"]))
        assert answer["masks"] == fresh
        assert len(answer["masks"]) + sum(answer["dropped"].values()) == answer["candidates"] == len(candidates)
        sizes.add(len(fresh))
    assert len(sizes) > 2


def test_an_unmoved_filter_gives_what_is_stored(made: Build) -> None:
    view = Viewer(made)
    for entry in entries(view):
        stored = view.image(entry["unit"], entry["image_id"], "default")["stored"]
        assert view.refilter(entry["unit"], entry["image_id"], view.settings("default"))["masks"] == stored
        assert len(stored) == entry["masks"]


def test_below_the_floor_is_refused(made: Build) -> None:
    view = Viewer(made)
    entry = next(e for e in entries(view) if e["status"] == "ok")
    with pytest.raises(UserError, match=r"filter.pred_iou_thresh=0.1 lies below the build's floor 0.25"):
        view.refilter(entry["unit"], entry["image_id"], {"pred_iou_thresh": 0.1, "stability_score_thresh": 0.9})


def test_every_setting_of_a_filter_has_a_control() -> None:
    found = {c["name"]: c for c in viewer.controls({"pred_iou_thresh": 0.5})}
    assert list(found) == [f.name for f in dataclasses.fields(FilterConfig)]
    assert found["pred_iou_thresh"]["min"] == 0.5
    for name, control in found.items():
        for choice in control.get("choices", []):
            FilterConfig(**{name: (choice,) if control["kind"] == "tokens" else choice})


@pytest.fixture
def address(made: Build) -> Iterator[str]:
    with serve(Viewer(made), 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def get(url: str, **headers: str) -> tuple[int, bytes, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as e:
        return e.code, e.read(), e.headers["Content-Type"]


def test_the_server_answers_this_machine_only(address: str, made: Build) -> None:
    assert get(address + "/")[0] == 200
    assert get(address + "/", Host="localhost:9")[0] == 200
    assert get(address + "/", Host="evil.example:80")[0] == 403  # a foreign page that resolves to 127.0.0.1
    for path in ("/../build.json", "/static/viewer.js", "/%2e%2e/build.json", "/build.json", "/api/nothing"):
        assert get(address + path)[0] == 404
    with serve(Viewer(made), 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        with pytest.raises(UserError, match=f"--port {server.server_address[1]} cannot be used"):
            serve(Viewer(made), server.server_address[1])


def test_bad_questions_get_one_line(address: str, made: Build) -> None:
    entry = entries(Viewer(made))[0]
    where = f"unit={entry['unit']}&id={entry['image_id']}"
    for path, code, words in (
        ("/api/image?unit=nope&id=1&filter=default", 422, "unit 'nope' is not committed"),
        (f"/api/image?unit={entry['unit']}&id=1&filter=default", 422, "has no image 1"),
        ("/api/image?unit=000000", 404, "id"),
        ("/api/shelf?start=x&filter=default", 422, "invalid literal"),
        (f"/api/refilter?{where}&settings=[", 422, ""),
        (f"/api/refilter?{where}&settings=%7B%22nms%22:1%7D", 422, "unknown config key 'nms'"),
    ):
        status, body, kind = get(address + path)
        assert (status, kind) == (code, "application/json"), path
        assert words in json.loads(body)["error"]


def test_a_broken_file_costs_one_answer(few: Path, tmp_path: Path) -> None:
    made = build_many(few, tmp_path / "b", "run.unit_size=2")
    with serve(Viewer(made), 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        good, bad = (entries(Viewer(made))[i] for i in (0, -1))
        path = made.path / made.manifests()[-1].files["masks/default"].path
        path.write_bytes(path.read_bytes()[:100])
        status, body, _ = get(f"{address}/api/image?unit={bad['unit']}&id={bad['image_id']}&filter=default")
        assert status == 500 and "Parquet magic bytes not found" in json.loads(body)["error"]
        assert get(f"{address}/api/image?unit={good['unit']}&id={good['image_id']}&filter=default")[0] == 200
        shelf = json.loads(get(f"{address}/api/shelf?start=0&filter=default")[1])
        assert len(shelf["images"]) == 4 and [w[:12] for w in shelf["broken"]] == [f"unit {bad['unit']}:"]
        server.shutdown()


def test_view_has_help_with_an_example() -> None:
    assert "maskmill view masks/" in run("view", "--help").stdout
    assert "maskmill report masks/" in run("report", "--help").stdout
    assert "is not a build" in run("view", "/nowhere").stderr
