"""The charts of a report, from what was read: numbers in, HTML out."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape

import numpy as np

from maskmill.filters.curves import acceptance
from maskmill.report import charts
from maskmill.report.charts import Axes, Mark, Series
from maskmill.report.detail import Detail
from maskmill.report.sample import Sample
from maskmill.report.stats import Masks, center_density, masks_per_image, percent

COLOURS = ("c0", "c1", "c2")
SIZE_BINS, SHAPE_BINS, SCORE_BINS = np.linspace(0, 1, 26), np.linspace(0, 1, 26), 40
SCORES = (
    ("predicted_iou", "pred_iou_thresh", "Predicted IoU"),
    ("stability_score", "stability_score_thresh", "Stability"),
)


def figure(title: str, about: str, content: str) -> str:
    """A card with its caption above."""
    return f"<figure><figcaption><h3>{escape(title)}</h3>{escape(about)}</figcaption>{content}</figure>"


def by_layer(masks: Masks) -> list[tuple[str, int, np.ndarray]]:
    """Each of the first three crop layers that has masks: its name, its number, its rows (bool N)."""
    layers = np.unique(masks.layer)[:3].tolist()
    names = {layer: f"Crop layer {layer}" if layer else "Whole image" for layer in layers}
    return [(names[layer] if len(layers) > 1 else "All masks", layer, masks.layer == layer) for layer in layers]


def image_figures(sample: Sample) -> Iterator[str]:
    """Masks per image (paper, figure 6, left)."""
    per_image = masks_per_image(sample.masks.image_id, sample.images["image_id"].to_numpy())
    if len(per_image) == 0:
        return
    width = max(1, int(np.ceil((per_image.max() + 1) / 25)))
    edges = np.arange(0, width * 26, width)[: int(per_image.max() // width) + 2].astype(float)
    mean, middle = float(per_image.mean()), float(np.median(per_image))
    words = f"Mean {mean:.1f}, median {middle:.0f}, most {per_image.max():,}; {int((per_image == 0).sum()):,} without."
    axes = Axes("Masks in an image", "Percent of images", f"Histogram of masks per image. {words}")
    yield figure(
        "Masks per image", words, charts.bars(edges, [Series("images", percent(per_image, edges), "c0")], axes)
    )


def shape_figures(masks: Masks, detail: Detail) -> Iterator[str]:
    """Relative size, concavity and center density (figures 5 and 6)."""
    layers = by_layer(masks)
    size = masks.relative_size
    series = [
        Series(name, percent(size[rows], SIZE_BINS), colour)
        for (name, _, rows), colour in zip(layers, COLOURS, strict=False)
    ]
    words = f"Square root of mask area over image area. Median {float(np.median(size)):.3f}."
    axes = Axes("Relative size", "Percent of masks", f"Histogram of the relative mask size by crop layer. {words}")
    yield figure("Relative mask size", words, charts.steps(SIZE_BINS, series, axes))
    shape = detail.concavity
    series = [
        Series(name, percent(shape[detail.masks.layer[detail.decoded] == layer], SHAPE_BINS), colour)
        for (name, layer, _), colour in zip(layers, COLOURS, strict=False)
    ]
    drawn = f"all {len(shape):,}" if len(shape) == len(masks) else f"{len(shape):,} masks, drawn evenly from five sizes"
    words = f"1 - mask area over convex hull area; {drawn}. Median {float(np.median(shape)):.3f}."
    axes = Axes("Concavity", "Percent of masks", f"Histogram of mask concavity by crop layer. {words}")
    yield figure("Concavity", words, charts.steps(SHAPE_BINS, series, axes))
    maps = [(name, center_density(masks.center[rows], cells(int(rows.sum())))) for name, _, rows in layers]
    heats = "".join(
        f"<div>{charts.heat(grid, f'Density of box centers over the image, {name}. {where(grid)}')}{escape(name)}</div>"
        for name, grid in maps
    )
    about = "The middle of each mask's box, every image stretched to a square; the stronger the color, the more masks."
    yield figure("Where masks lie", about, f'<div class="heats">{heats}</div>')


def cells(masks: int) -> int:
    """As fine a grid as so many masks can fill."""
    return int(np.clip(np.sqrt(masks / 4), 6, 32))


def where(grid: np.ndarray) -> str:
    """A heat map in words."""
    n, m = len(grid), len(grid) // 4
    inside, area = float(grid[m : n - m, m : n - m].sum()), (n - 2 * m) ** 2 / n**2
    return f"{inside:.0%} lie in the middle {area:.0%} of the area."


def score_figures(masks: Masks, candidates: Masks | None, cuts: Mapping[str, float]) -> Iterator[str]:
    """Histograms of both scores with the filter's thresholds. Nothing for masks without scores."""
    for column, threshold, title in SCORES:
        kept = getattr(masks, column)
        every = kept if candidates is None else getattr(candidates, column)
        if np.isnan(every).all():
            continue
        low = np.floor(float(np.nanmin(every)) * 20) / 20
        edges = np.linspace(low, max(1.0, float(np.nanmax(every))), SCORE_BINS + 1)
        series = [Series(f"{len(kept):,} masks", percent(kept, edges), "c0")]
        if candidates is not None:
            series.insert(0, Series(f"{len(every):,} candidates", percent(every, edges), "mute"))
        cut = float(cuts.get(threshold, 0))
        marks = [Mark(cut, f"cut {cut:g}")] if cut > 0 else []
        words = f"Each in percent of its own. The filter's {threshold} is {cut:g}."
        axes = Axes(title, "Percent", f"Histogram of {title} of masks and candidates. {words}")
        yield figure(title, words, charts.steps(edges, series, axes, marks))


