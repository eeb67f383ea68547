"""Figures over the rounds of the data engine, as inline SVG: one place for each round, stage by stage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from maskmill.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    PLOT_H,
    PLOT_W,
    TOP,
    WIDTH,
    Axes,
    Series,
    ceiling,
    legend,
    scale,
    short,
    ticks,
)  # fmt: skip
from maskmill.report.engine_run import STAGES

DOT = 4.0  # radius
NEAR = 13.0  # pixels between two things that can both be read


@dataclass(frozen=True)
class Curve:
    """Values at the rounds, None where there is none; `spans` are their intervals.

    refused: what a model that was not promoted reached there; drawn as a ring beside the line, which is of the model
    that serves.
    """

    name: str
    colour: str
    values: Sequence[float | None]
    spans: Sequence[tuple[float, float] | None] = ()
    refused: Sequence[float | None] = ()

    @property
    def known(self) -> list[tuple[int, float]]:
        """Place and value."""
        return [(i, v) for i, v in enumerate(self.values) if v is not None]

    @property
    def reach(self) -> list[float]:
        """All that must fit on the axis."""
        ends = [end for span in self.spans if span is not None for end in span]
        return [v for _, v in self.known] + [v for v in self.refused if v is not None] + ends


def curves(rounds: Sequence[str], series: Sequence[Curve], axes: Axes, low: float = 0.0, form: str = "") -> str:
    """A chart over `rounds` (names such as semi-2) from `low` up; `form` is the format of the numbers at its ends."""
    side = 18 if len(rounds) > 1 else PLOT_W / 2  # a single round stands in the middle
    x = scale(0, max(1, len(rounds) - 1), LEFT + side, LEFT + PLOT_W - 18)
    top = low + ceiling(max(v for s in series for v in s.reach) - low)
    y = scale(low, top, TOP + PLOT_H, TOP)
    grid = [f'<path class="grid" d="M{LEFT} {y(t):.1f}H{LEFT + PLOT_W}"/>' for t in ticks(low, top)]
    texts = [f'<text class="end" x="{LEFT - 6}" y="{y(t) + 4:.1f}">{short(t)}</text>' for t in ticks(low, top)]
    shapes = [shape for s in series for shape in drawn(s, rounds, x, y)]
    return (
        f'<svg class="chart rounds" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(axes.alt)}">'
        f"{''.join(grid)}{''.join(stages(rounds, x))}{''.join(shapes)}{''.join(numbers(series, x, y, form))}"
        f'<path class="axis" d="M{LEFT} {TOP + PLOT_H}H{LEFT + PLOT_W}"/>{"".join(texts)}'
        f'<text class="mid name" transform="translate(11 {TOP + PLOT_H / 2}) rotate(-90)">{escape(axes.y)}</text>'
        f"</svg>" + legend([Series(s.name, [], s.colour) for s in series])  # type: ignore[arg-type]
    )


def drawn(s: Curve, rounds: Sequence[str], x: scale, y: scale) -> Iterator[str]:
    """Intervals, line, dots, rings."""
    for i, span in enumerate(s.spans):
        if span is not None:
            yield f'<path class="span {s.colour}" d="M{x(i):.1f} {y(span[0]):.1f}V{y(span[1]):.1f}"/>'
    points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in s.known)
    yield f'<polyline class="line {s.colour}" points="{points}"/>'
    for i, v in s.known:
        words = escape(f"{s.name}, {rounds[i]}: {short(v)}")
        place = f'cx="{x(i):.1f}" cy="{y(v):.1f}" r="{DOT}"'
        yield f'<circle class="dot {s.colour}" {place}><title>{words}</title></circle>'
    for i, refused in enumerate(s.refused):
        if refused is not None:
            words = escape(f"{s.name}, {rounds[i]}: {short(refused)}, not promoted")
            place = f'cx="{x(i):.1f}" cy="{y(refused):.1f}" r="{DOT + 0.5}"'
            yield f'<circle class="ring {s.colour}" {place}><title>{words}</title></circle>'


def numbers(series: Sequence[Curve], x: scale, y: scale, form: str) -> Iterator[str]:
    """The first and the last value of each line, above or below its dot, where there is room."""
    taken: dict[int, list[float]] = {}
    said: dict[int, list[float]] = {}
    for s in series:
        for i, v in enumerate(s.values):
            taken.setdefault(i, []).extend(y(w) for w in (v, *s.refused[i : i + 1]) if w is not None)
    for s in series:
        for i, v in dict.fromkeys([s.known[0], s.known[-1]]):
            if v in said.setdefault(i, []):
                continue
            others = sorted(taken[i], key=lambda at: abs(at - y(v)))[1:]  # but for its own dot
            for middle in (y(v) - NEAR, y(v) + NEAR):
                if middle < TOP + PLOT_H - 4 and all(abs(middle - other) >= NEAR for other in others):
                    taken[i].append(middle)
                    said[i].append(v)
                    words = format(v, form) if form else short(v)
                    yield f'<text class="mid value" x="{x(i):.1f}" y="{middle + 4:.1f}">{words}</text>'
                    break


def stages(rounds: Sequence[str], x: scale) -> Iterator[str]:
    """The number of each round, the name of its stage below, and a line between stages."""
    floor = TOP + PLOT_H
    for stage, group in groupby(enumerate(rounds), key=lambda pair: pair[1].rpartition("-")[0]):
        places = [(i, name.rpartition("-")[2]) for i, name in group]
        first, last = places[0][0], places[-1][0]
        alone = stage in ("start", "automatic")
        if first:
            yield f'<path class="part" d="M{x(first - 0.5):.1f} {TOP}V{floor + BOTTOM - 8}"/>'
        for i, number in () if alone else places:
            yield f'<text class="mid" x="{x(i):.1f}" y="{floor + 16}">{number}</text>'
        below = floor + (16 if alone else 33)
        yield f'<text class="mid name" x="{x((first + last) / 2):.1f}" y="{below}">{STAGES[stage]}</text>'
