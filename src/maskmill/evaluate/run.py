"""An evaluation: a model on an annotated set, mask by mask."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from maskmill.errors import UserError
from maskmill.evaluate.baselines import SCALES, SIGMA, SMALLEST, BaselineScores, best_guesses, score_baselines
from maskmill.evaluate.bootstrap import Estimate, estimate
from maskmill.evaluate.config import EvaluateConfig
from maskmill.evaluate.instances import Instances, InstanceScores
from maskmill.evaluate.prompts import Prompter, PromptScores, clicks_needed, score_image
from maskmill.evaluate.proposals import Proposals, ProposalScores, automatic
from maskmill.evaluate.windows import parts
from maskmill.masks.rle import area
from maskmill.prompts.clicks import deepest
from maskmill.sam.sam import Sam
from maskmill.storage.annotated import Annotated, AnnotatedSet


@dataclass
class Evaluation:
    """Figures of every mask, in the order of the set; `image` says which image each belongs to."""

    cfg: EvaluateConfig
    names: list[str] = field(default_factory=list)  # of images
    index: list[int] = field(default_factory=list)  # their numbers in the set
    image: list[int] = field(default_factory=list)
    mask_id: list[int] = field(default_factory=list)
    area: list[int] = field(default_factory=list)
    scores: list[PromptScores] = field(default_factory=list)
    proposals: ProposalScores | None = None
    instances: InstanceScores | None = None
    baselines: list[BaselineScores] = field(default_factory=list)

    def column(self, name: str) -> np.ndarray:
        """One of PromptScores' arrays over all masks."""
        return np.concatenate([getattr(s, name) for s in self.scores])

    def mean(self, values: np.ndarray) -> Estimate:
        """With its interval."""
        return estimate(values, np.array(self.image), self.cfg.resamples, self.cfg.seed)

    def summary(self) -> dict[str, Any]:
        """Everything that is measured, as JSON has it."""
        cfg, ious = self.cfg, self.column("ious")
        tree: dict[str, Any] = {"images": len(self.names), "masks": len(ious)}
        tree["miou"] = {str(n): self.mean(ious[:, n - 1]).tree() for n in cfg.clicks}
        for name in ("oracle", "random", "box", "box_single"):
            tree[name] = self.mean(self.column(name)).tree()
        tree["noc"] = {}
        for goal in cfg.noc:
            clicks, failed = clicks_needed(ious, goal, cfg.max_clicks)
            share = round(float(failed.mean()), 5)
            tree["noc"][f"{100 * goal:g}"] = self.mean(clicks).tree() | {"failures": int(failed.sum()), "share": share}
        if (p := self.proposals) is not None:
            tree["recall"] = {n: number(v) for n, v in p.recall.items()} | {"interval": p.recall_interval.tree()}
            tree["precision"] = {n: number(v) for n, v in p.precision.items()}
            tree["automatic_masks_per_image"] = round(p.masks_per_image, 2)
        if (a := self.instances) is not None:
            named = {"ap": a.ap, "without_refinement": a.first, "by_category": a.by_category}
            tree["boxes"] = {"boxes": a.boxes} | {k: {n: number(v) for n, v in x.items()} for k, x in named.items()}
        if self.baselines:
            tree["baselines"] = self.compared()
        tree["seconds"] = {
            "image": round(float(np.median([s.seconds_image for s in self.scores])), 5),
            "prompt": round(float(np.median([s.seconds_prompt for s in self.scores])), 6),
        }
        return tree

    def compared(self) -> dict[str, Any]:
        """Both baselines, and by how much the model's best of three lies above each, mask by mask."""
        best, oracle = best_guesses(self.baselines), self.column("oracle")
        about: dict[str, dict[str, Any]] = {
            "segments": {"scales": SCALES, "sigma": SIGMA, "min_size": SMALLEST},
            "discs": {"radii": best.radii},
        }
        return {
            name: self.mean(ious).tree() | {"oracle_above": self.mean(oracle - ious).tree()} | about[name]
            for name, ious in (("segments", best.segments), ("discs", best.discs))
        }

    def table(self) -> pa.Table:
        """One row for every mask."""
        columns: dict[str, Any] = {
            "image": [self.names[i] for i in self.image],
            "mask_id": self.mask_id,
            "area": self.area,
            "ious": list(self.column("ious")),
        }
        columns |= {name: self.column(name) for name in ("oracle", "random", "box", "box_single")}
        if self.baselines:
            best = best_guesses(self.baselines)
            columns |= {"segments": best.segments, "discs": best.discs}
        return pa.table(columns)


