"""A run that is killed at random moments ends as one that was left alone; annotators that die lose no task."""

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from maskmill.pipeline.rounds.annotate import Desk
from maskmill.pipeline.rounds.queue import TaskQueue
from maskmill.storage.build import Build
from maskmill.storage.files import at, write_bytes
from tests.pipeline.rounds.conftest import Made
from tests.pipeline.rounds.engine import ends, kill, record_bytes, records, start, write_config

SLOW = 600  # seconds: another number than a real one would make a busy machine fail
LEASE_S = 15.0  # one that a living annotator keeps on a busy machine


def begun(process: "subprocess.Popen[str]") -> bool:
    """Whether it has begun to work on a round; False: it has ended."""
    assert process.stderr is not None
    return any(line.startswith("round ") for line in process.stderr)


def at_work_on(out: Path) -> str:
    """The step that a run stands in, from its files."""
    open_rounds = [f for f in (out / "rounds").glob("*") if not (f / "round.json").exists()]
    if not open_rounds:
        return "automatic" if (out / "automatic").exists() else "between rounds"
    folder = open_rounds[0]
    stage = folder.name.rpartition("-")[0]
    if stage in ("start", "automatic"):
        return stage
    if stage == "semi" and not (folder / "detector.safetensors").exists():
        return "semi: detector"
    for step, path in (("prepare", "prepared/_SUCCESS"), ("annotate", "masks.tar"), ("import", "masks/_SUCCESS")):
        if not (folder / path).exists():
            return f"{stage}: {step}"
    last = folder / "train/metrics.jsonl"
    steps = [json.loads(line)["step"] for line in last.read_text().splitlines()] if last.exists() else []
    return f"{stage}: {'measure' if steps and steps[-1] == 6 else 'train'}"


def killed(made: Made, out: Path, chance: random.Random, most: float, engine: str = "local") -> str | None:
    """Start the run, kill it at a random moment, and see that nothing it had started lives on. The step that was hit;
    None if it ended before."""
    process = start(made.config, out, "--engine", engine)
    if begun(process):
        time.sleep(chance.uniform(0, most))
    if process.poll() is not None:
        ends(process)
        return None
    others = psutil.Process(process.pid).children(recursive=True)
    kill(process)
    _, alive = psutil.wait_procs(others, timeout=300)
    assert not alive, f"left behind: {[p.cmdline() for p in alive if p.is_running()]}"
    return at_work_on(out)


def same(made: Made, out: Path) -> None:
    """Every round.json byte by byte, and the weights that they name."""
    assert record_bytes(out) == record_bytes(made.out)
    for name in records(out):
        for weights in ("train/model.safetensors", "detector.safetensors"):
            ours, theirs = out / "rounds" / name / weights, made.out / "rounds" / name / weights
            assert ours.exists() == theirs.exists()
            assert not ours.exists() or ours.read_bytes() == theirs.read_bytes()


def test_killed_and_stopped_it_ends_the_same(made: Made, tmp_path: Path) -> None:
    """Twice SIGKILL at a random moment, once SIGTERM, which ends it with 75."""
    chance, out = random.Random(1), tmp_path / "run"
    hit = [killed(made, out, chance, 0.3 * made.seconds) for _ in range(2)]
    assert None not in hit
    process = start(made.config, out)
    if begun(process):
        process.terminate()
        _, said = ends(process, code=75)
        assert "the same command continues" in said
    ends(start(made.config, out))
    same(made, out)


@pytest.mark.chaos
def test_killed_twenty_times(made: Made, tmp_path: Path) -> None:
    """Runs until twenty kills have hit one at work. What was hit is shown by pytest -s."""
    chance, hits, began = random.Random(7), Counter[str](), time.monotonic()
    runs = 0
    while hits.total() < 20:
        out = tmp_path / f"run{runs}"
        runs += 1
        while (hit := killed(made, out, chance, 0.25 * made.seconds)) is not None and hits.total() < 40:
            hits[hit] += 1
        ends(start(made.config, out))
        same(made, out)
    seconds = time.monotonic() - began
    print(f"\n{hits.total()} kills in {runs} runs, {seconds:.0f} s (undisturbed: {made.seconds:.0f} s): {dict(hits)}")
    assert len(hits) >= 5, f"only these steps were hit: {dict(hits)}"


