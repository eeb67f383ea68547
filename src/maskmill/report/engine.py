"""The page of a run of the data engine, or of several beside each other. It needs nothing beside itself."""

from collections.abc import Callable, Iterator, Sequence
from html import escape

import yaml

from maskmill.report.engine_figure import figure, share
from maskmill.report.engine_pictures import EDITS, strip
from maskmill.report.engine_run import Run
from maskmill.report.engine_tables import (
    change,
    differences_table,
    number,
    quality_table,
    rounds_table,
    runs_table,
    timing_table,
)  # fmt: skip
from maskmill.report.shell import Section, fill_page

EACH, EACH_OF_MANY = 4, 2  # pictures of a round: of one run, of several


def make_page(runs: Sequence[Run], say: Callable[[str], None]) -> str:
    """The whole page. `say` hears which section is being made."""
    rounds, curves = ("rounds", "Rounds", rounds_section), ("curves", "Curves", figure)
    parts: tuple[tuple[str, str, Callable[[Sequence[Run]], Iterator[str]]], ...] = (
        ("runs", "Runs", runs_section),
        *((rounds, curves) if len(runs) == 1 else (curves, rounds)),
        ("automatic", "The automatic stage", automatic_section),
        ("pictures", "Pictures", pictures_section),
        ("times", "Times", times_section),
        ("config", "Config", config_section),
    )

    def sections() -> Iterator[Section]:
        for name, title, make in parts:
            say(title.lower())
            yield name, title, "".join(make(runs))

    credit = "Stages and figures are those of Segment Anything (arXiv 2304.02643), sections 4 and 5."
    names = ", ".join(run.name for run in runs)
    return fill_page(f"Data engine: {names}", head(runs), sections(), credit, ("engine.css",))


def head(runs: Sequence[Run]) -> Iterator[str]:
    """Title and state; of a single run the numbers that come first."""
    run = runs[0]
    if len(runs) > 1:
        yield "<h1>Runs of the data engine beside each other</h1>"
        yield f'<p class="sub">{escape(", ".join(str(r.path) for r in runs))}</p>'
    else:
        state = ("good", "finished") if run.finished else ("warn", "unfinished")
        yield f'<h1>{escape(run.name)}<span class="badge {state[0]}">{state[1]}</span></h1>'
        yield f'<p class="sub">A run of the data engine in <code>{escape(str(run.path))}</code></p>'
    for one in runs:
        if not one.finished:
            done = f"{len(one.rounds)} of {one.planned} rounds are over"
            yield f'<p class="alert"><b>{escape(one.name)}</b> is not finished: {done}.</p>'
    if len(runs) == 1:
        yield from tiles(run)


def tiles(run: Run) -> Iterator[str]:
    """What a run came to."""
    assisted, semi, people = run.of("assisted"), run.of("semi"), run.of("assisted", "semi")
    hours = sum(r.get("annotation/seconds") or 0 for r in people) / 3600
    images = run.automatic("images")
    state = "not yet made" if images is None else f"of {images:,} images"
    found = [
        ("Masks by people", f"{sum(r.count or 0 for r in people):,}", f"{hours:.2f} hours of work"),
        ("Seconds a mask", change(assisted, "annotation/seconds_per_mask", ".1f"), "assisted rounds"),
        ("mIoU@1", change(run.rounds, "metrics/miou/1/mean", ".2f"), "held-out part"),
        ("Accepted", number(share("accepted")(semi[-1]) if semi else None, ".0%"), "of prefilled masks"),
        (
            "Automatic masks",
            number(run.automatic("masks"), ",d"),
            state,
        ),
    ]
    words = "".join(f"<div><dt>{n}</dt><dd>{v}<small>{escape(w)}</small></dd></div>" for n, v, w in found)
    yield f'<dl class="tiles">{words}</dl>'


def runs_section(runs: Sequence[Run]) -> Iterator[str]:
    """Several runs in short, and in what they differ."""
    if len(runs) > 1:
        yield (
            '<p class="note">First to last round: seconds a mask in the assisted and in the semi-automatic '
            "stage, mIoU@1 and NoC@85 on the held-out part. Accepted: of the masks prefilled in the last round. Masks "
            "and hours: of people, in all rounds. Recall and the matched above 75% IoU: of the automatic stage.</p>"
        )
        yield from runs_table(runs)
        yield "<h3>What differs</h3>"
        yield from differences_table(runs)


def rounds_section(runs: Sequence[Run]) -> Iterator[str]:
    """The table of each run."""
    yield (
        '<p class="note">Seconds: all that annotators spent, also on what they rejected or gave up, over the masks of '
        "the round; clicks: those of the masks that were handed in. "
        "Accepted, fixed, rejected: of the prefilled masks that they were shown. Added: drawn from nothing, of the "
        "masks of the round. IoU: of those masks with the nearest true object. On the held-out part, for the "
        "model that serves after the round: mIoU after 1, 3 and 5 clicks, clicks until an IoU of 0.85 and 0.90 (NoC), "
        "average recall (AR) of its automatic masks, and of the boxes of the round's detector.</p>"
    )
    for run in runs:
        if len(runs) > 1:
            yield f"<h3>{escape(run.name)}</h3>"
        yield from rounds_table(run)


def automatic_section(runs: Sequence[Run]) -> Iterator[str]:
    """Its quality where the truth is known."""
    if content := "".join(quality_table(runs)):
        yield (
            '<p class="note">The last model alone, over all images. On the held-out ones its masks are matched one to '
            "one with the true objects, the best pair first: matched from an IoU of 0.5 on; recall is the matched "
            "share of the objects, the last two columns are shares of the matched. The paper's audit (section 5) had "
            "97% above 75% and 94% above 90%, between automatic masks and the same masks corrected by people.</p>"
        )
        yield content


def pictures_section(runs: Sequence[Run]) -> Iterator[str]:
    """Some images of each round."""
    count = EACH if len(runs) == 1 else EACH_OF_MANY
    keys = "".join(f'<li><i class="key {edit}"></i>{edit}</li>' for edit in EDITS)
    yield f'<ul class="legend">{keys}<li>the automatic stage: a colour for each mask</li></ul>'
    for run in runs:
        strips = "".join(part for r in run.rounds if r.masks is not None for part in strip(r.name, r.masks, count))
        folded = f"<details><summary>{escape(run.name)}</summary>{strips}</details>"
        yield strips if len(runs) == 1 else folded


def times_section(runs: Sequence[Run]) -> Iterator[str]:
    """What the rounds took here."""
    tables = [(run, "".join(timing_table(run))) for run in runs]
    if any(table for _, table in tables):
        yield '<p class="note">Wall-clock seconds of each step on the machine of the run. CPU: seconds of '
        yield "the engine and of the processes that it waited for.</p>"
    for run, table in tables:
        yield f"<h3>{escape(run.name)}</h3>{table}" if table and len(runs) > 1 else table


def config_section(runs: Sequence[Run]) -> Iterator[str]:
    """The config of each run, folded."""
    for run in runs:
        text = yaml.safe_dump({"data": run.about["data"], "config": run.about["config"]}, sort_keys=False, width=100)
        name = f"{run.name}: " if len(runs) > 1 else ""
        yield f"<details><summary>{escape(name)}engine.json</summary><pre>{escape(text)}</pre></details>"
