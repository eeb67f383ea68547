"""`maskmill engine report`: its figures are those of the records, and nothing in it comes from elsewhere."""

import base64
import io
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from maskmill.pipeline.cli import main
from maskmill.report.engine_pictures import EDITS, shots
from tests.pipeline.rounds.runs import make_run
from tests.pipeline.rounds.shapes import SIDE, shapes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole run, and one without retraining of which three rounds are over."""
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder / "whole"), make_run(folder / "frozen", rounds=3, gain=0.0, retrain=False)


def report(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["engine", "report", *map(str, arguments)], catch_exceptions=False)


def rows(page: str, table: int = 0) -> dict[str, list[str]]:
    """First cell -> the others, of one of the page's tables."""
    text = re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL)[table]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    plain = [[unescape(re.sub("<[^>]+>", "", cell)).strip() for cell in row] for row in cells]
    return {first: rest for first, *rest in plain}


def test_the_page_of_a_run(runs: tuple[Path, Path]) -> None:
    whole, _ = runs
    result = report(whole)
    assert result.exit_code == 0 and result.output.splitlines()[-1] == str(whole / "report.html")
    page = (whole / "report.html").read_text()
    table = rows(page)
    assert list(table) == ["start-0", "assisted-1", "assisted-2", "semi-1", "automatic-1"]
    assert table["assisted-1"][:5] == ["10", "40", "4.0", "24.5", "3.0"]
    assert table["semi-1"][5:11] == [
        "40",
        "75%",
        "12%",
        "12%",
        "30%",
        "0.91",
    ]  # shown, accepted, fixed, rejected; added
    assert table["semi-1"][11:-1] == ["0.700", "0.800", "0.850", "7.0", "9.0", "0.35", "0.43"]
    assert table["assisted-2"][-1] == "6c1a6f08 not promoted" and table["automatic-1"][:3] == ["30", "210", "7.0"]
    assert "mIoU@1 fell from 0.6 to &lt;0.4&gt;" in page
    assert rows(page, 1)["whole"] == ["30", "210", "7.0", "4", "24", "18", "75.0%", "0.841", "88.9%", "33.3%"]
    assert rows(page, 2)["semi-1"] == ["1,234.5", "1,234.5", "99.2"]
    assert '<span class="badge good">finished</span>' in page and "24.5 → 12.2" in page
    assert len(re.findall(r'<svg class="chart rounds"', page)) == 9
    assert page.count('class="ring c0"') == 3, "mIoU@1, NoC@85 and AR of the model that was not promoted"
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)


def test_several_runs_on_the_same_axes(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """A line for each run, in what they differ, and what is not over yet."""
    result = report(*runs, "--out", tmp_path / "both.html", "--quiet")
    assert result.exit_code == 0 and result.output == f"{tmp_path / 'both.html'}\n"
    page = (tmp_path / "both.html").read_text()
    short, differs = rows(page), rows(page, 1)
    assert short["whole"][:5] == ["24.5 → 12.2", "6.5", "75%", "134", "0.51"]
    assert short["frozen"] == ["24.5 → 12.2", "–", "–", "84", "0.42", "0.500 → 0.500", "12.0 → 10.0", "–", "–"]
    assert differs == {"retrain": ["True", "False"]}
    assert "<b>frozen</b> is not finished: 3 of 5 rounds are over" in page and "<b>whole</b>" not in page
    seconds = page[page.index("<h3>Seconds a mask</h3>") :].partition("</figure>")[0]
    lines = [points.split() for points in re.findall(r'<polyline[^>]* points="([^"]+)"', seconds)]
    assert [len(line) for line in lines] == [3, 2] and lines[0][:2] == lines[1], "the same rounds at the same places"
    assert re.findall(r"</i>(\w+)</li>", seconds) == ["whole", "frozen"]


def test_masks_are_coloured_by_who_made_them(runs: tuple[Path, Path]) -> None:
    """The middle of each shape has its edit's colour in it; the words count them."""
    found = list(shots(runs[0] / "rounds" / "semi-1" / "masks", 4))
    assert [one.words for one in found] == ["1 drawn, 1 accepted, 1 fixed"] * 2
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[0].uri.partition(",")[2]))).convert("RGB"), float)
    plain = next(shots(runs[0] / "automatic", 1))
    assert plain.words == "3 masks" and plain.uri != found[0].uri
    scale = image.shape[0] / SIDE
    for (x, y), edit in zip(((26, 28), (70, 30), (46, 72)), ("accepted", "fixed", "drawn"), strict=True):
        ground = shapes(0)[0][y, x].astype(float)
        wanted = (ground + np.array(EDITS[edit])) / 2
        assert np.abs(image[round((y + 0.5) * scale), round((x + 0.5) * scale)] - wanted).max() < 20


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    """No round is over: the page and the table say so."""
    run = make_run(tmp_path / "run", rounds=0)
    assert not (run / "rounds").exists()
    assert report(run).exit_code == 0
    page = (run / "report.html").read_text()
    assert "is not finished: 0 of 5 rounds are over" in page and "<svg" not in page
    result = CliRunner().invoke(main, ["engine", "status", str(run)])
    assert result.exit_code == 0 and "0 of 5 rounds are done" in result.output


def test_what_is_no_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["engine", "report", str(tmp_path)])
    assert result.exit_code == 2 and "is no run of the data engine" in result.output
