"""The data engine as a user runs it: three stages, killed and continued, and what is refused."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from maskmill import Build
from maskmill.pipeline.rounds.gate import worse
from tests.pipeline.rounds.engine import CONFIG, ROUNDS, ends, kill, records, start, write_config


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An undisturbed run, and its seconds."""
    folder = tmp_path_factory.mktemp("engine")
    begun = time.monotonic()
    out, _ = ends(start(write_config(folder), folder / "run"))
    assert all(name in out for name in ROUNDS)
    return folder / "run", time.monotonic() - begun


def test_three_stages(made: tuple[Path, float]) -> None:
    """Every round has its record; masks come with their lineage; the models follow one another."""
    run, _ = made
    found = records(run)
    assert tuple(sorted(found)) == tuple(sorted(ROUNDS))
    assisted, semi, automatic = (found[name] for name in ROUNDS[1:])
    assert assisted["model_in"] == found["start-0"]["model_out"]
    assert semi["model_in"] == assisted["model_out"] and automatic["model_in"] == semi["model_out"]
    for record, name in ((assisted, "assisted-1"), (semi, "semi-1")):
        masks = Build(run / "rounds" / name / "masks").masks().to_pylist()
        assert len(masks) == record["annotation"]["masks"]
        for row in masks:
            meta = json.loads(row["meta"])
            assert meta["model"].endswith(record["model_in"]["sha256"][:8])
            assert meta["edit"] in ("drawn", "accepted", "fixed") and meta["annotator"].startswith("simulated-")
    assert assisted["annotation"]["masks"] > 0 and assisted["annotation"]["prefilled"] == 0
    assert semi["annotation"]["prefilled"] > 0, "nothing was prefilled: the semi-automatic stage was not tested"
    assert automatic["quality"]["objects"] > 0 and Build(run / "automatic").masks().num_rows == automatic["masks"]


def test_a_finished_run_is_left_as_it_is(made: tuple[Path, float]) -> None:
    run, _ = made
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and "ledger" not in p.parts}
    ends(start(run.parent / "engine.yaml", run))
    assert {p: p.stat().st_mtime_ns for p in before if p.exists()} == before


def killed_and_continued(made: tuple[Path, float], out: Path, kills: int, seed: int) -> int:
    """Kill a run at random moments until it ends; how often it was at work. Then its records are those of `made`."""
    run, seconds = made
    chance, hits = random.Random(seed), 0
    while hits < kills:
        process = start(run.parent / "engine.yaml", out)
        time.sleep(chance.uniform(1, 0.7 * seconds))
        if process.poll() is not None:
            ends(process)
            break
        kill(process)
        hits += 1
    ends(start(run.parent / "engine.yaml", out))
    assert records(out) == records(run)
    return hits


def test_killed_and_continued(made: tuple[Path, float], tmp_path: Path) -> None:
    assert killed_and_continued(made, tmp_path / "run", kills=3, seed=0) >= 2


@pytest.mark.chaos
def test_killed_twenty_times(made: tuple[Path, float], tmp_path: Path) -> None:
    """Runs of their own until twenty kills have hit one at work."""
    hits, n = 0, 0
    while hits < 20:
        hits += killed_and_continued(made, tmp_path / f"run{n}", kills=8, seed=n)
        n += 1


def test_another_config_is_refused(made: tuple[Path, float], tmp_path: Path) -> None:
    run, _ = made
    other = write_config(tmp_path, CONFIG.replace("steps: 6", "steps: 7"))
    _, words = ends(start(other, run), code=2)
    assert "config.train.optim.steps: 6 -> 7" in words


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("scenes: 8", "scenes: 3", "fewer images in each"),
        ("patience_s: 12", "patience_s: 1", "too short for a single click"),
        ("lease_s: 5", "leases: 5", "did you mean"),
        ("processes: 2", "processes: 0", "at least 1"),
    ],
)
def test_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    _, said = ends(start(write_config(tmp_path, CONFIG.replace(old, new)), tmp_path / "run"), code=2)
    assert words in said and len(said.strip().splitlines()) == 1


def figures(miou: float, noc: float) -> dict[str, Any]:
    return {
        "miou": {n: {"mean": miou} for n in ("1", "3", "5")},
        "noc": {n: {"mean": noc} for n in ("85", "90")},
    }


def test_the_gate() -> None:
    """A figure that falls keeps the old model; equal or better figures do not."""
    old = figures(0.8, 6.0)
    assert not worse(figures(0.8, 6.0), old, 0) and not worse(figures(0.9, 5.0), old, 0)
    assert any("mIoU@3 fell" in line for line in worse(figures(0.79, 5.0), old, 0))
    assert any("NoC@90 rose" in line for line in worse(figures(0.9, 6.1), old, 0))
    assert not worse(figures(0.79, 6.1), old, 0.02)


def test_a_sabotaged_model_does_not_serve(made: tuple[Path, float], tmp_path: Path) -> None:
    """Training that ruins the model: the round is kept, the old model goes on, the record says why."""
    run, _ = made
    config = write_config(tmp_path, CONFIG.replace("lr: 1.0e-4", "lr: 0.3").replace("clip: 1", "clip: 1000"))
    out = tmp_path / "run"
    shutil.copytree(run / "data", out / "data")
    ends(start(config, out))
    assisted = records(out)["assisted-1"]
    assert assisted["decision"].startswith("not promoted: ") and assisted["model_out"] == assisted["model_in"]
    assert assisted["candidate"]["sha256"] != assisted["model_in"]["sha256"]
    assert records(out)["semi-1"]["model_in"] == assisted["model_in"]
