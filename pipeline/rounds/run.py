"""The data engine as one run: rounds of annotation and retraining, then the main job over everything.

DIR/engine.json            what it is: the config and the data's fingerprint
DIR/rounds/<stage>-<n>/    one round: images.tar, prepared/ (a build), queue.sqlite, answers/, masks/ (a build),
                           train/ (a training run), detector.safetensors, round.json last: with it the round is over
DIR/automatic/             the last stage: a build; DIR/rounds/automatic-1/round.json measures it

Every step leaves something behind and is not done again; all of it follows from the data, the config and the seed. So a
killed run continues by the same command to the same records; only timing.json tells when.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from maskmill.config import ModelSection
from maskmill.errors import UserError
from maskmill.pipeline.engines import Engine
from maskmill.pipeline.generate import check_apart, new_job, open_build
from maskmill.pipeline.recipe import Recipe
from maskmill.pipeline.rounds.annotate import Assignment
from maskmill.pipeline.rounds.config import EngineConfig
from maskmill.pipeline.rounds.data import EngineImages, check_enough, parts
from maskmill.pipeline.rounds.detectors import make_detector, measure_detector, take_detections
from maskmill.pipeline.rounds.pack import names_in, pack_answers, pack_images, stem
from maskmill.pipeline.rounds.quality import automatic_quality
from maskmill.pipeline.rounds.record import (
    Record,
    about_annotators,
    check_same,
    fingerprint,
    read_about,
    read_answers,
    read_record,
    summary,
    thresholds,
)  # fmt: skip
from maskmill.pipeline.rounds.retrain import Retraining, masks_in, measure
from maskmill.pipeline.rounds.steps import annotate, import_masks, prepare, run_build
from maskmill.pipeline.rounds.watch import Watch
from maskmill.sam.build import checkpoint_sha256
from maskmill.storage.annotated import open_annotated
from maskmill.storage.build import Build
from maskmill.storage.files import at, create_if_absent, exists, sha256_file, to_json

THREADS = 1  # of this process, on every machine: another number rounds sums in another order


@dataclass(frozen=True)
class Round:
    """One round to do: `start` is its first image in the pool's order."""

    stage: str
    number: int
    start: int
    images: int

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.number}"


def rounds_of(cfg: EngineConfig) -> Iterator[Round]:
    """All rounds with people, in order."""
    start = 0
    for stage, plan in (("assisted", cfg.assisted), ("semi", cfg.semi)):
        for number in range(1, plan.rounds + 1):
            yield Round(stage, number, start, plan.images)
            start += plan.images


