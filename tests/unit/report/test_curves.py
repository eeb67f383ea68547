"""Curves over rounds: dots where the values are, rings for what did not serve, numbers that can be read."""

import re
import xml.etree.ElementTree as ET

import pytest

from maskmill.report import charts
from maskmill.report.charts import Axes
from maskmill.report.curves import NEAR, Curve, curves

ROUNDS = ["start-0", "assisted-1", "assisted-2", "semi-1", "automatic-1"]
AXES = Axes("round", "mIoU", 'about "this"')


def parse(svg: str) -> ET.Element:
    return ET.fromstring(f"<div>{svg}</div>")


def circles(root: ET.Element, kind: str) -> list[tuple[float, float]]:
    found = [c for c in root.iter("circle") if c.attrib["class"].split()[0] == kind]
    return [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in found]


def test_dots_are_where_the_values_are() -> None:
    """Equal steps from round to round; a round without a value has no dot; the axis begins where it should."""
    root = parse(curves(ROUNDS, [Curve("a<b", "c0", [0.5, None, 0.7, 0.9, None])], AXES, low=0.4))
    dots = circles(root, "dot")
    assert len(dots) == 3
    step = dots[2][0] - dots[1][0]
    assert dots[1][0] - dots[0][0] == pytest.approx(2 * step, abs=0.2)
    floor = charts.TOP + charts.PLOT_H
    assert (floor - dots[2][1]) / (floor - dots[0][1]) == pytest.approx(5, rel=0.02)  # 0.5 above 0.4, and 0.1
    line = next(root.iter("polyline")).attrib["points"].split()
    assert [tuple(map(float, p.split(","))) for p in line] == dots


def test_rings_intervals_and_stages() -> None:
    series = Curve("mIoU", "c1", [0.5, 0.6, 0.6], [(0.45, 0.55), None, (0.5, 0.7)], [None, None, 0.3])
    root = parse(curves(ROUNDS[:3], [series], AXES))
    (ring,), dots = circles(root, "ring"), circles(root, "dot")
    assert ring[0] == dots[2][0] and ring[1] > dots[2][1]
    spans = [p.attrib["d"] for p in root.iter("path") if p.attrib["class"] == "span c1"]
    assert len(spans) == 2 and all(re.match(r"M[\d.]+ [\d.]+V[\d.]+$", d) for d in spans), "within the chart"
    words = [t.text for t in root.iter("text")]
    assert words.count("start") == words.count("assisted") == 1 and {"1", "2"} <= set(words)
    assert len([p for p in root.iter("path") if p.attrib["class"] == "part"]) == 1
    assert "mIoU, assisted-2: 0.3, not promoted" in [t.text for t in root.iter("title")]
    assert root[0].attrib["aria-label"] == 'about "this"'


def test_numbers_never_lie_on_each_other_or_on_dots() -> None:
    """Ten lines that end close together: those numbers that fit are shown, each once."""
    series = [Curve(str(i), "c0", [0.0, 0.5 + 0.02 * i]) for i in range(10)]
    root = parse(curves(ROUNDS[1:3], series, AXES, form=".2f"))
    shown = [
        (float(t.attrib["x"]), float(t.attrib["y"]) - 4) for t in root.iter("text") if "value" in t.attrib["class"]
    ]
    first = min(x for x, _ in shown)
    assert sum(x == first for x, _ in shown) == 1, "all begin with the same number"
    ends = [y for x, y in shown if x != first] + [y for x, y in circles(root, "dot") if x != first]
    labels = [y for x, y in shown if x != first]
    assert labels
    for label in labels:
        assert sum(abs(label - other) < NEAR - 0.2 for other in ends) == 1, "only itself"


def test_a_single_round_stands_in_the_middle_and_zero_on_the_axis() -> None:
    root = parse(curves(["semi-1"], [Curve("small", "c0", [0.0]), Curve("all", "c1", [0.0])], AXES))
    assert [x for x, _ in circles(root, "dot")] == pytest.approx([charts.LEFT + charts.PLOT_W / 2] * 2)
    (value,) = [t for t in root.iter("text") if "value" in t.attrib["class"]]
    assert float(value.attrib["y"]) < charts.TOP + charts.PLOT_H, "not among the names of rounds"
