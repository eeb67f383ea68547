"""`evaluation.html`: the figures of an evaluation, curves, worst and best cases. It needs nothing beside itself."""

import base64
import io
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

import cv2
import numpy as np
from PIL import Image

from maskmill.evaluate.baselines import best_guesses
from maskmill.evaluate.cases import Case
from maskmill.evaluate.config import EvaluateConfig
from maskmill.evaluate.run import Evaluation
from maskmill.report.charts import Axes, Series, lines
from maskmill.report.gallery import interval
from maskmill.report.shell import fill_page

SIDE = 360  # pixels of a case's picture
CLICKED = "After each click, over all masks."
REACHED = "The share of masks whose first answer has at least this IoU."
TARGET, ANSWER, CLICK = (60, 220, 90), (255, 70, 60), (255, 255, 255)


def make_page(
    title: str, tree: dict[str, Any], evaluation: Evaluation, worst: Iterable[Case], best: Iterable[Case]
) -> str:
    """The whole page. `tree`: the evaluation's summary."""
    parts = [
        ("figures", "Figures", zoomed(evaluation.cfg.window) + "".join(table_rows(tree))),
        ("curves", "Curves", "".join(curves(evaluation))),
        ("worst", "Worst cases", gallery(worst)),
        ("best", "Best cases", gallery(best)),
    ]
    by_category = tree.get("boxes", {}).get("by_category", {})
    if len(by_category) > 1:
        parts.insert(2, ("categories", "Mask AP from boxes, by category", "".join(category_rows(by_category))))
    credit = "The protocol is that of Segment Anything (arXiv 2304.02643), section 7 and appendix D."
    return fill_page(title, head(title, tree), parts, credit)


def zoomed(window: int | None) -> str:
    """Figures through windows are others than of whole images: the page says so."""
    return "" if window is None else f"<p>Larger images are seen in parts of {window} pixels (evaluate.window).</p>"


def head(title: str, tree: dict[str, Any]) -> Iterator[str]:
    """What comes first."""
    yield f"<h1>{escape(title)}</h1>"
    model, data = (escape(str(tree.get(key, ""))) for key in ("model", "data"))
    yield f'<p class="sub"><b>{model}</b> on <code>{data}</code></p>'
    first = next(iter(tree["miou"]))
    tiles = [
        ("Images", f"{tree['images']:,}", ""),
        ("Masks", f"{tree['masks']:,}", ""),
        (f"mIoU, {first} click{'s' if first != '1' else ''}", f"{tree['miou'][first]['mean']:.3f}", "most confident"),
        ("Oracle, 1 click", f"{tree['oracle']['mean']:.3f}", "best of three"),
        ("Box", f"{tree['box']['mean']:.3f}", "most confident"),
        ("Seconds a prompt", f"{tree['seconds']['prompt']:.4f}", f"{tree['seconds']['image']:.2f} an image"),
    ]
    words = "".join(f"<div><dt>{n}</dt><dd>{v}<small>{escape(w) or '&nbsp;'}</small></dd></div>" for n, v, w in tiles)
    yield f'<dl class="tiles">{words}</dl>'


