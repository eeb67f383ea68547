"""The steps of one round, each of which leaves a file or a build behind: what is there is not done again."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from maskmill.config import ModelSection, RunConfig
from maskmill.detect.train import Example, load_detector, save_detector, train_detector
from maskmill.errors import UserError
from maskmill.masks.rle import decode
from maskmill.pipeline.engines import Engine
from maskmill.pipeline.exchange.importing import import_job, make_recipe, open_sa1b_import
from maskmill.pipeline.generate import Opened, close_build, new_job, open_build
from maskmill.pipeline.rounds.annotate import Assignment, queue_of, write_assignment
from maskmill.pipeline.rounds.config import PrefillConfig
from maskmill.pipeline.rounds.prepare import FILTER, PrepareJob, PrepareRecipe, prepare_config
from maskmill.pipeline.rounds.tools import cached_predictor
from maskmill.pipeline.run import Outcome, run_tasks
from maskmill.pipeline.unit import Job, Task
from maskmill.pipeline.weights import weights_sha256
from maskmill.prompts.clicks import extent
from maskmill.sam.build import load_model
from maskmill.sam.sam import Sam
from maskmill.storage.annotated import Annotated, open_annotated
from maskmill.storage.build import Build
from maskmill.storage.files import at, exists, sha256_file
from maskmill.training.embeddings import EmbeddingCache

Tell = Callable[[str], None]
LIVES = 5  # of an annotator's process before the round gives up


class Stopped(Exception):
    """The run was asked to stop; the same command continues."""


def run_build(opened: Opened, job: Job, engine: Engine, tell: Tell) -> Build:
    """Do what is pending of a build and close it. UserError if units fail."""
    outcome = Outcome()
    if opened.pending:
        outcome = run_tasks(job, [Task(unit) for unit in opened.pending], engine, tell)
    if outcome.stopped:
        raise Stopped
    if outcome.left:
        first = outcome.left[0].unit.unit
        raise UserError(f"{opened.build}: unit {first} failed: {outcome.errors.get(first, 'see maskmill status')}")
    close_build(opened.build)
    return Build(opened.build)


def prepare(
    folder: Path,
    model: ModelSection,
    embeddings: Path,
    detector: Path | None,
    prefill: PrefillConfig,
    run: RunConfig,
    engine: Engine,
    tell: Tell,
) -> Build:
    """FOLDER/prepared: every image of the round embedded; with a detector, its confident masks."""
    sha256 = None if detector is None else sha256_file(detector)
    recipe = PrepareRecipe(
        prepare_config(model, prefill, run), weights_sha256(model.name, model.checkpoint), str(folder / "images.tar"),
        FILTER, True, sha256, prefill.box_score,
    )  # fmt: skip
    opened = open_build(recipe, folder / "prepared", append=False)
    plain = new_job(recipe, opened.build, "cpu")
    fields = {name: getattr(plain, name) for name in plain.__dataclass_fields__ if name not in ("segmenter",)}
    job = PrepareJob(
        **fields, embeddings=str(embeddings.resolve()), detector=None if detector is None else str(detector.resolve()),
        box_score=prefill.box_score,
    )  # fmt: skip
    return run_build(opened, job, engine, tell)


def annotate(folder: Path, assignment: Assignment, tasks: Sequence[tuple[str, str]], processes: int) -> None:
    """Every task handed in by simulated annotators, each a process; one that dies is replaced."""
    write_assignment(folder, assignment)
    queue = queue_of(folder, assignment)
    queue.add(tasks)
    command = [sys.executable, "-m", "maskmill.pipeline.rounds.annotate", str(folder)]
    started = 0
    at_work: list[subprocess.Popen[bytes]] = []
    try:
        while any(queue.counts()[state] for state in ("open", "claimed")):
            at_work = [p for p in at_work if p.poll() is None]
            while len(at_work) < processes:
                if started == processes + LIVES:
                    raise UserError(f"annotators of {folder} keep dying: see what they said above")
                at_work.append(subprocess.Popen([*command, f"annotator-{started}"]))
                started += 1
            time.sleep(0.1)
        for process in at_work:
            process.wait()
    finally:
        for process in at_work:
            process.kill()


def import_masks(folder: Path, run: RunConfig, engine: Engine, tell: Tell) -> Build:
    """FOLDER/masks: what annotators handed in, as a build."""
    recipe = make_recipe(str(folder / "masks.tar"), "sa1b", "keep", run, 400.0, candidates=True)
    opened = open_sa1b_import(recipe, at(folder / "masks"), False, tell)
    return run_build(opened, import_job(recipe, opened.build), engine, tell)


def make_detector(
    path: Path, builds: Sequence[Path], model: ModelSection, embeddings: Path, prefill: PrefillConfig, tell: Tell
) -> Path:
    """PATH: a detector that learned from all masks of these builds."""
    if exists(at(path)):
        load_detector(path, torch.device("cpu"))
        return path
    sam = load_model(model.name, model.checkpoint, device="cpu")
    cache = EmbeddingCache(at(embeddings), sam, "float32")
    examples: list[Callable[[], Example]] = []
    for build in builds:
        images = open_annotated(str(build))
        for i in range(len(images.names)):
            examples.append(lambda images=images, i=i: example(images.read(i), sam, cache))  # type: ignore[misc]
    tell(f"detector: {prefill.training.steps} steps on {len(examples)} images")
    head = train_detector(examples, prefill.detector, prefill.training, torch.device("cpu"))
    save_detector(head, path)
    return path


def example(found: Annotated, sam: Sam, cache: EmbeddingCache) -> Example:
    """Embedding C x h x w and boxes N x 4 of one image, in units of the input's side."""
    predictor = cached_predictor(sam, found.image, cache)
    height, width = found.image.shape[:2]
    scale = torch.tensor([predictor.input_size[1] / width, predictor.input_size[0] / height]).repeat(2) / sam.img_size
    masks = [decode(c, height, width) for c in found.counts]
    boxes = torch.tensor([extent(m) for m in masks if m.any()], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += 1  # corners are pixels, both inclusive
    return predictor.get_image_embedding()[0], boxes * scale