def evaluate(
    model: Sam,
    data: AnnotatedSet,
    cfg: EvaluateConfig,
    say: Callable[[int, int], None] = lambda done, of: None,
    instances: Instances | None = None,
) -> Evaluation:
    """Measure a model. `say` hears how many images are done; `instances`: mask AP from boxes too.

    UserError for a set without a mask to measure on."""
    out, proposals = Evaluation(cfg), Proposals()
    chosen = choose_images(len(data.names), cfg)
    for done, i in enumerate(chosen):
        whole = large_enough(data.read(i), cfg)
        found = choose_masks(whole, i, cfg)
        prompter = measure(out, model, found, i) if found.counts else None
        if instances is not None:  # boxes on an image without masks are wrong ones
            instances.add(prompter or Prompter(model, found.image), whole, cfg.batch)
        if cfg.points_per_side:  # all masks: an automatic one that finds any of them is right
            size = (found.image.shape[0], found.image.shape[1])
            crowds = [counts for _, counts in whole.crowds]
            proposals.add(size, list(whole.counts), *automatic(model, found.image, cfg), crowds)
        say(done + 1, len(chosen))
    if not out.scores:
        raise UserError(
            f"no mask to measure on in {len(chosen)} images: all are empty or below min_area={cfg.min_area}"
        )
    if cfg.points_per_side:
        out.proposals = proposals.evaluate(cfg)
    if instances is not None:
        out.instances = instances.evaluate()
    return out


def measure(out: Evaluation, model: Sam, found: Annotated, i: int) -> Prompter | None:
    """The chosen masks of image i: clicks, boxes, baselines. Returns what holds the image, unless it was cut."""
    out.names.append(found.name)
    out.index.append(i)
    prompter = None
    for part in parts(found, out.cfg.window):
        prompter = Prompter(model, part.image)
        out.image += [len(out.names) - 1] * len(part.counts)
        out.mask_id += part.ids
        out.area += [area(c, *part.image.shape[:2]) for c in part.counts]
        tasks = [f"{part.name}\0{mask_id}" for mask_id in part.ids]
        out.scores.append(score_image(prompter, part.masks, tasks, out.cfg))
        if out.cfg.baselines:
            points = [deepest(m)[0] for m in part.masks]
            out.baselines.append(score_baselines(part.image, part.masks, points))
    return prompter if part is found else None


def choose_images(count: int, cfg: EvaluateConfig) -> list[int]:
    """All, or as many at random as are wanted, in order."""
    if cfg.images is None or cfg.images >= count:
        return list(range(count))
    drawn = np.random.default_rng([cfg.seed, 0]).choice(count, cfg.images, replace=False)
    return [int(i) for i in np.sort(drawn)]


def large_enough(found: Annotated, cfg: EvaluateConfig) -> Annotated:
    """Without the masks below `min_area`."""
    size = found.image.shape[:2]
    return take(found, [n for n, c in enumerate(found.counts) if area(c, *size) >= cfg.min_area])


def choose_masks(found: Annotated, i: int, cfg: EvaluateConfig) -> Annotated:
    """All masks of image i, or as many of them at random as are wanted."""
    rng = np.random.default_rng([cfg.seed, 1, i])
    kept = np.arange(len(found.counts))
    if cfg.mask_share < 1:
        kept = kept[rng.random(len(kept)) < cfg.mask_share]
    if cfg.masks_per_image is not None and len(kept) > cfg.masks_per_image:
        kept = np.sort(rng.choice(kept, cfg.masks_per_image, replace=False))
    return take(found, kept.tolist())


def take(found: Annotated, kept: list[int]) -> Annotated:
    """Some of its masks."""
    return replace(
        found,
        ids=tuple(found.ids[n] for n in kept),
        counts=tuple(found.counts[n] for n in kept),
        categories=tuple(found.categories[n] for n in kept),
    )


def number(value: float) -> float | None:
    """NaN is no JSON."""
    return None if np.isnan(value) else round(value, 5)
