"""The figure of a run of the data engine (paper, section 4): people's effort, the model's quality, by round."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from maskmill.report.charts import Axes
from maskmill.report.curves import Curve, curves
from maskmill.report.engine_run import Round, Run, all_names

Value = Callable[[Round], float | None]
SIZES = ("all", "small", "medium", "large")
COLOURS = 6  # of the style sheet


def at(path: str) -> Value:
    """What stands at a place of the record."""
    return lambda r: r.get(path)


def share(edit: str) -> Value:
    """Of what was prefilled."""
    return lambda r: r.share(edit, "prefilled")


def objects(r: Round) -> float | None:
    """True objects of an image, of which the annotators are to find as many as they can."""
    found, images = r.get("annotation/objects"), r.get("annotation/images") or r.images
    return None if found is None or not images else found / images


@dataclass(frozen=True)
class Panel:
    """One chart. Of a single run it shows all `values`; of several, the first of them, a line for each run.

    stages: whose rounds; alone: what is said besides of a single run; first: what the first value is, beside others.
    spans: where the interval of a value stands; refused: the value of a model that was not promoted.
    low: where the axis begins; None: below the lowest value.
    """

    title: str
    y: str
    words: str
    stages: tuple[str, ...]
    values: dict[str, Value]
    alone: str = ""
    first: str = ""
    form: str = ""
    low: float | None = 0.0
    spans: dict[str, str] = field(default_factory=dict)
    refused: dict[str, Value] = field(default_factory=dict)


PEOPLE = ("assisted", "semi")
MODELS = ("start", "assisted", "semi")
RING = "By the model that serves after the round, on the held-out part. A ring: a model that was not promoted."


def miou(title: str, clicks: Sequence[str]) -> Panel:
    """mIoU after some numbers of clicks."""
    return Panel(
        title, "mIoU", RING, MODELS, {f"@{n}": at(f"metrics/miou/{n}/mean") for n in clicks}, low=None, form=".3f",
        spans={"@1": "metrics/miou/1"}, alone="Bars: the 95% interval of @1.",
        refused={f"@{n}": at(f"candidate/metrics/miou/{n}/mean") for n in clicks},
    )  # fmt: skip


EFFORT = (
    Panel(
        "Seconds a mask", "seconds", "All that annotators spent, over the masks of the round.", PEOPLE,
        {"all masks": at("annotation/seconds_per_mask"), "drawn and fixed": at("annotation/worked/seconds_per_mask")},
        alone="Drawn and fixed: without those that were accepted as they were, as the paper counts.",
    ),
    Panel(
        "Clicks a mask", "clicks", "Over the masks of the round.", PEOPLE,
        {"all masks": at("annotation/clicks_per_mask"), "drawn and fixed": at("annotation/worked/clicks_per_mask")},
    ),
    Panel(
        "Masks an image", "masks", "By people, prefilled ones included. How many the model makes alone: the table.",
        PEOPLE, {"masks": lambda r: r.each, "true objects": objects},
    ),
    Panel(
        "Prefilled masks", "share", "Of those that annotators were shown.", ("semi",),
        {edit: share(edit) for edit in ("accepted", "fixed", "rejected")}, form=".0%", first="accepted",
    ),
    Panel(
        "Quality of what was handed in", "IoU", "Mean IoU of the round's masks, each with the nearest true object.",
        PEOPLE, {"all masks": at("annotation/iou")}, low=None, form=".3f",
    ),
)  # fmt: skip
QUALITY = (
    Panel(
        "Number of clicks", "clicks", "Until an IoU of 0.85 (NoC@85) and 0.90 on the held-out part.", MODELS,
        {f"NoC@{n}": at(f"metrics/noc/{n}/mean") for n in ("85", "90")}, form=".1f", first="NoC@85",
        refused={f"NoC@{n}": at(f"candidate/metrics/noc/{n}/mean") for n in ("85", "90")},
    ),
    Panel(
        "Average recall of automatic masks", "AR@1000", "On the held-out part.", MODELS,
        {size: at(f"metrics/recall/{size}") for size in SIZES}, form=".2f", alone="By size of the object.",
        refused={"all": at("candidate/metrics/recall/all")},
    ),
    Panel(
        "Average recall of the detector", "AR@1000", "Of its boxes, on the held-out part.", ("semi",),
        {size: at(f"detector/recall/{size}") for size in SIZES}, form=".2f", alone="By size of the object.",
    ),
)  # fmt: skip


def figure(runs: Sequence[Run]) -> Iterator[str]:
    """All panels; the rounds of all runs are on the same axes."""
    several = (miou("mIoU@1", ("1",)), miou("mIoU@5", ("5",)))
    models = several if len(runs) > 1 else (miou("mIoU after 1, 3 and 5 clicks", ("1", "3", "5")),)
    charts = "".join(chart(panel, runs) for panel in (*EFFORT, *models, *QUALITY))
    if charts:
        yield f'<div class="figures">{charts}</div>'


def colour(n: int) -> str:
    """The class of the n-th line, or run."""
    return f"c{n}" if n < COLOURS else "mute"


def chart(panel: Panel, runs: Sequence[Run]) -> str:
    """One panel; nothing if no round has such a value."""
    names = [name for name in all_names(runs) if name.rpartition("-")[0] in panel.stages]
    keys = list(panel.values)[: None if len(runs) == 1 else 1]
    lines: list[Curve] = []
    for run in runs:
        for key in keys:
            lines.append(curve(panel, run, names, key, colour(len(lines)), alone=len(runs) == 1))
    lines = [line for line in lines if line.known]
    if not lines:
        return ""
    low = panel.low
    if low is None:
        low = max(0.0, math.floor(10 * min(v for line in lines for v in line.reach) - 0.5) / 10)
    title = panel.title if len(runs) == 1 or not panel.first else f"{panel.title}: {panel.first}"
    words = f"{panel.words} {panel.alone}" if len(runs) == 1 else panel.words
    drawn = curves(names, lines, Axes("round", panel.y, f"{title}, round by round"), low, panel.form)
    return f"<figure><figcaption><h3>{title}</h3>{words}</figcaption>{drawn}</figure>"


def curve(panel: Panel, run: Run, names: Sequence[str], key: str, ink: str, alone: bool) -> Curve:
    """One value of one run over the rounds."""
    rounds = [run.find(name) for name in names]

    def over(value: Value) -> list[float | None]:
        return [None if r is None else value(r) for r in rounds]

    spans = [interval(r, panel.spans[key]) for r in rounds] if alone and key in panel.spans else []
    rings = over(panel.refused[key]) if key in panel.refused else []
    return Curve(key if alone else run.name, ink, over(panel.values[key]), spans, rings)


def interval(r: Round | None, path: str) -> tuple[float, float] | None:
    """The 95% interval that stands there."""
    if r is None:
        return None
    low, high = r.get(f"{path}/low"), r.get(f"{path}/high")
    return None if low is None or high is None else (low, high)
