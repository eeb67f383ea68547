"""Builds with the fake segmenter: made here, or by a driver in a process of its own that can be killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from upath import UPath

from maskmill.config import resolve
from maskmill.pipeline.engines.local import LocalEngine
from maskmill.pipeline.generate import close_build, new_job, open_build
from maskmill.pipeline.recipe import Recipe
from maskmill.pipeline.run import Outcome, run_tasks
from maskmill.pipeline.unit import Job, Task
from maskmill.pipeline.verify import verify
from maskmill.storage.build import Build
from tests.chaos.fake import CALM, SEGMENTER, save

Out = str | Path | UPath


def images(folder: Path, count: int, odd: dict[int, int] | None = None) -> Path:
    """`count` small pictures; `odd` says which of them do what."""
    for i in range(count):
        save(folder / f"{i:04d}.png", i, (odd or {}).get(i, CALM))
    return folder


def recipe(source: Out, *assignments: str) -> Recipe:
    cfg = resolve(assignments=("run.unit_size=3", *assignments))
    return Recipe(cfg, "fake", str(source), "default", candidates=True)


def job_for(source: Out, out: Out, *assignments: str) -> tuple[Job, list[Task]]:
    """A new or continued build, ready to run."""
    made = recipe(source, *assignments)
    opened = open_build(made, out, append=False)
    job = replace(new_job(made, opened.build, "cpu"), segmenter=SEGMENTER)
    return job, [Task(unit) for unit in opened.pending]


def run_local(source: Out, out: Out, *assignments: str, inside: bool = False) -> Outcome:
    """What `generate --engine local` does, with the fake segmenter."""
    job, tasks = job_for(source, out, *assignments)
    outcome = run_tasks(job, tasks, LocalEngine(inside), print)
    if not outcome.left:
        close_build(out)
    return outcome


def tables(out: Out) -> dict[str, pa.Table]:
    """Every table of a build by its ledger, sorted."""
    build, both = Build(out), [("image_id", "ascending"), ("mask_id", "ascending")]
    return {
        "images": build.images().sort_by("image_id"),
        "candidates": build.candidates().sort_by(both),
        "masks": build.masks().sort_by(both),
    }


def assert_same(out: Out, want: dict[str, pa.Table], but: Iterable[str] = ()) -> None:
    """The build is whole, keeps its promises, and holds exactly the rows of an undisturbed one."""
    assert want["images"].num_rows and want["masks"].num_rows and want["candidates"].num_rows
    assert list(verify(out, quick=False)) == []
    got = tables(out)
    for name, table in want.items():
        if name not in but:
            assert got[name].equals(table), f"{name} differs: {got[name].num_rows} rows, {table.num_rows} expected"


def driver(
    source: Out, out: Out, *assignments: str, engine: str = "local", env: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    """`python -m tests.chaos.builds SOURCE OUT ENGINE key=value...` in a session of its own."""
    command = [sys.executable, "-m", "tests.chaos.builds", str(source), str(out), engine, *assignments]
    return subprocess.Popen(
        command, env={**os.environ, **(env or {})}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def kill(process: "subprocess.Popen[str]") -> None:
    """SIGKILL the driver alone: its workers find out by themselves."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def wait_for(condition: "object", seconds: float = 240) -> None:
    """Until condition() is true."""
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)


def main() -> int:
    """A driver, as `maskmill generate` is one, with the fake segmenter. Exit codes as the command's."""
    from maskmill.pipeline import drive

    source, out, name, *assignments = sys.argv[1:]
    made = recipe(source, *assignments)
    opened = open_build(made, out, append=False)
    if not opened.pending:
        close_build(opened.build)
        return drive.DONE
    job = replace(new_job(made, opened.build, "cpu"), segmenter=SEGMENTER)
    engine = drive.make_engine(name, made.config.run, inside=False)
    tell = drive.teller(quiet=False)
    outcome = run_tasks(job, drive.beside_others(opened.build, [Task(u) for u in opened.pending], tell), engine, tell)
    return drive.finish(opened.build, outcome)


if __name__ == "__main__":
    sys.exit(main())
