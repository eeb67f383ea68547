"""Charts as inline SVG. Colours and fonts are the style sheet's; each chart says in words what it shows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 42
PLOT_W, PLOT_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM


@dataclass(frozen=True)
class Series:
    """One set of values with its name; `colour` is a class of the style sheet: c0, c1, c2 or mute."""

    name: str
    values: np.ndarray  # one for each bin (bars) or point (lines)
    colour: str


@dataclass(frozen=True)
class Mark:
    """A vertical line: a threshold."""

    x: float
    name: str


@dataclass(frozen=True)
class Axes:
    """What stands beside a chart: labels of x and y, and its description for those who do not see it."""

    x: str
    y: str
    alt: str


def bars(edges: np.ndarray, series: Sequence[Series], axes: Axes, marks: Sequence[Mark] = ()) -> str:
    """A histogram: bins `edges` (B + 1, evenly wide), each series over the one before it, the first at the back."""
    x = scale(float(edges[0]), float(edges[-1]), LEFT, LEFT + PLOT_W)
    top = ceiling(max((float(s.values.max()) for s in series if len(s.values)), default=0.0))
    y = scale(0, top, TOP + PLOT_H, TOP)
    shapes = []
    for s in series:
        for a, b, v in zip(edges[:-1], edges[1:], s.values, strict=True):
            if v > 0:
                words = f"{s.name}: {short(float(v))} at {short(float(a))} to {short(float(b))}"
                place = f'x="{x(a) + 0.5:.1f}" y="{y(v):.1f}" width="{max(0.5, x(b) - x(a) - 1):.1f}"'
                height = f'height="{TOP + PLOT_H - y(v):.1f}"'
                shapes.append(f'<rect class="fill {s.colour}" {place} {height}><title>{escape(words)}</title></rect>')
    return frame(shapes, axes, ticks(float(edges[0]), float(edges[-1])), ticks(0, top), x, y, marks) + legend(series)


def steps(edges: np.ndarray, series: Sequence[Series], axes: Axes, marks: Sequence[Mark] = ()) -> str:
    """Histograms as outlines, to be compared: bins `edges` (B + 1)."""
    x = scale(float(edges[0]), float(edges[-1]), LEFT, LEFT + PLOT_W)
    top = ceiling(max((float(s.values.max()) for s in series if len(s.values)), default=0.0))
    y = scale(0, top, TOP + PLOT_H, TOP)
    shapes = []
    for s in series:
        path = f"M{x(edges[0]):.1f} {y(0):.1f}"
        for a, b, v in zip(edges[:-1], edges[1:], s.values, strict=True):
            path += f"L{x(a):.1f} {y(v):.1f}L{x(b):.1f} {y(v):.1f}"
        path += f"L{x(edges[-1]):.1f} {y(0):.1f}"
        shapes.append(f'<path class="area {s.colour}" d="{path}"><title>{escape(s.name)}</title></path>')
    return frame(shapes, axes, ticks(float(edges[0]), float(edges[-1])), ticks(0, top), x, y, marks) + legend(series)


def lines(points: np.ndarray, series: Sequence[Series], axes: Axes, marks: Sequence[Mark] = ()) -> str:
    """Values over `points` (P, ascending); a NaN leaves a gap at an end."""
    x = scale(float(points[0]), float(points[-1]), LEFT, LEFT + PLOT_W)
    top = ceiling(max((float(np.nanmax(s.values)) for s in series), default=0.0))
    y = scale(0, top, TOP + PLOT_H, TOP)
    shapes = []
    for s in series:
        known = [(a, v) for a, v in zip(points, s.values, strict=True) if not math.isnan(v)]
        path = " ".join(f"{x(a):.1f},{y(v):.1f}" for a, v in known)
        shapes.append(f'<polyline class="line {s.colour}" points="{path}"><title>{escape(s.name)}</title></polyline>')
    return frame(shapes, axes, ticks(float(points[0]), float(points[-1])), ticks(0, top), x, y, marks) + legend(series)


def heat(grid: np.ndarray, alt: str) -> str:
    """Cells shaded by value, row 0 on top, for instance where the centers of masks lie."""
    rows, columns = grid.shape
    most = float(grid.max()) or 1.0
    cells = [
        f'<rect x="{j}" y="{i}" width="1" height="1" fill-opacity="{grid[i, j] / most:.3f}"/>'
        for i, j in np.argwhere(grid > 0)
    ]
    return (
        f'<svg class="heat" shape-rendering="crispEdges" viewBox="0 0 {columns} {rows}" '
        f'role="img" aria-label="{escape(alt)}">'
        f'<rect class="ground" width="{columns}" height="{rows}"/>{"".join(cells)}</svg>'
    )


class scale:
    """A linear map of [low, high] to [start, end] pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start = low, start
        self.slope = (end - start) / ((high - low) or 1.0)

    def __call__(self, value: float) -> float:
        return self.start + (float(value) - self.low) * self.slope


def frame(
    shapes: Sequence[str],
    axes: Axes,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x: scale,
    y: scale,
    marks: Sequence[Mark],
) -> str:
    """Grid, axes and marks around the shapes."""
    floor, end = TOP + PLOT_H, LEFT + PLOT_W
    grid = [f'<path class="grid" d="M{LEFT} {y(t):.1f}H{end}"/>' for t in y_ticks]
    y_texts = [f'<text class="end" x="{LEFT - 6}" y="{y(t) + 4:.1f}">{short(t)}</text>' for t in y_ticks]
    x_texts = [f'<text class="mid" x="{x(t):.1f}" y="{floor + 16}">{short(t)}</text>' for t in x_ticks]
    names = (
        f'<text class="mid name" x="{LEFT + PLOT_W / 2}" y="{HEIGHT - 6}">{escape(axes.x)}</text>'
        f'<text class="mid name" transform="translate(11 {TOP + PLOT_H / 2}) rotate(-90)">{escape(axes.y)}</text>'
    )
    cuts = [cut(m, x, i) for i, m in enumerate(marks)]
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(axes.alt)}">'
        f'{"".join(grid)}{"".join(shapes)}<path class="axis" d="M{LEFT} {floor}H{end}"/>{"".join(cuts)}'
        f"{''.join(x_texts)}{''.join(y_texts)}{names}</svg>"
    )


def cut(mark: Mark, x: scale, line: int) -> str:
    """A threshold with its name, on the side where there is room."""
    at = x(mark.x)
    right = at > LEFT + PLOT_W * 0.6
    side, dx = ("end", -5) if right else ("", 5)
    words = f'<text class="{side} cutname" x="{at + dx:.1f}" y="{TOP + 10 + 14 * line}">{escape(mark.name)}</text>'
    return f'<path class="cut" d="M{at:.1f} {TOP}V{TOP + PLOT_H}"/>{words}'


def legend(series: Sequence[Series]) -> str:
    """Names beside their colours; none for a single series."""
    if len(series) < 2:
        return ""
    items = "".join(f'<li><i class="key {s.colour}"></i>{escape(s.name)}</li>' for s in series)
    return f'<ul class="legend">{items}</ul>'


def ceiling(value: float) -> float:
    """The end of an axis that holds `value`."""
    if value <= 0:
        return 1.0
    step = nice(value / 4)
    return math.ceil(value / step - 1e-9) * step


def nice(value: float) -> float:
    """The next 1, 2, 2.5 or 5 times a power of ten, at or above `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= value * (1 - 1e-9))


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers in [low, high]."""
    step = nice((high - low) / 5)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number as people write it: 1,200; 0.25; 3."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
