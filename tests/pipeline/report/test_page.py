"""`maskmill report`, on real builds."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskmill.masks.rle import encode
from maskmill.pipeline.generate import new_job, open_build
from maskmill.pipeline.plan import read_plan
from maskmill.pipeline.unit import Task
from maskmill.pipeline.worker import Worker
from maskmill.report.viewer import Viewer
from maskmill.storage.build import Build
from maskmill.storage.originals import MissingOriginal, Originals
from maskmill.storage.sources import read_items
from tests.browser.many import build_many
from tests.chaos.s3 import make_bucket, moto, upload, use
from tests.pipeline.conftest import config, drawing, png, recipe_for
from tests.pipeline.report.conftest import entries, run


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


def report(made: Build, *more: str) -> Page:
    result = run("report", str(made.path), "--quiet", *more)
    assert result.exit_code == 0, result.output
    return Page(Path(result.stdout.strip()).read_text(encoding="utf-8"))


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


def test_masks_are_not_drawn_on_another_picture(few: Path, tmp_path: Path) -> None:
    """A file that was changed since, of the same name and size."""
    folder = tmp_path / "photos"
    shutil.copytree(few, folder)
    made = build_many(folder, tmp_path / "b", "run.unit_size=2")
    view, entry = Viewer(made), entries(Viewer(made))[0]
    assert view.pixels(entry["unit"], entry["image_id"], small=False)
    for path in folder.glob("[0-9]*"):
        Image.new("RGB", Image.open(path).size).save(path)
    assert "its bytes are others now" in report(made).text
    with pytest.raises(MissingOriginal, match="its bytes are others now"):
        Viewer(made).pixels(entry["unit"], entry["image_id"], small=False)


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
    part = report(made, "--filter", "strict")
    few_masks, few_images = int(tiles(part)["Masks"]), int(tiles(part)["Images"])
    assert (
        few_images == int(tiles(page)["Images"]) - 2 and "has reached" in part.text and "has reached" not in page.text
    )
    good = few_images - int(tiles(part)["Quarantined"])
    assert tiles(part)["Masks an image"] == f"{few_masks / good:.1f}"
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
