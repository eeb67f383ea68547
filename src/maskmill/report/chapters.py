"""The sections of a report's page: facts in, HTML out."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from html import escape
from typing import Any

import numpy as np

from maskmill.config import GenerateConfig
from maskmill.report import gallery, sections
from maskmill.report.detail import read_extremes
from maskmill.report.facts import Facts, swept
from maskmill.report.refilter import floors, generate_config
from maskmill.storage.originals import MissingOriginal, unchanged
from maskmill.storage.pixels import decode_image


def masks_section(facts: Facts) -> Iterator[str]:
    """The paper's figures."""
    cards = list(sections.image_figures(facts.sample))
    if facts.detail is not None:
        cards += sections.shape_figures(facts.sample.masks, facts.detail)
    else:
        yield '<p class="none">There are no masks: nothing passed this filter.</p>'
    yield f'<div class="figures">{"".join(cards)}</div>'
    masks = facts.sample.masks
    if len(layers := sections.by_layer(masks)) > 1:
        rows = [
            (
                name,
                f"{rows.sum():,}",
                f"{100 * rows.mean():.1f}%",
                f"{np.median(masks.relative_size[rows]):.3f}",
                f"{np.nanmean(masks.predicted_iou[rows]):.3f}",
                f"{np.nanmean(masks.stability_score[rows]):.3f}",
            )
            for name, _, rows in layers
        ]
        names = ("Crop layer", "Masks", "Share", "Median relative size", "Mean predicted IoU", "Mean stability")
        yield sections.table(names, rows, numbers=range(1, 6))


def scores_section(facts: Facts) -> Iterator[str]:
    """Histograms, and what another threshold would keep."""
    sample = facts.sample
    cards = list(sections.score_figures(sample.masks, sample.candidates, facts.cuts))
    if not cards:
        yield '<p class="none">These masks have no scores.</p>'
        return
    if sample.candidates is None:
        yield '<p class="note">No candidates are stored, so what other thresholds would keep cannot be told.</p>'
    elif len(sample.candidates) and facts.cuts and generate_config(facts.build):
        lowest = floors(facts.build)
        cards.append(sections.acceptance_figure(sample.candidates, facts.cuts, lowest))
        points, curves, images = swept(facts)
        if images:
            cards.append(sections.sweep_figure(points, curves, facts.cuts, images))
    yield f'<div class="figures">{"".join(cards)}</div>'


def suspects_section(facts: Facts) -> Iterator[str]:
    """What should be looked at first."""
    if facts.detail is None:
        return
    masks, detail = facts.sample.masks, facts.detail
    yield (
        f'<p class="note">Huge and tiny: among {len(masks):,} masks. Holed: among {len(detail.decoded):,}. '
        f"Near-duplicates: among {len(detail.masks):,}. The worst come first.</p>"
    )
    extremes = read_extremes(facts.build, facts.sample, gallery.extreme_rows(masks))
    yield from groups(facts, gallery.suspects(masks, extremes, detail))


def gallery_section(facts: Facts) -> Iterator[str]:
    """Some masks of every size, score and crop layer."""
    if facts.detail is not None:
        yield f'<p class="note">Drawn at random among {len(facts.detail.masks):,} masks.</p>'
        shown = gallery.strata(facts.detail, np.random.default_rng(0))
        yield from groups(facts, [group for group in shown if group.found])


def groups(facts: Facts, shown: Iterable[gallery.Group]) -> Iterator[str]:
    """Headings and pictures."""
    pictures = Pictures(facts)
    for group in shown:
        found = f"{group.about}; {group.found:,} found"
        yield f'<div class="group"><h3>{escape(group.title)} <span>{escape(found)}</span></h3>'
        items = "".join(pictures.item(pick) for pick in group.picks)
        yield f'<ul class="thumbs">{items}</ul></div>' if items else '<p class="none">None.</p></div>'
    if pictures.missing:
        yield f'<p class="note">Some images could not be read and are grey: {escape(pictures.missing)}.</p>'


