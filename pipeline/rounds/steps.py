"""The steps of one round, each of which leaves a file or a build behind: what is there is not done again."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from maskmill.config import ModelSection, RunConfig
from maskmill.pipeline.engines import Engine
from maskmill.pipeline.exchange.importing import import_job, make_recipe, open_sa1b_import
from maskmill.pipeline.generate import Opened, close_build, new_job, open_build
from maskmill.pipeline.progress import ProgressReporter
from maskmill.pipeline.rounds.annotate import Assignment, queue_of, write_assignment
from maskmill.pipeline.rounds.config import PrefillConfig
from maskmill.pipeline.rounds.handed_in import RoundImportJob
from maskmill.pipeline.rounds.prepare import FILTER, PrepareJob, PrepareRecipe, prepare_config
from maskmill.pipeline.rounds.watch import At, Failed, Stopped, Watch
from maskmill.pipeline.run import Outcome, run_tasks
from maskmill.pipeline.unit import Job, Task
from maskmill.sam.build import checkpoint_sha256
from maskmill.storage.build import Build
from maskmill.storage.files import at, sha256_file

LIVES = 5  # how many annotator processes of a round may die before it is given up
END_S = 60.0  # for the image at hand, once annotators were asked to stop


def run_build(opened: Opened, job: Job, engine: Engine, watch: Watch, images: int) -> Build:
    """Do what is pending of a build and close it. Stopped; Failed if units fail."""
    outcome = Outcome()
    if opened.pending:
        with ProgressReporter(opened.build, images, watch.quiet):
            outcome = run_tasks(job, [Task(unit) for unit in opened.pending], engine, watch.tell)
    if outcome.stopped:
        raise Stopped
    if outcome.left:
        first = outcome.left[0].unit.unit
        raise Failed(f"{opened.build}: unit {first} failed: {outcome.errors.get(first, 'see maskmill status')}")
    if (closed := close_build(opened.build)) != "closed":
        raise Failed(f"{opened.build} cannot be closed ({closed}): is another run at work on it?")
    return Build(opened.build)


def prepare(
    folder: Path,
    model: ModelSection,
    embeddings: Path,
    detector: Path | None,
    prefill: PrefillConfig,
    run: RunConfig,
    engine: Engine,
    watch: Watch,
    images: int,
) -> Build:
    """FOLDER/prepared: every image of the round embedded; with a detector, its confident masks."""
    sha256 = None if detector is None else sha256_file(detector)
    config, weights = prepare_config(model, prefill, run), checkpoint_sha256(model.name, model.checkpoint)
    images_tar = str(folder / "images.tar")
    recipe = PrepareRecipe(config, weights, images_tar, FILTER, True, sha256, prefill.box_score)
    opened = open_build(recipe, folder / "prepared", append=False)
    plain = new_job(recipe, opened.build, None)
    same = {f.name: getattr(plain, f.name) for f in fields(plain) if f.name != "segmenter"}
    job = PrepareJob(
        **same, embeddings=str(embeddings.resolve()), detector=None if detector is None else str(detector.resolve()),
        box_score=prefill.box_score,
    )  # fmt: skip
    return run_build(opened, job, engine, watch, images)


def annotate(
    folder: Path, assignment: Assignment, tasks: Sequence[tuple[str, str]], processes: int, say: At
) -> dict[str, Path]:
    """Every task handed in by simulated annotators, each a process; one that dies is replaced. Without any, others work
    on the queue. Returns the answer's file of each task that could be done. Stopped, Failed."""
    write_assignment(folder, assignment)
    queue = queue_of(folder, assignment)
    queue.add(tasks)
    names = [f"annotator-{n}" for n in range(processes + LIVES)]
    for name in names:  # of a run that was killed: its annotators died with it
        queue.release_of(name)
    command = [sys.executable, "-m", "maskmill.pipeline.rounds.annotate", str(folder)]
    at_work: dict[str, subprocess.Popen[bytes]] = {}
    patience = 0.0
    try:
        while (left := queue.left()) > 0:
            say(len(tasks) - left, len(tasks))
            for name in [n for n, process in at_work.items() if process.poll() is not None]:
                queue.release_of(name)
                del at_work[name]
            while len(at_work) < min(processes, left):
                if not names:
                    raise Failed(f"the annotators of {folder} keep dying: see what they said above")
                at_work[names[0]] = subprocess.Popen([*command, names.pop(0), str(os.getpid())])
            time.sleep(0.05)
        patience = END_S
    except Stopped:
        for process in at_work.values():
            process.terminate()
        patience = END_S
        raise
    finally:
        dismiss(list(at_work.values()), patience)
    done = {claim.name: folder / "answers" / claim.file for claim, _ in queue.handed_in()}
    if not done:
        why = "; ".join(sorted(set(queue.answers("rejected").values())))
        raise Failed(
            f"not one task of {folder} could be done: {why}; mend that, remove {queue.path}, and the same command "
            f"hands the tasks out anew"
        )
    return done


def dismiss(processes: list["subprocess.Popen[bytes]"], patience: float) -> None:
    """They may end by themselves within `patience` seconds."""
    until = time.monotonic() + patience
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in processes:
                process.wait(max(0.0, until - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def import_masks(
    folder: Path, stage: str, made_with: str, run: RunConfig, engine: Engine, watch: Watch, images: int
) -> Build:
    """FOLDER/masks: what annotators handed in, as a build."""
    recipe = make_recipe(str(folder / "masks.tar"), "sa1b", "keep", run, 400.0, candidates=True)
    opened = open_sa1b_import(recipe, at(folder / "masks"), False, watch.tell)
    plain = import_job(recipe, opened.build)
    same = {f.name: getattr(plain, f.name) for f in fields(plain) if f.name != "worker"}
    return run_build(opened, RoundImportJob(**same, stage=stage, made_with=made_with), engine, watch, images)
