"""The tables of a run of the data engine: rounds, runs beside each other, the automatic stage, times."""

from collections.abc import Callable, Iterator, Sequence
from html import escape

from maskmill.report.engine_figure import colour, share
from maskmill.report.engine_run import Round, Run, leaves

Cell = Callable[[Round], str]


NOTHING = "–"


def number(value: float | None, form: str) -> str:
    """A dash where there is none."""
    return NOTHING if value is None else format(value, form)


def at(path: str, form: str) -> Cell:
    """What stands at a place of the record."""
    return lambda r: number(r.get(path), form)


def part(edit: str) -> Cell:
    """Of what was prefilled."""
    return lambda r: number(share(edit)(r), ".0%")


GROUPS: tuple[tuple[str, tuple[tuple[str, Cell], ...]], ...] = (
    ("", (
        ("images", lambda r: number(r.images, ",d")), ("masks", lambda r: number(r.count, ",d")),
        ("an image", lambda r: number(r.each, ".1f")),
    )),
    ("a mask", (
        ("seconds", at("annotation/seconds_per_mask", ".1f")), ("clicks", at("annotation/clicks_per_mask", ".1f")),
    )),
    ("prefilled masks", (
        ("shown", lambda r: number(r.get("annotation/prefilled") or None, ",d")), ("accepted", part("accepted")),
        ("fixed", part("fixed")), ("rejected", part("rejected")),
    )),
    ("", (("added", lambda r: number(r.share("drawn", "masks"), ".0%")), ("IoU", at("annotation/iou", ".2f")))),
    ("mIoU", tuple((f"@{n}", at(f"metrics/miou/{n}/mean", ".3f")) for n in ("1", "3", "5"))),
    ("NoC", tuple((f"@{n}", at(f"metrics/noc/{n}/mean", ".1f")) for n in ("85", "90"))),
    ("AR", (("masks", at("metrics/recall/all", ".2f")), ("boxes", at("detector/recall/all", ".2f")))),
)  # fmt: skip


def rounds_table(run: Run) -> Iterator[str]:
    """One row for each finished round; a column that no round fills is left out."""
    groups = [
        (title, [(head, cell) for head, cell in columns if any(cell(r) != NOTHING for r in run.rounds)])
        for title, columns in GROUPS
    ]
    groups = [(title, columns) for title, columns in groups if columns]
    columns = [(head, cell, "n first" if i == 0 else "n") for _, some in groups for i, (head, cell) in enumerate(some)]
    top = "".join(f'<th class="group" colspan="{len(some)}">{title}</th>' for title, some in groups)
    heads = "".join(f'<th class="{kind}">{head}</th>' for head, _, kind in columns)
    yield f'<div class="scroll"><table class="tight rounds"><thead><tr><th></th>{top}<th class="group"></th></tr>'
    yield f'<tr><th>round</th>{heads}<th class="first">model</th></tr></thead><tbody>'
    for r in run.rounds:
        cells = "".join(f'<td class="{kind}">{cell(r)}</td>' for _, cell, kind in columns)
        yield f'<tr><td>{escape(r.name)}</td>{cells}<td class="first"><code>{r.model}</code> {badge(r)}</td></tr>'
    yield "</tbody></table></div>"
    for r in run.rounds:
        if r.decision == "not promoted":
            yield f'<p class="note"><b>{escape(r.name)}</b>: {escape(str(r.get("decision")))}</p>'


def badge(r: Round) -> str:
    """The decision in colour."""
    kind = {"promoted": "good", "not promoted": "warn"}.get(r.decision, "plain")
    return f'<span class="badge {kind}">{escape(r.decision)}</span>' if r.decision else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "n") -> Iterator[str]:
    """Cells of HTML; the first column holds names."""
    first, *rest = heads
    yield f'<div class="scroll"><table class="tight"><thead><tr><th>{first}</th>'
    yield "".join(f'<th class="{kind}">{head}</th>' for head in rest) + "</tr></thead><tbody>"
    for name, *cells in rows:
        yield f"<tr><td>{name}</td>" + "".join(f'<td class="{kind}">{cell}</td>' for cell in cells) + "</tr>"
    yield "</tbody></table></div>"