@pytest.mark.chaos
def test_ray_makes_the_same_records(made: Made, tmp_path: Path) -> None:
    """Killed once on Ray, then continued there: the records of the local engine."""
    out = tmp_path / "run"
    process = start(made.config, out, "--engine", "ray")
    assert begun(process)
    time.sleep(0.3 * made.seconds)
    if process.poll() is None:
        kill(process)
    ends(start(made.config, out, "--engine", "ray"))
    same(made, out)


def annotator(folder: Path, name: str, parent: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "maskmill.pipeline.rounds.annotate", str(folder), name, str(parent)]
    return subprocess.Popen(command)


def test_a_dead_annotators_task_is_done_by_another_once(made: Made, tmp_path: Path) -> None:
    """Real annotators at a real round: one dies with a claim, its lease runs out, two others do everything once."""
    source, folder = made.out / "rounds/semi-1", tmp_path / "round"
    folder.mkdir()
    tree = json.loads((source / "assignment.json").read_bytes())
    (folder / "assignment.json").write_text(json.dumps(tree | {"lease_s": LEASE_S}))
    with sqlite3.connect(source / "queue.sqlite") as db:
        tasks = db.execute("select name, payload from tasks order by place").fetchall()
    queue = TaskQueue(folder / "queue.sqlite", lease_s=LEASE_S)
    queue.add(tasks)
    first = annotator(folder, "first", psutil.Process().pid)
    until = time.monotonic() + SLOW
    while not queue.counts()["claimed"] and time.monotonic() < until:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.wait(SLOW) == -signal.SIGKILL
    others = [annotator(folder, name, psutil.Process().pid) for name in ("second", "third")]
    assert [process.wait(SLOW) for process in others] == [0, 0]
    done = queue.answers()
    assert list(done) == [name for name, _ in tasks] and "first" not in done.values()
    with sqlite3.connect(folder / "queue.sqlite") as db:
        claims = db.execute("select name, claim from tasks").fetchall()
    assert sorted(n for _, n in claims) == [1] * (len(tasks) - 1) + [2], "only the dead one's task was claimed again"
    for name, _ in tasks:
        number = dict(claims)[name]
        ours, theirs = folder / f"answers/{name}-{number}.json", source / f"answers/{name}-1.json"
        assert ours.read_bytes() == theirs.read_bytes()


def test_an_annotator_ends_with_its_engine(made: Made, tmp_path: Path) -> None:
    """The queue never empties: only the end of the process that it works for ends it."""
    folder = tmp_path / "round"
    folder.mkdir()
    shutil.copy(made.out / "rounds/semi-1/assignment.json", folder)
    queue = TaskQueue(folder / "queue.sqlite", lease_s=SLOW)
    queue.add([("t", "0")])
    assert queue.claim("someone else") is not None
    engine = subprocess.Popen(["sleep", str(SLOW)])
    # its parent is this process, not `engine`: a process whose parent is another than it was told has lost it
    orphan = annotator(folder, "orphan", engine.pid)
    try:
        assert orphan.wait(SLOW) == 1
    finally:
        engine.kill()
        engine.wait()


def test_others_work_on_the_queue_and_reject_what_cannot_be_done(tmp_path: Path) -> None:
    """No simulated annotators: this test claims, works and hands in, as another tool would."""
    config, out = write_config(tmp_path), tmp_path / "run"
    words = ("queue.processes=0", "semi.rounds=0", "automatic.enabled=false", "retrain=false", "queue.lease_s=600")
    process = start(config, out, *(word for text in words for word in ("--set", text)))
    folder = out / "rounds/assisted-1"
    until = time.monotonic() + SLOW
    while not (folder / "queue.sqlite").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    queue = TaskQueue(folder / "queue.sqlite", lease_s=600)
    while queue.counts()["open"] < 2 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    first = queue.claim("a person")
    assert first is not None and queue.reject(first, "blurred")
    second = queue.claim("a person")
    assert second is not None
    write_bytes(at(folder / "answers" / second.file), Desk(folder).do(second))
    assert queue.finish(second, "a person")
    ends(process)
    record = records(out)["assisted-1"]
    assert record["annotators"] == {"kind": "others"}
    assert record["annotation"]["images"] == record["annotation"]["not_done"] == 1
    assert [row["key"] for row in Build(str(folder / "masks")).images().to_pylist()] == [second.name]