def acceptance_figure(candidates: Masks, cuts: Mapping[str, float], floors: Mapping[str, float]) -> str:
    """The part of the candidates that passes a threshold, for every threshold above the floor."""
    points = np.linspace(min(floors.values(), default=0.0), 1, 101)
    series = []
    for (column, threshold, title), colour in zip(SCORES, COLOURS, strict=False):
        passed = acceptance(getattr(candidates, column), points, strict=column == "predicted_iou")
        share = 100 * passed / max(1, len(candidates))
        series.append(Series(title, np.where(points < floors.get(threshold, 0.0), np.nan, share), colour))
    words = f"Percent of {len(candidates):,} candidates that pass each threshold alone, before NMS."
    axes = Axes("Threshold", "Percent of candidates", f"Acceptance curves of both scores. {words}")
    return figure("Candidates that pass", words, charts.lines(points, series, axes, marks(cuts)))


def marks(cuts: Mapping[str, float]) -> list[Mark]:
    """The filter's two thresholds."""
    return [Mark(float(cuts[name]), f"{title} {cuts[name]:g}") for _, name, title in SCORES if cuts.get(name)]


def sweep_figure(points: np.ndarray, curves: Sequence[np.ndarray], cuts: Mapping[str, float], images: int) -> str:
    """Masks an image against each threshold, the other settings as they are."""
    titles = zip(SCORES, curves, COLOURS, strict=False)
    series = [Series(f"{title} moved", values, colour) for (_, _, title), values, colour in titles]
    words = f"The filter run again on {images:,} images that have candidates, one threshold moved, no region clean-up."
    axes = Axes("Threshold", "Masks an image", f"Masks an image against both thresholds. {words}")
    return figure("Masks kept", words, charts.lines(points, series, axes, marks(cuts)))


def rate_figure(ends: np.ndarray, seconds: np.ndarray, images: np.ndarray) -> str:
    """Images a second over time. Of each unit: ends, in seconds since any moment; seconds of work; images."""
    start, end = float((ends - seconds).min()), float(ends.max())
    edges = np.linspace(start, max(end, start + 1), 41)
    share = np.clip((edges[None] - (ends - seconds)[:, None]) / np.maximum(seconds, 1e-3)[:, None], 0, 1)
    rate = np.diff((share * images[:, None]).sum(axis=0)) / np.diff(edges)
    unit, name = (
        (1.0, "seconds") if end - start < 600 else (60.0, "minutes") if end - start < 36000 else (3600.0, "hours")
    )
    words = f"{images.sum():,} images in {(end - start) / unit:,.1f} {name}, from the units' own times."
    axes = Axes(f"Time, {name}", "Images a second", f"Images a second over the build. {words}")
    return figure("Rate", words, charts.steps((edges - start) / unit, [Series("images a second", rate, "c0")], axes))


def unit_figure(seconds: np.ndarray, images: np.ndarray) -> str:
    """Seconds an image, by unit."""
    each = seconds / np.maximum(images, 1)
    edges = np.linspace(0, max(float(each.max()), 1e-3), 26)
    words = f"{len(each):,} units; median {float(np.median(each)):.2f} s an image, slowest {float(each.max()):.2f} s."
    axes = Axes("Seconds an image", "Percent of units", f"Histogram of seconds an image by unit. {words}")
    return figure(
        "Seconds an image, by unit", words, charts.bars(edges, [Series("units", percent(each, edges), "c0")], axes)
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Cells are text; columns `numbers` stand to the right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = [' class="n"' if i in numbers else "" for i in range(len(row))]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values, one a line."""
    body = "".join(f'<tr><th scope="row">{escape(k)}</th><td><code>{escape(v)}</code></td></tr>' for k, v in rows)
    return f'<div class="scroll"><table class="pairs"><tbody>{body}</tbody></table></div>'