class Pictures:
    """Draws picks on their images."""

    def __init__(self, facts: Facts) -> None:
        rows = facts.sample.images.select(["image_id", "shard", "key", "sha256"]).to_pylist()
        self.names = {row["image_id"]: (row["shard"], row["key"], row["sha256"]) for row in rows}
        self.originals = facts.originals
        self.limit = float((generate_config(facts.build) or GenerateConfig()).max_image_mpx)
        self.missing = ""

    def item(self, pick: gallery.Pick) -> str:
        """One picture with what is said below it."""
        shard, key, sha256 = self.names[pick.image_id]
        try:
            image = decode_image(unchanged(self.originals.read(shard, key), sha256), self.limit)
        except (MissingOriginal, ValueError) as e:
            image, self.missing = None, self.missing or f"{key}: {e}"
        ids = " and ".join(str(i) for i in pick.mask_ids)
        alt = f"Mask {ids} of {key}: {pick.words}"
        picture = f'<img src="{gallery.draw(pick, image)}" alt="{escape(alt)}" width="320" height="240">'
        name = f'<b title="{escape(f"{shard} {key}")}">{escape(key)}</b>'
        return f"<li>{picture}{name}{escape(ids)}: {escape(pick.words)}</li>"


def quarantine_section(facts: Facts) -> Iterator[str]:
    """What could not be done, and why."""
    s = facts.standing
    if not s.quarantined:
        yield '<p class="none">No image was set aside.</p>'
        return
    kinds = Counter(str(row["error"]).partition(":")[0][:80] for row in s.quarantine).most_common(8)
    shown = len(s.quarantine)
    more = f" The first {shown:,} are listed." if shown < s.quarantined else ""
    yield f"<p>{s.quarantined:,} of {s.images_done:,} images.{more} <code>maskmill retry</code> does them again.</p>"
    if len(kinds) > 1:
        yield sections.table(("Error begins with", "Images"), [(kind, f"{n:,}") for kind, n in kinds], numbers=[1])
    rows = [(row["shard"], row["key"], row["error"] or "") for row in s.quarantine]
    yield sections.table(("Shard", "Key", "Error"), rows)


def throughput_section(facts: Facts) -> Iterator[str]:
    """From the manifests alone."""
    made = [p.manifest for p in facts.parts if p.manifest.images]
    seconds = np.array([m.seconds for m in made])
    if not made or not seconds.any():
        return
    images = np.array([m.images for m in made])
    ends = np.array([datetime.fromisoformat(m.finished).timestamp() for m in made])
    hosts = len({m.host for m in made})
    total = float(seconds.sum())
    yield (
        f"<p>{images.sum():,} images took {total:,.0f} seconds of work on {hosts} host{'s' * (hosts > 1)}: "
        f"{total / images.sum():.2f} s an image. Seconds a step are not kept in a build; Ray's metrics have them.</p>"
    )
    cards = sections.rate_figure(ends, seconds, images) + sections.unit_figure(seconds, images)
    yield f'<div class="figures">{cards}</div>'
    slow = np.argsort(-seconds / np.maximum(images, 1), kind="stable")[:5]
    rows = [
        (made[i].unit, f"{images[i]:,}", f"{seconds[i]:,.1f}", f"{seconds[i] / images[i]:.2f}", made[i].host)
        for i in slow
    ]
    yield "<h3>Slowest units</h3>" + sections.table(
        ("Unit", "Images", "Seconds", "An image", "Host"), rows, numbers=(1, 2, 3)
    )


def provenance_section(facts: Facts) -> Iterator[str]:
    """What would be needed to make it again."""
    info = facts.build.info
    rows = [("maskmill", str(info.get("maskmill", ""))), *leaves(info.get("inputs", {}), "inputs")]
    rows += leaves(info["recipe"], "")
    rows += [(f"filter.{k}", show(v)) for k, v in facts.cuts.items()]
    rows.append(("candidates", "stored" if info.get("candidates") else "not stored"))
    yield sections.pairs(rows)


def leaves(tree: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every setting as `a.b` and its value."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, show(tree)


def show(value: Any) -> str:
    """A value on one line."""
    text = "-" if value is None else str(value)
    return text if len(text) < 300 else text[:300] + " ..."
