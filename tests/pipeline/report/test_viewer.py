"""What the viewer answers, on real builds."""

import dataclasses
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from maskmill.config import FilterConfig, from_tree
from maskmill.errors import UserError
from maskmill.filters.apply import apply_filter
from maskmill.pipeline.generate import new_job
from maskmill.pipeline.worker import Worker
from maskmill.report import shelves, viewer
from maskmill.report.server import serve
from maskmill.report.shelves import Shelves
from maskmill.report.viewer import Viewer
from maskmill.storage.build import Build
from maskmill.storage.pixels import decode_image
from maskmill.storage.schemas import mask_rows
from maskmill.storage.sources import read_items
from tests.browser.many import build_many
from tests.pipeline.conftest import config, recipe_for
from tests.pipeline.report.conftest import SETTINGS, entries, run


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
