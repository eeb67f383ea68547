"""`maskmill diff`: two filters of a build side by side, from the stored candidates; neither need be materialised."""

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet as pq

from maskmill.config import Config, FilterConfig
from maskmill.errors import UserError
from maskmill.filters.compare import Difference, compare, shares
from maskmill.filters.curves import acceptance
from maskmill.filters.rerun import by_image
from maskmill.generate.grids import crop_plan
from maskmill.pipeline.filtering.refilter import generate_config, settings, stored_settings
from maskmill.pipeline.ticker import Ticker
from maskmill.storage import remote
from maskmill.storage.build import Build
from maskmill.storage.ledger import Manifest
from maskmill.storage.schemas import to_mask_table

SIZES = (0.0, 0.0001, 0.001, 0.01, 0.1, 0.5, np.inf)  # of the image
STEPS = 8  # thresholds of a curve


@dataclass
class Tally:
    """Sums over the images that were looked at."""

    images: int = 0
    masks: list[int] = field(default_factory=lambda: [0, 0])  # of a, of b
    went: Counter[str] = field(default_factory=Counter)
    came: Counter[str] = field(default_factory=Counter)
    changed: int = 0
    sizes: np.ndarray = field(default_factory=lambda: np.zeros((4, len(SIZES) - 1), np.int64))  # a, b, went, came
    passed: np.ndarray = field(default_factory=lambda: np.zeros((2, STEPS), np.int64))  # candidates above thresholds
    examples: list[tuple[int, int, str, Difference]] = field(default_factory=list)  # a heap by number of differences

    def add(self, image_id: int, unit: str, found: Difference, examples: int) -> None:
        """One image more."""
        self.masks[0] += len(found.a)
        self.masks[1] += len(found.b)
        self.went.update(found.went.values())
        self.came.update(found.came.values())
        self.changed += len(found.changed)
        covered = (shares(found.a), shares(found.b), shares(found.a, found.went), shares(found.b, found.came))
        self.sizes += np.array([np.histogram(c, SIZES)[0] for c in covered])
        if differences := len(found.went) + len(found.came) + len(found.changed):
            heapq.heappush(self.examples, (differences, image_id, unit, found))
            if len(self.examples) > examples:
                heapq.heappop(self.examples)


def filter_called(build: Build, name: str) -> FilterConfig:
    """A filter of the build, or one that it could have: a YAML file, or a name of configs/filter."""
    if build.info["candidates"] is False:
        raise UserError(f"{str(build.path)!r} was built with --no-candidates: a filter has nothing to choose from")
    if name in build.filters:
        return stored_settings(build, name)
    try:
        cfg = settings(build, "", name, {})
    except UserError as e:
        raise UserError(f"{e}; filters of {str(build.path)!r}: {', '.join(build.filters)}") from e
    Config(generate=generate_config(build), filter=cfg).check_floor()
    return cfg


def chosen(manifests: list[Manifest], most: int) -> list[Manifest]:
    """Units spread evenly over the build, with about `most` images (0: all)."""
    images = sum(m.images for m in manifests)
    units = len(manifests) if not most or images <= most else max(1, round(len(manifests) * most / images))
    return [manifests[i * len(manifests) // units] for i in range(units)]


def diff(build: Build, a: FilterConfig, b: FilterConfig, most: int, examples: int, quiet: bool) -> Tally:
    """Both filters over the candidates of `chosen` units."""
    tally, generate, levels = Tally(), generate_config(build), thresholds(build)
    manifests = chosen(build.manifests(), most)
    with Ticker("images", sum(m.images for m in manifests), quiet) as ticker:
        for manifest in manifests:
            path = build.path / manifest.files["candidates"].path
            with remote.named(path), path.open("rb") as file:
                for rows in by_image(pq.ParquetFile(file)):
                    image_id, height, width = (rows[name][0].as_py() for name in ("image_id", "height", "width"))
                    first = np.array([crop.first_prompt for crop in crop_plan(height, width, generate)])
                    table = to_mask_table(rows, height, width, first)
                    found = compare(table, a, b, len(first), image_id)
                    tally.add(image_id, manifest.unit, found, examples)
                    tally.passed[0] += acceptance(table.predicted_iou, levels[0], strict=True)
                    tally.passed[1] += acceptance(table.stability_score, levels[1])
            tally.images += manifest.images
            ticker.add(manifest.images)
    return tally


def lines(build: Build, tally: Tally, names: tuple[str, str]) -> Iterator[str]:
    """The tally as text."""
    total = sum(m.images for m in build.manifests())
    of = "" if tally.images == total else f" of {total} (units spread evenly; --images 0 looks at all)"
    yield f"{build.path}: {names[0]} -> {names[1]}, {tally.images} images{of}"
    each = max(1, tally.images)
    for name, masks in zip(names, tally.masks, strict=True):
        yield f"{name:<24} {masks:>9} masks  {masks / each:8.1f} an image"
    yield from reasons("went", tally.went, names[1])
    yield from reasons("came", tally.came, names[0])
    if tally.changed:
        yield f"{'changed':<24} {tally.changed:>9} masks of both have other pixels"
    yield f"{'share of the image':<24} {names[0]:>9.9} {names[1]:>9.9} {'went':>9} {'came':>9}"
    for low, high, counts in zip(SIZES, SIZES[1:], tally.sizes.T.tolist(), strict=False):
        what = f"{low:.2%} to {high:.2%}" if np.isfinite(high) else f"{low:.2%} or more"
        what = what if low else f"less than {high:.2%}"
        yield f"  {what:<22} " + " ".join(f"{n:>9}" for n in counts)
    yield from curves(build, tally)


def reasons(what: str, why: Counter[str], filter: str) -> Iterator[str]:
    """Which rules, the first first."""
    yield f"{what:<24} {why.total():>9} masks"
    for name, count in why.most_common():
        yield f"  {name:<22} {count:>9}  {count / why.total():7.1%}  dropped by {filter}"


def curves(build: Build, tally: Tally) -> Iterator[str]:
    """Candidates an image above each threshold, from the scores alone: before NMS and all that follows."""
    for name, levels, passed in zip(("predicted IoU >", "stability >="), thresholds(build), tally.passed, strict=True):
        yield f"{name:<24} " + " ".join(f"{t:>8.2f}" for t in levels)
        yield f"  {'candidates an image':<22} " + " ".join(f"{p:>8.1f}" for p in passed / max(1, tally.images))


def thresholds(build: Build) -> np.ndarray:
    """2 x STEPS: of predicted IoU and of stability, from the build's floors to 1."""
    generate = generate_config(build)
    return np.linspace((generate.floor_pred_iou, generate.floor_stability), 1, STEPS, axis=1)
