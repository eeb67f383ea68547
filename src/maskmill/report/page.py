"""`report.html`: one page on a build that needs nothing beside itself."""

from collections.abc import Callable, Iterator
from html import escape

from maskmill.report import chapters
from maskmill.report.facts import Facts
from maskmill.report.shell import Section, fill_page


def make_page(facts: Facts, say: Callable[[str], None]) -> str:
    """The whole page as text. `say` hears which section is being made."""
    parts = (
        ("masks", "Masks", chapters.masks_section),
        ("scores", "Scores and thresholds", chapters.scores_section),
        ("suspicious", "Suspicious masks", chapters.suspects_section),
        ("gallery", "A look at every kind", chapters.gallery_section),
        ("quarantine", "Quarantine", chapters.quarantine_section),
        ("throughput", "Throughput", chapters.throughput_section),
        ("provenance", "Provenance", chapters.provenance_section),
    )

    def sections() -> Iterator[Section]:
        for name, title, make in parts:
            say(title.lower())
            yield name, title, "".join(make(facts))

    credit = "The figures are those of Segment Anything (arXiv 2304.02643), section 5."
    return fill_page(f"{facts.build.path.name}: {facts.filter}", head(facts), sections(), credit)


def head(facts: Facts) -> Iterator[str]:
    """Title, state, and the numbers that come first."""
    s, masks = facts.standing, sum(p.masks.rows for p in facts.parts)
    images, bad, candidates, empty = (
        sum(getattr(p.manifest, name) for p in facts.parts) for name in ("images", "quarantined", "candidates", "empty")
    )
    state = '<span class="badge good">finished</span>' if s.finished else '<span class="badge warn">unfinished</span>'
    yield f"<h1>{escape(facts.build.path.name)}{state}</h1>"
    path = escape(str(facts.build.path))
    yield f'<p class="sub">Masks of the filter <b>{escape(facts.filter)}</b> in <code>{path}</code></p>'
    if not s.finished:
        yield (
            f'<p class="alert">This build is not finished: {s.units_done:,} of {s.units:,} units are committed. '
            f"The figures are those of the committed units.</p>"
        )
    if len(facts.parts) < s.units_done:
        yield (
            f'<p class="alert">The filter has reached {len(facts.parts):,} of the {s.units_done:,} committed units: '
            f"<code>maskmill filter</code> does the others. The figures are those of the units that it has reached.</p>"
        )
    of = "" if s.images is None or s.images == images else f"of {s.images:,} planned"
    tiles = [
        ("Images", f"{images:,}", of),
        ("Masks", f"{masks:,}", f"filter {facts.filter}"),
        ("Masks an image", f"{masks / max(1, images - bad):.1f}", "without the quarantined"),
        ("Candidates", f"{candidates:,}", f"{100 * masks / candidates:.1f}% became masks" if candidates else ""),
        ("Empty", f"{empty:,}", "no candidate"),
        ("Quarantined", f"{bad:,}", "could not be done"),
    ]
    words = "".join(f"<div><dt>{n}</dt><dd>{v}<small>{escape(w) or '&nbsp;'}</small></dd></div>" for n, v, w in tiles)
    yield f'<dl class="tiles">{words}</dl>'
    sample = facts.sample
    if sample.whole:
        yield '<p class="note">Charts are exact unless they say otherwise: every row was read.</p>'
    else:
        yield (
            f'<p class="note">The counts above are exact. Charts are drawn from a sample that is the same every time: '
            f"{len(sample.parts):,} of {sample.of:,} units, {len(sample.masks):,} masks.</p>"
        )
