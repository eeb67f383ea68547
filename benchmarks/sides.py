"""One generator in a process of its own, so that its memory is its own: jobs and replies as lines of JSON.

`python -m benchmarks.sides official nano WEIGHTS THREADS` is what `Side` starts.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any


class SideFailed(Exception):
    """A generator could not be started, or its process ended. The message is its last words."""


class Side:
    """The parent's end. One job at a time; the others sleep meanwhile."""

    def __init__(self, peer: str, model: str, weights: Path, threads: int, keep_freed_memory: bool, log: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.sides", peer, model, str(weights), str(threads)]
        command += ["--keep-freed-memory"] if keep_freed_memory else []
        limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
        self.log = log
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
            env={**os.environ, **limits},
            cwd=Path(__file__).resolve().parents[1],
            text=True,
        )
        self.ready = self.read()

    def ask(self, image: Path, settings: dict[str, Any], floor: tuple[float, float] | None = None) -> dict[str, Any]:
        """Run one image; keys of the reply: seconds, peak_mb, and records or counts (with a floor)."""
        assert self.process.stdin is not None
        job = {"image": str(image), "settings": settings, "floor": floor}
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        except OSError as e:
            raise SideFailed(self.last_words()) from e
        return self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SideFailed(self.last_words())
        reply: dict[str, Any] = json.loads(line)
        return reply

    def last_words(self) -> str:
        code = self.process.wait()
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"exit {code}: {lines[-1] if lines else 'no message'}"

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def memory_mb(field: str) -> int:
    """VmHWM (the peak) or VmRSS of this process. Not getrusage: that starts from what the parent had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) // 1024
    raise AssertionError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    """Start VmHWM anew (proc(5), clear_refs). Where that is not allowed, the peak is that of all jobs so far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def serve(peer: str, model: str, weights: Path, jobs: IO[str], replies: IO[str]) -> None:
    """Load once, then answer until the jobs end."""
    import numpy as np

    from benchmarks.peers import keep_candidates, load

    generate, own = load(peer, model, weights, "cpu")
    say(replies, {"loaded_mb": memory_mb("VmRSS")})
    for line in jobs:
        job = json.loads(line)
        image, floor = np.load(job["image"]), job["floor"]
        forget_peak()
        begun = time.perf_counter()
        if floor is None:
            reply: dict[str, Any] = {"records": generate(image, job["settings"])}
        else:
            assert own is not None, "only maskmill keeps candidates"
            reply = {"counts": keep_candidates(own, image, job["settings"], (floor[0], floor[1]))}
        reply |= {"seconds": time.perf_counter() - begun, "peak_mb": memory_mb("VmHWM")}
        say(replies, reply)


def say(replies: IO[str], reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer")
    parser.add_argument("model")
    parser.add_argument("weights", type=Path)
    parser.add_argument("threads", type=int)
    parser.add_argument("--keep-freed-memory", action="store_true")
    args = parser.parse_args()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not stand among the replies
    if args.keep_freed_memory:
        from maskmill.pipeline.memory import keep_freed_memory

        keep_freed_memory()
    import torch

    torch.set_num_threads(args.threads)
    serve(args.peer, args.model, args.weights, sys.stdin, replies)


if __name__ == "__main__":
    main()