class DataEngine:
    """A run in its folder."""

    def __init__(self, cfg: EngineConfig, out: Path, engine: Engine, watch: Watch) -> None:
        self.cfg, self.out, self.engine, self.watch = cfg, out, engine, watch
        if cfg.data.source is not None:
            check_apart(cfg.data.images or cfg.data.source, at(out))
        else:
            check_enough(sum(r.images for r in rounds_of(cfg)), *parts(cfg.data, cfg.data.scenes))
        self.rounds = list(rounds_of(cfg))
        self.embeddings, self.detections = out / "embeddings", out / "detections.json"
        # drawn images become a run's with engine.json: until then another start would take them for remains
        with nullcontext() if cfg.data.source is not None or exists(at(out / "engine.json")) else watch.alone():
            self.images = self.begin()

    def begin(self) -> EngineImages:
        """The images of this run, which is a new one or has the same config and data as before. UserError if not."""
        if exists(at(self.out / "engine.json")):  # before anything is drawn for another config
            check_same(self.out, read_about(self.out) | {"data": {}}, fingerprint(self.cfg, {}))
        images = EngineImages(self.cfg.data, self.cfg.seed, self.out, self.watch)
        check_apart(images.inputs, at(self.out / "automatic"))
        images.take(0, sum(r.images for r in self.rounds))  # asked for too many: say so before any work
        given = take_detections(self.cfg.prefill, images.whole, self.detections)
        about = to_json(fingerprint(self.cfg, images.fingerprint | given))
        create_if_absent(at(self.out / "engine.json"), about)
        check_same(self.out, read_about(self.out), json.loads(about))
        return images

    def run(self) -> list[Record]:
        """Every round to its record. Stopped, if it was asked to; the same call continues."""
        torch.set_num_threads(THREADS)
        with self.watch.alone(), self.watch.signals():
            records = [self.record("start-0", self.first)]
            for r in self.rounds:
                records.append(self.record(r.name, lambda r=r: self.annotated(r, records)))  # type: ignore[misc]
            if self.cfg.automatic.enabled:
                records.append(self.record("automatic-1", lambda: self.automatic(records)))
        return records

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        names = ["start-0", *(r.name for r in self.rounds), *(["automatic-1"] if self.cfg.automatic.enabled else [])]
        return all(read_record(self.out / "rounds" / name) is not None for name in names)

    def record(self, name: str, make: Callable[[], Record]) -> Record:
        """The record of a round: it is there, or the round is done now."""
        folder = self.out / "rounds" / name
        if (found := read_record(folder)) is not None:
            return found
        self.watch.tell(f"round {name}")
        made = make()
        create_if_absent(at(folder / "round.json"), to_json(made))
        self.watch.tell(f"round {name}: {made['decision']}" if "decision" in made else f"round {name}: done")
        return read_record(folder) or made

    def first(self) -> Record:
        """The model that the run begins with, measured."""
        model = self.cfg.model
        sha256 = checkpoint_sha256(model.name, model.checkpoint)
        metrics = measure(self.watch, "start-0", model, self.images.held_out, self.cfg)
        return {
            "stage": "start", "round": 0, "model_out": {"name": model.name, "checkpoint": None, "sha256": sha256},
            "metrics": metrics,
        }  # fmt: skip

    def serving(self, records: list[Record]) -> tuple[ModelSection, Record]:
        """The model that serves now, and its record. UserError if its weights have been changed since."""
        model, section = records[-1]["model_out"], self.cfg.model
        if model["checkpoint"] is not None:
            section = ModelSection(self.cfg.model.name, str(self.out / model["checkpoint"]))
        if checkpoint_sha256(section.name, section.checkpoint) != model["sha256"]:
            raise UserError(
                f"the weights of {section.checkpoint or section.name} are no longer those that the run has used "
                f"({model['sha256'][:8]}): restore them, or begin another --out"
            )
        return section, model

    def annotated(self, r: Round, records: list[Record]) -> Record:
        """Prepare, annotate, retrain, measure, decide."""
        model, model_in = self.serving(records)
        chosen = self.images.take(r.start, r.images)
        found = self.detector(r, model) if r.stage == "semi" else {}
        annotation = self.annotate(r, chosen, model, f"{model.name}-{model_in['sha256'][:8]}")
        made: Record = {
            "stage": r.stage, "round": r.number, "data": self.about_data(r), "model_in": model_in,
            "annotators": about_annotators(self.cfg), "thresholds": thresholds(self.cfg, r.stage), **found,
            "annotation": annotation,
        }  # fmt: skip
        retraining = Retraining(self.cfg, self.out, r.name, self.embeddings, self.images.held_out, self.watch)
        served = [record["metrics"] for record in records]
        return made | retraining.do(self.builds(r, True), model, model_in, served)

    def annotate(self, r: Round, chosen: list[int], model: ModelSection, model_id: str) -> Record:
        """The images embedded and shown, the masks handed in, as a build; what people did."""
        folder, cfg = self.out / "rounds" / r.name, self.cfg
        with self.watch.step(r.name, "pack"):
            if not exists(at(folder / "images.tar")):
                pack_images(self.images.whole, chosen, folder / "images.tar", self.watch.tell)
        detector = self.detector_path(r) if r.stage == "semi" and exists(at(self.detector_path(r))) else None
        with self.watch.step(r.name, "prepare"):
            prepared = prepare(
                folder, model, self.embeddings, detector, cfg.prefill, cfg.run, self.engine, self.watch, r.images
            )
        assignment = Assignment(
            round=r.name, model=model, model_id=model_id, source=self.images.source, images=self.images.images,
            embeddings=str(self.embeddings), session=cfg.annotators, lease_s=cfg.queue.lease_s,
            annotators=max(1, cfg.queue.processes), prepared=str(folder / "prepared"),
        )  # fmt: skip
        packed = names_in(folder / "images.tar")
        tasks = [(name, str(i)) for i in chosen if (name := stem(self.images.whole.names[i])) in packed]
        with self.watch.step(r.name, "annotate") as say:
            if not cfg.queue.processes:
                self.watch.tell(f"waiting for others to work on {folder / 'queue.sqlite'}")
            done = annotate(folder, assignment, tasks, cfg.queue.processes, say)
        with self.watch.step(r.name, "import"):
            if not exists(at(folder / "masks.tar")):
                pack_answers(folder / "images.tar", done, folder / "masks.tar")
            import_masks(folder, r.stage, model_id, cfg.run, self.engine, self.watch, len(done))
        counts = {"images": len(done), "not_done": len(chosen) - len(done)} | quarantined(prepared)
        return counts | summary(read_answers(folder / "masks.tar"))

    def about_data(self, r: Round) -> Record:
        """Which images, and the bytes that came of them."""
        masks = sha256_file(self.out / "rounds" / r.name / "masks.tar")
        return {"first": r.start, "images": r.images, "masks_sha256": masks}

    def detector_path(self, r: Round) -> Path:
        """The round's own detector, or the boxes that were given for all rounds."""
        own = self.out / "rounds" / r.name / "detector.safetensors"
        return own if self.cfg.prefill.detections is None else self.detections

    def detector(self, r: Round, model: ModelSection) -> Record:
        """The round's box detector, from all masks so far, and how many held-out objects it finds. Nothing is prefilled
        while there is no mask to train it on."""
        path, prefill = self.detector_path(r), self.cfg.prefill
        builds = [] if prefill.detections else [b for b in self.builds(r, False) if masks_in(b)]
        if prefill.detections is None:
            if not builds:
                self.watch.tell(f"{r.name}: no mask to train a detector on: nothing is prefilled")
                return {}
            with self.watch.step(r.name, "detector") as say:
                make_detector(path, builds, model, self.embeddings, prefill, say)
        with self.watch.step(r.name, "detector recall") as say:
            found = measure_detector(path, self.images.held_out, model, self.embeddings, prefill, say)
        return {"detector": {"sha256": sha256_file(path), "rounds": [b.parent.name for b in builds], **found}}

    def builds(self, last: Round, include: bool) -> list[Path]:
        """The masks of all rounds before one, and of it."""
        before = [r for r in self.rounds if r.start < last.start or (include and r == last)]
        return [self.out / "rounds" / r.name / "masks" for r in before]

    def automatic(self, records: list[Record]) -> Record:
        """The main job over all images by the last model, and its quality where the truth is known."""
        model, model_in = self.serving(records)
        config, count = self.cfg.automatic.config(model, self.cfg.run), len(self.images.whole.names)
        recipe = Recipe(config, model_in["sha256"], self.images.inputs, "default", candidates=True)
        with self.watch.step("automatic-1", "generate"):
            opened = open_build(recipe, self.out / "automatic", append=False)
            build = run_build(opened, new_job(recipe, opened.build, None), self.engine, self.watch, count)
        with self.watch.step("automatic-1", "quality") as say:
            found = open_annotated(str(build.path)) if any(m.masks for m in build.manifests()) else None
            quality = automatic_quality(found, self.images.held_out, say)
        return {
            "stage": "automatic", "round": 1, "model_in": model_in, "model_out": model_in,
            "metrics": records[-1]["metrics"], "images": sum(m.images for m in build.manifests()),
            "masks": sum(m.masks for m in build.manifests()), **quarantined(build), "quality": quality,
        }  # fmt: skip


