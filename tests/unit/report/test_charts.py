"""Charts are well-formed SVG whose shapes have the sizes of the numbers."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from maskmill.report import charts
from maskmill.report.charts import Axes, Mark, Series

AXES = Axes("x <&>", "y", 'about "this"')


def parse(svg: str) -> ET.Element:
    return ET.fromstring(f"<div>{svg}</div>")


def test_bars_are_as_high_as_their_values() -> None:
    values = np.array([0.0, 10.0, 5.0, 20.0])
    root = parse(charts.bars(np.arange(5.0), [Series("a<b", values, "c0")], AXES))
    heights = [float(r.attrib["height"]) for r in root.iter("rect")]
    assert heights == pytest.approx([charts.PLOT_H / 2, charts.PLOT_H / 4, charts.PLOT_H], abs=0.06)
    assert root[0].attrib["aria-label"] == 'about "this"' and root[0].attrib["role"] == "img"


def test_a_mark_stands_at_its_value_with_its_name() -> None:
    root = parse(charts.lines(np.array([0.0, 1.0]), [Series("s", np.array([0.0, 4.0]), "c0")], AXES, [Mark(0.25, "t")]))
    cut = next(e for e in root.iter("path") if e.attrib["class"] == "cut")
    at = float(re.match(r"M([\d.]+)", cut.attrib["d"])[1])  # type: ignore[index]
    assert at == pytest.approx(charts.LEFT + charts.PLOT_W / 4, abs=0.1)
    assert [t.text for t in root.iter("text") if "cutname" in t.attrib["class"]] == ["t"]


def test_lines_leave_out_what_is_not_known() -> None:
    series = Series("s", np.array([np.nan, 1.0, 2.0]), "c1")
    line = next(parse(charts.lines(np.array([0.0, 0.5, 1.0]), [series], AXES)).iter("polyline"))
    assert len(line.attrib["points"].split()) == 2


def test_heat_is_strongest_where_most_are() -> None:
    grid = np.array([[0, 0.25], [0.5, 0.25]])
    cells = [r for r in parse(charts.heat(grid, "alt")).iter("rect") if "ground" not in r.attrib.get("class", "")]
    assert {(c.attrib["x"], c.attrib["y"]): float(c.attrib["fill-opacity"]) for c in cells} == {
        ("1", "0"): 0.5,
        ("0", "1"): 1.0,
        ("1", "1"): 0.5,
    }


def test_nothing_to_show_is_still_a_chart() -> None:
    empty = Series("s", np.zeros(3), "c0")
    for svg in (charts.bars(np.arange(4.0), [empty], AXES), charts.steps(np.arange(4.0), [empty], AXES)):
        assert len(list(parse(svg).iter("text"))) > 4


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.25, 1), (0, 7), (0, 1234), (0.88, 0.95), (0, 3e-4)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    assert charts.ceiling(high) >= high


def test_legend_names_several_series_only() -> None:
    one, two = Series("first", np.ones(2), "c0"), Series("second", np.ones(2), "c1")
    assert charts.legend([one]) == ""
    assert [li[0].tail for li in ET.fromstring(charts.legend([one, two]))] == ["first", "second"]
