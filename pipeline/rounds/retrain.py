"""After people have worked: train on what they made, measure, and let the gate decide which model serves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maskmill.config import ModelSection
from maskmill.evaluate.run import evaluate
from maskmill.pipeline.rounds.config import EngineConfig
from maskmill.pipeline.rounds.gate import worse
from maskmill.pipeline.rounds.record import Record
from maskmill.pipeline.rounds.watch import At, Stopped, Watch
from maskmill.sam.build import checkpoint_sha256, load_model
from maskmill.storage.annotated import AnnotatedSet
from maskmill.storage.build import Build
from maskmill.training.config import Source, TrainConfig
from maskmill.training.fit import NothingToLearn, Progress, fit
from maskmill.training.trainer import Diverged


@dataclass(frozen=True)
class Retraining:
    """One round's. `held_out`: no annotator and no training sees it."""

    cfg: EngineConfig
    out: Path  # of the run
    name: str  # of the round
    embeddings: Path
    held_out: AnnotatedSet
    watch: Watch

    def do(self, builds: list[Path], model: ModelSection, model_in: Record, served: Sequence[Record]) -> Record:
        """The part of the record from `training` on. builds: all masks so far; served: the metrics of the models that
        served in all rounds before, last of the one that serves now."""
        kept = {"model_out": model_in, "metrics": served[-1]}
        builds = [b for b in builds if masks_in(b)]
        if not self.cfg.retrain or not builds:
            why = "no retraining" if builds else "there are no masks to learn from"
            return {**kept, "decision": f"kept: {why}"}
        about = {"rounds": [b.parent.name for b in builds], "masks": sum(masks_in(b) for b in builds)}
        try:
            path = self.train(builds, model)
        except Diverged as e:
            return {"training": about, **kept, "decision": f"not promoted: {e}"}
        except NothingToLearn as e:
            return {"training": about, **kept, "decision": f"kept: {e}"}
        found = measure(self.watch, self.name, ModelSection(model.name, str(path)), self.held_out, self.cfg)
        new = {
            "name": model.name, "checkpoint": str(path.relative_to(self.out)),
            "sha256": checkpoint_sha256(model.name, str(path)),
        }  # fmt: skip
        falls = worse(found, served, self.cfg.gate.tolerance)
        if falls and self.cfg.gate.enabled:
            refused = {"training": about, **kept, "candidate": new | {"metrics": found}}
            return {**refused, "decision": f"not promoted: {'; '.join(falls)}"}
        words = "promoted" if self.cfg.gate.enabled else "promoted: the gate is off"
        return {"training": about, "model_out": new, "metrics": found, "decision": words}

    def train(self, builds: list[Path], model: ModelSection) -> Path:
        """The weights that the round's training ends with. Diverged, NothingToLearn, Stopped."""
        folder = self.out / "rounds" / self.name / "train"
        with self.watch.step(self.name, "train") as say:
            run_training(self.recipe(builds, model), str(folder), self.cfg.train_processes, self.watch, say)
        return folder / "model.safetensors"

    def recipe(self, builds: list[Path], model: ModelSection) -> TrainConfig:
        """The config's recipe with this round's data and first weights."""
        cfg = self.cfg.train
        sources = tuple(Source(str(build)) for build in builds)
        return replace(
            cfg, model=replace(cfg.model, name=model.name, checkpoint=model.checkpoint),
            data=replace(cfg.data, sources=sources), run=replace(cfg.run, embeddings=str(self.embeddings)),
        )  # fmt: skip


def run_training(cfg: TrainConfig, out: str, processes: int, watch: Watch, say: At) -> None:
    """In this process, or in several by Ray Train. Stopped after the step at hand: it then continues there."""
    if processes > 1:
        from maskmill.pipeline.ray_train import fit_on_ray

        watch.impatient = True  # the processes keep what they saved last
        try:
            if not fit_on_ray(cfg, out, processes):
                raise Stopped
        except KeyboardInterrupt:
            raise Stopped from None
        finally:
            watch.impatient = False
        return

    def heard(progress: Progress) -> None:
        if not watch.asked:  # else `stopped` ends it, with a checkpoint
            say(progress.step, progress.steps)

    if not fit(cfg, out, say=heard, stopped=lambda: watch.asked):
        raise Stopped


def masks_in(build: Path) -> int:
    """From its manifests."""
    return sum(manifest.masks for manifest in Build(build).manifests())


def measure(watch: Watch, name: str, model: ModelSection, held_out: AnnotatedSet, cfg: EngineConfig) -> Record:
    """Figures of a model on the held-out part. Stopped."""
    with watch.step(name, "measure") as say:
        tree = evaluate(load_model(model.name, model.checkpoint), held_out, cfg.measure, say).summary()
    del tree["seconds"]  # of this machine
    return tree
