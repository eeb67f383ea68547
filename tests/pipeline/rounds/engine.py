"""A miniature of the whole data engine: three stages within a minute."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from maskmill.pipeline.rounds.config import read_engine_config
from maskmill.pipeline.rounds.data import EngineImages
from maskmill.pipeline.rounds.watch import Watch
from tests.pipeline.exchange import done

CONFIG = """
data: {scenes: 8, kinds: [closeup, cells], held_out: 0.25}
annotators: {patience_s: 12}
queue: {processes: 2, lease_s: 5}
assisted: {rounds: 1, images: 2}
semi: {rounds: 1, images: 2}
prefill: {box_score: 0.02, pred_iou_thresh: 0.3, stability_score_thresh: 0.5, training: {steps: 12, batch_size: 2}}
train:
  model: {train: decoder, drop_path: 0, decoder_dropout: 0}
  cache: float32
  data: {masks_per_image: 3}
  prompts: {clicks: 1, empty: false}
  optim: {lr: 1.0e-4, steps: 6, warmup: 2, milestones: [4], images: 1, clip: 1}
  run: {threads: 1, save_every: 2, log_every: 2}
measure: {points_per_side: 4, masks_per_image: 2, resamples: 10, clicks: [1, 3, 5], noc: [0.85, 0.9], max_clicks: 5}
gate: {tolerance: 0.05}
automatic: {set: [generate.points_per_side=4]}
"""
ROUNDS = ("start-0", "assisted-1", "semi-1", "automatic-1")
SABOTAGE = ("train.optim.lr=0.3", "train.optim.clip=1000", "train.optim.warmup=0")


def write_config(folder: Path, text: str = CONFIG) -> Path:
    """The config as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "engine.yaml"
    path.write_text(text)
    return path


def run_here(folder: Path, *assignments: str) -> dict[str, dict[str, Any]]:
    """A run in this process but for its annotators: the records."""
    words = [word for text in assignments for word in ("--set", text)]
    config = write_config(folder)
    done("engine", "run", config, "--out", folder / "run", "--engine", "local", "--quiet", *words)
    return records(folder / "run")


def start(config: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
    """`maskmill engine run` in a process group of its own, on the local engine."""
    command = [sys.executable, "-m", "maskmill.pipeline.cli", "engine", "run", str(config), "--out", str(out)]
    pipe, env = subprocess.PIPE, os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--engine", "local", *more], start_new_session=True, stdout=pipe, stderr=pipe, text=True, env=env
    )


def ends(process: "subprocess.Popen[str]", code: int = 0) -> tuple[str, str]:
    """Both outputs, once it has ended with `code`."""
    out, err = process.communicate(timeout=3600)
    assert process.returncode == code, err[-3000:]
    return out, err


def kill(process: "subprocess.Popen[str]") -> None:
    """The engine alone: what it has started must see to itself."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def records(out: Path) -> dict[str, dict[str, Any]]:
    """Every round.json."""
    return {path.parent.name: json.loads(path.read_bytes()) for path in sorted((out / "rounds").glob("*/round.json"))}


def record_bytes(out: Path) -> dict[str, bytes]:
    """Every round.json as it is."""
    return {path.parent.name: path.read_bytes() for path in sorted((out / "rounds").glob("*/round.json"))}


def open_images(config: Path, out: Path) -> EngineImages:
    """The run's images and which of them are held out."""
    cfg = read_engine_config(str(config))
    return EngineImages(cfg.data, cfg.seed, out, Watch(out, quiet=True))