def runs_table(runs: Sequence[Run]) -> Iterator[str]:
    """One row for each run: from its first to its last round of a kind."""
    heads = (
        "run", "s a mask: assisted", "semi", "accepted", "masks", "hours", "mIoU@1", "NoC@85", "recall", "&gt; 75%",
    )  # fmt: skip
    rows = []
    for i, run in enumerate(runs):
        semi, people, seconds = run.of("semi"), run.of("assisted", "semi"), "annotation/seconds_per_mask"
        hours = sum(r.get("annotation/seconds") or 0 for r in people) / 3600
        rows.append((
            f'<i class="key {colour(i)}"></i>{escape(run.name)}', change(run.of("assisted"), seconds, ".1f"),
            change(semi, seconds, ".1f"), number(share("accepted")(semi[-1]) if semi else None, ".0%"),
            f"{sum(r.count or 0 for r in people):,}", f"{hours:.2f}",
            change(run.rounds, "metrics/miou/1/mean", ".3f"), change(run.rounds, "metrics/noc/85/mean", ".1f"),
            number(run.automatic("quality/recall"), ".1%"), number(run.automatic("quality/above/0.75"), ".1%"),
        ))  # fmt: skip
    yield from table(heads, rows)


def change(rounds: Sequence[Round], path: str, form: str) -> str:
    """From the first round to the last."""
    found = [r.get(path) for r in rounds if r.get(path) is not None]
    if not found:
        return NOTHING
    return f"{found[0]:{form}} → {found[-1]:{form}}" if len(found) > 1 else f"{found[0]:{form}}"


def differences_table(runs: Sequence[Run]) -> Iterator[str]:
    """The config keys in which the runs differ."""
    trees = [dict(leaves({"config": run.about["config"], "data": run.about["data"]})) for run in runs]
    keys = sorted(key for key in set().union(*trees) if len({str(tree.get(key)) for tree in trees}) > 1)
    if not keys:
        yield '<p class="none">Nothing: the same config and the same data.</p>'
        return
    rows = [[key.removeprefix("config."), *(str(tree.get(key)) for tree in trees)] for key in keys]
    heads = ["key", *(escape(run.name) for run in runs)]
    yield from table(heads, [[f"<code>{escape(cell)}</code>" for cell in row] for row in rows], "")


def quality_table(runs: Sequence[Run]) -> Iterator[str]:
    """The automatic stage where the truth is known."""
    heads = (
        "run", "images", "masks", "an image", "held-out images", "objects", "matched", "recall", "mean IoU", "&gt; 75%",
        "&gt; 90%",
    )  # fmt: skip
    rows = []
    for run in runs:
        r = run.find("automatic-1")
        if r is not None:
            counts = (r.get(f"quality/{name}") for name in ("images", "objects", "matched"))
            rows.append((
                escape(run.name), number(r.images, ",d"), number(r.count, ",d"), number(r.each, ".1f"),
                *(number(count, ",d") for count in counts), number(r.get("quality/recall"), ".1%"),
                number(r.get("quality/mean_iou"), ".3f"), number(r.get("quality/above/0.75"), ".1%"),
                number(r.get("quality/above/0.9"), ".1%"),
            ))  # fmt: skip
    if rows:
        yield from table(heads, rows)


def timing_table(run: Run) -> Iterator[str]:
    """Wall-clock and processor seconds of each step of each round."""
    steps = list(dict.fromkeys(step for r in run.rounds for step in r.timing))
    rows = []
    for r in run.rounds:
        spent = [r.timing.get(step, {}).get("seconds") for step in steps]
        cpu = sum(step.get("cpu_seconds", 0.0) for step in r.timing.values())
        rows.append([escape(r.name), *(number(s, ",.1f") for s in [*spent, sum(s or 0.0 for s in spent), cpu])])
    if steps:
        yield from table(["round", *map(escape, steps), "together", "CPU"], rows)