def rows_of(tree: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, value and 95% interval of every figure: the table that is printed and shown."""

    def estimate(e: dict[str, Any]) -> tuple[str, str]:
        return f"{e['mean']:.3f}", f"{e['low']:.3f} to {e['high']:.3f}"

    for clicks, e in tree["miou"].items():
        yield f"mIoU, {clicks} click{'s' if clicks != '1' else ''}", *estimate(e)
    names = {"oracle": "oracle (best of 3), 1 click", "random": "mIoU, 1 random click", "box": "mIoU, box"}
    for key, name in (names | {"box_single": "mIoU, box, single answer"}).items():
        yield name, *estimate(tree[key])
    for goal, e in tree["noc"].items():
        yield (
            f"NoC@{goal}",
            f"{e['mean']:.2f}",
            f"{e['low']:.2f} to {e['high']:.2f}; {e['failures']} fail ({e['share']:.1%})",
        )
    for key, end in (("ap", ""), ("without_refinement", ", no refinement")):
        for figure, value in tree.get("boxes", {}).get(key, {}).items():
            what, _, size = figure.partition("_")
            if value is not None and (key == "ap" or (what != "AR" and not size)):
                yield f"mask {what} from boxes{f', {size}' if size else ''}{end}", f"{value:.3f}", ""
    for key, name in (("segments", "Felzenszwalb segments"), ("discs", "discs at the click")):
        if "baselines" in tree:
            yield f"without a model: {name}, best of 3", *estimate(tree["baselines"][key])
            yield f"oracle above {name}", *estimate(tree["baselines"][key]["oracle_above"])
    for key, name in (("recall", "AR@1000"), ("precision", "mask AP@100")):
        for size in ("all", "small", "medium", "large"):
            if key in tree and tree[key][size] is not None:
                whole = key == "recall" and size == "all"
                yield f"{name}, {size}", f"{tree[key][size]:.3f}", estimate(tree[key]["interval"])[1] if whole else ""
    yield "seconds an image", f"{tree['seconds']['image']:.4f}", ""
    yield "seconds a prompt", f"{tree['seconds']['prompt']:.5f}", ""


def table_rows(tree: dict[str, Any]) -> Iterator[str]:
    """The table as HTML."""
    yield '<table><thead><tr><th>Figure</th><th class="n">Value</th><th class="n">95% interval</th></tr></thead><tbody>'
    for name, value, interval_ in rows_of(tree):
        yield f'<tr><td>{escape(name)}</td><td class="n">{value}</td><td class="n">{interval_}</td></tr>'
    yield "</tbody></table>"


def category_rows(values: dict[str, float | None]) -> Iterator[str]:
    """Worst first; a category that only crowds have comes last."""
    yield '<table><thead><tr><th>Category</th><th class="n">AP</th></tr></thead><tbody>'
    for name, value in sorted(values.items(), key=lambda item: (item[1] is None, item[1] or 0.0)):
        yield f'<tr><td>{escape(name)}</td><td class="n">{"-" if value is None else f"{value:.3f}"}</td></tr>'
    yield "</tbody></table>"


def curves(evaluation: Evaluation) -> Iterator[str]:
    """mIoU by clicks, and how IoUs are spread."""
    cfg: EvaluateConfig = evaluation.cfg
    ious = evaluation.column("ious")
    upto = max(cfg.clicks)
    mean = Series("mIoU", ious[:, :upto].mean(0), "c0")
    good = Series("share above 0.8", (ious[:, :upto] > 0.8).mean(0), "c1")
    axes = Axes("clicks", "mean over masks", "mIoU by number of clicks")
    clicks = np.arange(1, upto + 1)
    yield '<div class="figures">'
    if upto > 1:
        yield f"<figure>{lines(clicks, [mean, good], axes)}<figcaption>{escape(CLICKED)}</figcaption></figure>"
    bounds = np.linspace(0, 1, 51)

    def reaching(name: str, values: np.ndarray, colour: str) -> Series:
        return Series(name, (values[None] >= bounds[:, None]).mean(1), colour)

    found = [reaching("most confident", ious[:, 0], "c0"), reaching("best of three", evaluation.column("oracle"), "c2")]
    if evaluation.baselines:
        found.append(reaching("best of three segments, no model", best_guesses(evaluation.baselines).segments, "c1"))
    about = Axes("IoU", "share of masks", "Share of masks that reach an IoU at the first click")
    yield f"<figure>{lines(bounds, found, about)}<figcaption>{escape(REACHED)}</figcaption></figure>"
    yield "</div>"


def gallery(shown: Iterable[Case]) -> str:
    """Pictures with their IoU; green is right, red the answer."""
    items = []
    for c in shown:
        words = f"IoU {c.iou:.2f}: {c.name}, mask {c.mask_id}"
        items.append(f'<li><img src="{picture(c)}" alt="{escape(words)}" width="480" height="360">{escape(words)}</li>')
    note = '<p class="note">Green: the human mask. Red: the most confident answer to a click at the white dot.</p>'
    return f'{note}<ul class="thumbs cases">{"".join(items)}</ul>'


def picture(case: Case) -> str:
    """A case and its surroundings as a data URI, 4:3."""
    rows, columns = (np.flatnonzero((case.target | case.answer).any(axis)) for axis in (1, 0))
    height, width = case.target.shape
    tall = max(float(np.ptp(rows)), 0.75 * float(np.ptp(columns)), 30.0) * 1.3
    y0, y1 = interval((rows[0] + rows[-1] + 1) / 2, min(tall, height), height)
    x0, x1 = interval((columns[0] + columns[-1] + 1) / 2, min(tall * 4 / 3, width), width)
    scale = min(SIDE * 4 / 3 / (x1 - x0), SIDE / (y1 - y0))
    size = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
    out = cv2.resize(case.image[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    for mask, ink in ((case.target, TARGET), (case.answer, ANSWER)):
        large = cv2.resize(mask[y0:y1, x0:x1].astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        inside = large > 0
        out[inside] = (0.75 * out[inside] + 0.25 * np.array(ink)).astype(np.uint8)
        edges, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(out, edges, -1, ink, 2, cv2.LINE_AA)
    at = (round((case.point[0] + 0.5 - x0) * scale), round((case.point[1] + 0.5 - y0) * scale))
    cv2.circle(out, at, 7, (0, 0, 0), -1, cv2.LINE_AA)
    cv2.circle(out, at, 5, CLICK, -1, cv2.LINE_AA)
    data = io.BytesIO()
    Image.fromarray(out).save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