def quarantined(build: Build) -> Record:
    """How many images a model failed on, if any: people saw them without prefilled masks, or they have no masks."""
    count = sum(m.quarantined for m in build.manifests())
    return {"quarantined": count} if count else {}


def plan_lines(cfg: EngineConfig) -> Iterator[str]:
    """What a run would do, round by round. Writes nothing. UserError for too few images."""
    count = cfg.data.scenes
    if cfg.data.source is not None:
        count = len(open_annotated(cfg.data.source, cfg.data.images).names)
    pool, held = parts(cfg.data, count)
    what = f"{cfg.data.source}" if cfg.data.source is not None else "scenes that the engine draws"
    yield f"data        {count} images: {what}; {held} held out, {pool} for annotators"
    yield f"model       {cfg.model.name}{'' if cfg.model.checkpoint is None else f' ({cfg.model.checkpoint})'}"
    wanted = 0
    for r in rounds_of(cfg):
        wanted += r.images
        after = f"train {cfg.train.optim.steps} steps" if cfg.retrain else "no retraining"
        first = "" if r.stage == "assisted" else f"{cfg.prefill.whose}, prefill, "
        gate = "" if not cfg.retrain else ", measure, gate" if cfg.gate.enabled else ", measure, no gate"
        whom = f"{cfg.queue.processes} annotators" if cfg.queue.processes else "others"
        yield f"{r.name:<11} {r.images} tasks for {whom}: {first}annotate, {after}{gate}"
    if cfg.automatic.enabled:
        yield f"automatic-1 {count} images: maskmill generate by the last model, quality on the {held} held out"
    check_enough(wanted, pool, held)
