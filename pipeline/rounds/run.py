"""The data engine as one run: rounds of annotation and retraining, then the main job over everything.

DIR/engine.json            what it is: the config and the data's fingerprint
DIR/rounds/<stage>-<n>/    one round: images.tar, prepared/ (a build), queue.sqlite, answers/, masks/ (a build),
                           train/ (a training run), detector.safetensors, round.json last: with it the round is over
DIR/automatic/             the last stage: a build; DIR/rounds/automatic-1/round.json measures it

Every step leaves something behind and is not done again; all of it follows from the data, the config and the seed. So a
killed run continues by the same command to the same records; only timing.json tells when.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from maskmill.config import ModelSection, to_tree
from maskmill.errors import UserError
from maskmill.evaluate.run import evaluate
from maskmill.pipeline.engines import Engine
from maskmill.pipeline.generate import new_job, open_build
from maskmill.pipeline.recipe import Recipe, differences
from maskmill.pipeline.rounds.annotate import Assignment
from maskmill.pipeline.rounds.config import EngineConfig
from maskmill.pipeline.rounds.data import EngineImages, read_record
from maskmill.pipeline.rounds.gate import worse
from maskmill.pipeline.rounds.pack import pack_answers, pack_images, stem
from maskmill.pipeline.rounds.quality import automatic_quality
from maskmill.pipeline.rounds.steps import annotate, import_masks, make_detector, prepare, run_build
from maskmill.pipeline.weights import weights_sha256
from maskmill.sam.build import load_model
from maskmill.storage.annotated import open_annotated
from maskmill.storage.files import at, create_if_absent, exists, read_bytes, to_json, write_bytes
from maskmill.training.config import Source, TrainConfig
from maskmill.training.fit import fit

THREADS = 1  # of this process, on every machine: another number rounds sums in another order
Tell = Callable[[str], None]
Record = dict[str, Any]


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


class DataEngine:
    """A run in its folder."""

    def __init__(self, cfg: EngineConfig, out: Path, engine: Engine, tell: Tell) -> None:
        self.cfg, self.out, self.engine, self.tell = cfg, out, engine, tell
        self.images = EngineImages(cfg.data, cfg.seed, out)
        self.embeddings = out / "embeddings"
        about = {"config": to_tree(cfg), "data": self.images.fingerprint}
        create_if_absent(at(out / "engine.json"), to_json(about))
        check_same(out, json.loads(read_bytes(at(out / "engine.json"))), json.loads(to_json(about)))

    def rounds(self) -> Iterator[Round]:
        """All rounds with people, in order."""
        start = 0
        for stage, plan in (("assisted", self.cfg.assisted), ("semi", self.cfg.semi)):
            for number in range(1, plan.rounds + 1):
                yield Round(stage, number, start, plan.images)
                start += plan.images

    def run(self) -> list[Record]:
        """Every round to its record. Stopped, if a build was asked to."""
        torch.set_num_threads(THREADS)
        rounds = list(self.rounds())
        self.images.take(0, sum(r.images for r in rounds))  # asked for too many: say so before any work
        records = [self.first_record()]
        for r in rounds:
            records.append(self.record(r.name, lambda r=r: self.annotated_round(r, records)))  # type: ignore[misc]
        if self.cfg.automatic.enabled:
            records.append(self.record("automatic-1", lambda: self.automatic(records)))
        return records

    def record(self, name: str, make: Callable[[], Record]) -> Record:
        """The record of a round: it is there, or the round is done now."""
        folder = self.out / "rounds" / name
        if (found := read_record(folder)) is not None:
            return found
        self.tell(f"round {name}")
        made = make()
        create_if_absent(at(folder / "round.json"), to_json(made))
        return read_record(folder) or made

    def first_record(self) -> Record:
        """The model that the run begins with, measured."""

        def make() -> Record:
            sha256 = weights_sha256(self.cfg.model.name, self.cfg.model.checkpoint)
            model = {"name": self.cfg.model.name, "checkpoint": None, "sha256": sha256}
            return {"stage": "start", "model_out": model, "metrics": self.measure("start-0", self.cfg.model)}

        return self.record("start-0", make)

    def serving(self, records: list[Record]) -> tuple[ModelSection, Record]:
        """The model that serves now, and its record."""
        model = records[-1]["model_out"]
        if model["checkpoint"] is None:
            return self.cfg.model, model
        return ModelSection(self.cfg.model.name, str(self.out / model["checkpoint"])), model

    def annotated_round(self, r: Round, records: list[Record]) -> Record:
        """Prepare, annotate, retrain, measure, decide."""
        folder = self.out / "rounds" / r.name
        model, model_in = self.serving(records)
        chosen = self.images.take(r.start, r.images)
        with self.step(r.name, "pack"):
            if not exists(at(folder / "images.tar")):
                pack_images(self.images.whole, chosen, folder / "images.tar")
        detector = self.detector(r, records) if r.stage == "semi" else None
        with self.step(r.name, "prepare"):
            prepare(folder, model, self.embeddings, detector, self.cfg.prefill, self.cfg.run, self.engine, self.tell)
        assignment = Assignment(
            model=model, model_id=f"{model.name}-{model_in['sha256'][:8]}", source=self.images.source,
            images=self.images.images, embeddings=str(self.embeddings), session=self.cfg.annotators,
            lease_s=self.cfg.queue.lease_s, annotators=self.cfg.queue.processes, prepared=str(folder / "prepared"),
            detector=None if detector is None else str(detector), box_score=self.cfg.prefill.box_score,
        )  # fmt: skip
        with self.step(r.name, "annotate"):
            tasks = [(stem(self.images.whole.names[i]), str(i)) for i in chosen]
            annotate(folder, assignment, tasks, self.cfg.queue.processes)
            if not exists(at(folder / "masks.tar")):
                pack_answers(folder / "images.tar", folder / "answers", folder / "masks.tar")
            import_masks(folder, self.cfg.run, self.engine, self.tell)
        made: Record = {
            "stage": r.stage, "round": r.number, "data": {"first": r.start, "images": r.images}, "model_in": model_in,
            "annotation": summary([json.loads((folder / "answers" / f"{name}.json").read_bytes()) for name, _ in tasks]),
        }  # fmt: skip
        return made | self.retrained(r, model, model_in, records)

    def detector(self, r: Round, records: list[Record]) -> Path:
        """The round's box detector, from all masks so far."""
        model, _ = self.serving(records)
        with self.step(r.name, "detector"):
            path = self.out / "rounds" / r.name / "detector.safetensors"
            return make_detector(path, self.builds(r, False), model, self.embeddings, self.cfg.prefill, self.tell)

    def builds(self, last: Round, include: bool) -> list[Path]:
        """The masks of all rounds before one, and of it."""
        before = [r for r in self.rounds() if r.start < last.start or (include and r == last)]
        return [self.out / "rounds" / r.name / "masks" for r in before]

    def retrained(self, r: Round, model: ModelSection, model_in: Record, records: list[Record]) -> Record:
        """Train on what was annotated, measure, and let the gate decide which model serves."""
        if not self.cfg.retrain:
            return {"model_out": model_in, "metrics": records[-1]["metrics"], "decision": "kept: no retraining"}
        folder = self.out / "rounds" / r.name / "train"
        with self.step(r.name, "train"):
            fit(self.training(self.builds(r, True), model), str(folder))
        path = folder / "model.safetensors"
        candidate = ModelSection(model.name, str(path))
        metrics = self.measure(r.name, candidate)
        new = {
            "name": model.name, "checkpoint": str(path.relative_to(self.out)),
            "sha256": weights_sha256(model.name, str(path)),
        }  # fmt: skip
        falls = worse(metrics, records[-1]["metrics"], self.cfg.gate.tolerance) if self.cfg.gate.enabled else []
        if falls:
            return {
                "model_out": model_in, "metrics": records[-1]["metrics"], "candidate": new | {"metrics": metrics},
                "decision": f"not promoted: {'; '.join(falls)}",
            }  # fmt: skip
        return {"model_out": new, "metrics": metrics, "decision": "promoted"}

    def training(self, builds: list[Path], model: ModelSection) -> TrainConfig:
        """The stage's recipe with this round's data and first weights."""
        cfg = self.cfg.train
        sources = tuple(Source(str(build)) for build in builds)
        return replace(
            cfg, model=replace(cfg.model, name=model.name, checkpoint=model.checkpoint),
            data=replace(cfg.data, sources=sources), run=replace(cfg.run, embeddings=str(self.embeddings)),
        )  # fmt: skip

    def measure(self, name: str, model: ModelSection) -> Record:
        """Figures of the held-out part, which no annotator and no training has seen."""
        with self.step(name, "measure"):
            sam = load_model(model.name, model.checkpoint, device="cpu")
            tree = evaluate(sam, self.images.held_out, self.cfg.measure).summary()
        del tree["seconds"]  # of this machine
        return tree

    def automatic(self, records: list[Record]) -> Record:
        """The main job over all images by the last model, and its quality where the truth is known."""
        model, model_in = self.serving(records)
        recipe = Recipe(
            self.cfg.automatic.config(model), model_in["sha256"], self.images.images or self.images.source, "default",
            candidates=True,
        )  # fmt: skip
        with self.step("automatic-1", "generate"):
            opened = open_build(recipe, self.out / "automatic", append=False)
            build = run_build(opened, new_job(recipe, opened.build, None), self.engine, self.tell)
        masks = sum(m.masks for m in build.manifests())
        quality = automatic_quality(open_annotated(str(build.path)), self.images.held_out)
        return {
            "stage": "automatic", "round": 1, "model_in": model_in, "model_out": model_in,
            "metrics": records[-1]["metrics"], "images": len(self.images.whole.names), "masks": masks,
            "quality": quality,
        }  # fmt: skip

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[None]:
        """Adds its seconds to the round's timing.json, beside the records: no two runs agree on them."""
        begun = time.monotonic()
        yield
        path = self.out / "rounds" / name / "timing.json"
        known = json.loads(path.read_bytes()) if path.exists() else {}
        known[what] = round(known.get(what, 0.0) + time.monotonic() - begun, 2)
        write_bytes(at(path), to_json(known))


