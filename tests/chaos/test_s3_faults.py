"""Builds on S3 while the network and the server misbehave, drivers are killed, or S3 is gone for a while."""

import io
import json
import os
import random
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskmill.pipeline import drive
from maskmill.storage import remote
from maskmill.storage.build import Build
from maskmill.storage.files import at
from maskmill.storage.ledger import Ledger
from tests.chaos.builds import assert_same, driver, images, run_local, tables
from tests.chaos.s3 import KINDS, READ_TIMEOUT, STALL, Plan, Proxy, all_at, make_bucket, moto, proxy, upload, use
from tests.pipeline.conftest import make_tar

pytestmark = pytest.mark.chaos

SEEDS = range(int(os.environ.get("MASKMILL_CHAOS_SEEDS", "2")))
KILLS = int(os.environ.get("MASKMILL_CHAOS_KILLS", "40"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto(tmp_path_factory.mktemp("moto") / "log", page=4) as url:
        yield url


@pytest.fixture
def between(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """This process and its children talk to the server through it."""
    with proxy(server) as p:
        use(monkeypatch, p.url, read_timeout=READ_TIMEOUT)
        yield p


@pytest.fixture
def bucket(between: Proxy) -> str:
    return make_bucket(f"b-{uuid.uuid4().hex[:8]}")


def tars(folder: Path, count: int) -> Path:
    for s in range(count):
        made = images(folder / f"made{s}", 4)
        make_tar(folder / "tars" / f"{s:04d}.tar", {f"{s}{p.name}": p.read_bytes() for p in sorted(made.iterdir())})
    return folder / "tars"


@pytest.mark.parametrize("kind", ["folder", "tars"])
@pytest.mark.parametrize("seed", SEEDS)
def test_faults_leave_no_mark(tmp_path: Path, bucket: str, between: Proxy, seed: int, kind: str) -> None:
    """Every kind of fault at 2.5 %: every seventh request fails."""
    source = images(tmp_path / "in", 24) if kind == "folder" else tars(tmp_path, 6)
    run_local(source, tmp_path / "local", inside=True)
    upload(source, f"{bucket}/in")
    between.plan = plan = Plan(rates=all_at(0.025), seed=seed)
    begun = time.monotonic()
    assert not run_local(f"{bucket}/in", f"{bucket}/out", inside=True).errors
    print(f"{kind} {seed}: {time.monotonic() - begun:.1f} s, {plan.requests} requests, {dict(plan.injected)}")
    between.plan = Plan()
    assert plan.injected.total() > 0.08 * plan.requests
    assert_same(f"{bucket}/out", tables(tmp_path / "local"))
    assert not set(Build(f"{bucket}/out").images()["status"].to_pylist()) - {"ok"}


def test_drivers_killed_at_any_request(tmp_path: Path, bucket: str, between: Proxy) -> None:
    """SIGKILL when the n-th request arrives, n random; some requests fail besides."""
    rng = random.Random(int(os.environ.get("MASKMILL_CHAOS_SEED", "0")))
    source = images(tmp_path / "in", 3 * 14)
    run_local(source, tmp_path / "local", inside=True)
    want = tables(tmp_path / "local")
    upload(source, f"{bucket}/in")
    rates = {kind: 0.005 for kind in KINDS if kind != STALL}
    kills = builds = 0
    phases: dict[str, int] = {}
    begun = time.monotonic()
    while kills < KILLS:
        out, code = f"{bucket}/out{builds}", None
        while code != drive.DONE:
            process = driver(f"{bucket}/in", out)
            if kills < KILLS:
                between.plan = Plan(rates, seed=rng.getrandbits(32), call_at=rng.randrange(1, 140), call=process.kill)
            else:
                between.plan = Plan()
            stdout, stderr = process.communicate(timeout=300)
            code = process.returncode
            assert code in (drive.DONE, drive.FAILED, -9), (stdout, stderr)
            if code == -9:
                kills += 1
                between.plan = Plan()
                phase = at_phase(out)
                phases[phase] = phases.get(phase, 0) + 1
                print(f"kill {kills} of build {builds} at {time.monotonic() - begun:.0f} s: {phase}", flush=True)
        builds += 1
        between.plan = Plan()
        assert_same(out, want)
    print(f"{kills} kills over {builds} builds in {time.monotonic() - begun:.0f} s; when: {phases}")


def at_phase(out: str) -> str:
    """How far a build was."""
    if not (at(out) / "build.json").exists():
        return "before build.json"
    done = len(Ledger(at(out)).redos())
    finished = (at(out) / "_SUCCESS").exists()
    return "after _SUCCESS" if finished else "no unit done" if not done else "all done" if done == 14 else "midway"


def command(source: str, out: str) -> list[str]:
    few = ["--set", "generate.points_per_side=2", "--set", "run.unit_size=1", "--device", "cpu", "--quiet"]
    return [sys.executable, "-m", "maskmill.pipeline.cli", "generate", source, "--out", out, "--engine", "local", *few]


def test_s3_goes_away_and_comes_back(
    tmp_path: Path, bucket: str, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends in bounded time, in words; what is committed is whole; the same command continues.

    Three tries here. Of seven, as by default, each failing request takes half a minute, until botocore's budget for
    retries is spent.
    """
    use(monkeypatch, between.url, retries={"mode": "standard", "max_attempts": 2})
    source, out = upload(images(tmp_path / "in", 12), f"{bucket}/in"), f"{bucket}/out"
    process = subprocess.Popen(command(source, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while len(Ledger(at(out)).redos()) < 2:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.2)
    between.plan = plan = Plan({"500 InternalError": 1.0})
    begun = time.monotonic()
    _, stderr = process.communicate(timeout=200)
    took = time.monotonic() - begun
    print(f"gone midway: exit {process.returncode} after {took:.0f} s, {plan.requests} requests\n{stderr}")
    assert process.returncode in (1, 2)
    lines = [line for line in stderr.splitlines() if line.startswith("maskmill: ")]
    assert len(lines) == 1 and out in lines[0] and "Traceback" not in stderr, stderr

    begun = time.monotonic()
    again = subprocess.run(command(source, out), capture_output=True, text=True)
    print(f"gone at the start: exit {again.returncode} after {time.monotonic() - begun:.0f} s\n{again.stderr}")
    assert again.returncode == 2 and len(again.stderr.splitlines()) == 1 and source in again.stderr

    between.plan = Plan()
    done = subprocess.run(command(source, out), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    local = subprocess.run(command(str(tmp_path / "in"), str(tmp_path / "local")), capture_output=True, text=True)
    assert local.returncode == 0, local.stderr
    made, want = Build(out), Build(tmp_path / "local")
    assert made.images().sort_by("image_id") == want.images().sort_by("image_id")
    assert made.masks().num_rows == want.masks().num_rows


READER = """
import json, sys
from pathlib import Path
from maskmill.storage.sources import read_items

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))

list(read_items("tar", sys.argv[2]))  # whatever is loaded and allocated once
Path("/proc/self/clear_refs").write_text("5")  # the peak so far counts no more (getrusage would show pytest's)
before, total, items = memory("VmRSS"), 0, 0
for item in read_items("tar", sys.argv[1]):
    total, items = total + len(item.data), items + 1
print(json.dumps([items, total, before, memory("VmHWM")]))
"""


def test_a_large_tar_is_a_stream(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 MB of members that cannot be compressed; put in parts, as it is larger than one PUT should be."""
    use(monkeypatch, server)
    bucket = make_bucket(f"b-{uuid.uuid4().hex[:8]}")
    for name, count in (("small.tar", 2), ("large.tar", 300)):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for i in range(count):
                member = tarfile.TarInfo(f"{i:04d}.jpg")
                member.size = 1 << 20
                tar.addfile(member, io.BytesIO(os.urandom(member.size)))
        fs, path = remote.filesystem(f"{bucket}/{name}")
        fs.pipe_file(path, out.getvalue())
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", READER, f"{bucket}/large.tar", f"{bucket}/small.tar"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    items, total, before, after = json.loads(done.stdout)
    print(f"{total >> 20} MB in {time.monotonic() - begun:.1f} s; peak RSS {before:.0f} -> {after:.0f} MB")
    assert (items, total) == (300, 300 << 20)
    assert after - before < 80
