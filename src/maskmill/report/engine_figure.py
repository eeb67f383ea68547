"""The figure of a run of the data engine (paper, section 4): people's effort and the model's quality by round."""

import math
from collections.abc import Callable, Iterator, Sequence

from maskmill.report.charts import Axes
from maskmill.report.curves import Curve, curves
from maskmill.report.engine_run import Round, Run, all_names

Value = Callable[[Round], float | None]
COLOURS = 6  # of the style sheet
SIZES = ("all", "small", "medium", "large")


def at(path: str) -> Value:
    """What stands at a place of the record."""
    return lambda r: r.get(path)


def figure(runs: Sequence[Run]) -> Iterator[str]:
    """Panels on the same axes; one run shows more lines in each, several show one line each."""
    names = all_names(runs)
    people = [n for n in names if n.startswith(("assisted", "semi"))]
    semi = [n for n in names if n.startswith("semi")]
    shown = [n for n in names if n != "start-0"]
    models = [n for n in names if not n.startswith("automatic")]
    yield '<div class="figures">'
    yield panel(
        runs, people, "Seconds a mask", "seconds", "All that annotators spent, over the masks of the round; and over those alone "
        "that they drew or fixed, as the paper counts.",
        {"all masks": at("annotation/seconds_per_mask"), "drawn and fixed": at("annotation/worked/seconds_per_mask")},
    )  # fmt: skip
    yield panel(
        runs, people, "Clicks a mask", "clicks", "Over the masks of the round; and over those that were drawn or fixed.",
        {"all masks": at("annotation/clicks_per_mask"), "drawn and fixed": at("annotation/worked/clicks_per_mask")},
    )  # fmt: skip
    yield panel(
        runs, shown, "Masks an image", "masks", "By people and prefilled in the rounds, by the model alone in the end.",
        {"masks": lambda r: r.each, "objects there are": objects},
    )  # fmt: skip
    yield panel(
        runs, semi, "Prefilled masks", "share", "Of the masks that annotators were shown.",
        {"accepted": share("accepted"), "fixed": share("fixed"), "rejected": share("rejected")}, form=".0%",
    )  # fmt: skip
    several = len(runs) > 1
    for clicks in (("1",), ("5",)) if several else (("1", "3", "5"),):
        yield panel(
            runs, models, f"mIoU@{clicks[0]}" if several else "mIoU after 1, 3 and 5 clicks", "mIoU",
            "On the held-out part, by the model that serves after the round. A ring: a model that was not promoted.",
            {f"@{n}": at(f"metrics/miou/{n}/mean") for n in clicks}, low=None, form=".3f",
            spans={f"@{n}": f"metrics/miou/{n}" for n in clicks},
            refused={f"@{n}": at(f"candidate/metrics/miou/{n}/mean") for n in clicks},
        )  # fmt: skip
    yield panel(
        runs, models, "Number of clicks", "clicks", "Until an IoU of 0.85 (NoC@85) and 0.90 on the held-out part.",
        {f"NoC@{n}": at(f"metrics/noc/{n}/mean") for n in ("85", "90")}, form=".1f",
        refused={f"NoC@{n}": at(f"candidate/metrics/noc/{n}/mean") for n in ("85", "90")},
    )  # fmt: skip
    yield panel(
        runs, models, "Average recall of automatic masks", "AR@1000", "On the held-out part, by size of the object.",
        {size: at(f"metrics/recall/{size}") for size in SIZES}, form=".3f",
    )  # fmt: skip
    yield panel(
        runs, semi, "Average recall of the detector", "AR", "Of its boxes on the held-out part, by object size.",
        {size: at(f"detector/recall/{size}") for size in SIZES}, form=".3f",
    )  # fmt: skip
    yield "</div>"


def share(edit: str) -> Value:
    """Of what was prefilled."""
    return lambda r: r.share(edit, "prefilled")


def objects(r: Round) -> float | None:
    """True objects of an image, of which the annotators are to find as many as they can."""
    found = r.get("annotation/objects")
    return None if found is None or not r.images else found / r.images


def panel(
    runs: Sequence[Run],
    names: Sequence[str],
    title: str,
    y: str,
    words: str,
    values: dict[str, Value],
    low: float | None = 0.0,
    form: str = "",
    spans: dict[str, str] | None = None,
    refused: dict[str, Value] | None = None,
) -> str:
    """One chart; nothing if no round has such a value. low: where the axis begins; None: below the lowest value."""
    lines: list[Curve] = []
    for run in runs:
        rounds = [run.find(name) for name in names]

        def over(what: Value, rounds: Sequence[Round | None] = rounds) -> list[float | None]:
            return [None if r is None else what(r) for r in rounds]

        for key, value in list(values.items())[: None if len(runs) == 1 else 1]:
            bounds = [interval(r, spans[key]) for r in rounds] if spans and len(runs) == 1 else []
            rings = over(refused[key]) if refused else []
            colour = f"c{len(lines)}" if len(lines) < COLOURS else "mute"
            lines.append(Curve(key if len(runs) == 1 else run.name, colour, over(value), bounds, rings))
    lines = [line for line in lines if line.known]
    if not lines:
        return ""
    start = math.floor(10 * min(v for line in lines for v in line.reach) - 0.5) / 10 if low is None else low
    key = f" ({next(iter(values))})" if len(runs) > 1 and len(values) > 1 else ""
    chart = curves(names, lines, Axes("round", y, f"{title}, round by round"), max(0.0, start), form)
    return f"<figure><figcaption><h3>{title}{key}</h3>{words}</figcaption>{chart}</figure>"


def interval(r: Round | None, path: str) -> tuple[float, float] | None:
    """The 95% interval that stands there."""
    if r is None:
        return None
    low, high = r.get(f"{path}/low"), r.get(f"{path}/high")
    return None if low is None or high is None else (low, high)