def summary(trees: list[dict[str, Any]]) -> Record:
    """What people did, from what they handed in."""
    about = [tree["image"]["meta"] for tree in trees]
    masks = [a["meta"] for tree in trees for a in tree["annotations"]]
    seconds = sum(a["seconds"] for a in about)
    edits = {edit: sum(m["edit"] == edit for m in masks) for edit in ("drawn", "accepted", "fixed")}
    worked = [m for m in masks if m["edit"] != "accepted"]
    return {
        "masks": len(masks), "masks_per_image": round(len(masks) / max(1, len(trees)), 4), **edits,
        "prefilled": sum(a["prefilled"] for a in about), "rejected": sum(a["rejected"] for a in about),
        "given_up": sum(a["given_up"] for a in about), "objects": sum(a["objects"] for a in about),
        "seconds": round(seconds, 3), "seconds_per_mask": round(seconds / max(1, len(masks)), 4),
        "clicks": sum(m["clicks"] for m in masks),
        "clicks_per_mask": round(sum(m["clicks"] for m in worked) / max(1, len(worked)), 4),
    }  # fmt: skip


def check_same(out: Path, old: Record, new: Record) -> None:
    """A run goes on with the config and the data that it was begun with."""
    if changes := differences(old, new):
        raise UserError(
            f"{str(out)!r} was begun with another config or other data: {'; '.join(changes[:5])}. "
            f"Give the same, or another --out"
        )
