"""Whatever a cluster does to a build, its rows are those of an undisturbed one: once each, none lost.

A real Ray cluster on this machine: a head without CPUs and two nodes with a pretended GPU each. The driver is a process
of its own.
"""

import contextlib
import io
import os
import random
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster

from maskmill.storage.ledger import Ledger
from tests.chaos import fake
from tests.chaos.builds import assert_same, driver, images, kill, run_local, tables, wait_for

GPU = "run.gpus_per_actor=1"
SLOW = 0.12  # seconds an image
FAST_DEATH_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}


class Machines:
    """The cluster, and ways to hurt it."""

    def __init__(self) -> None:
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": FAST_DEATH_NOTICE,
                            "object_store_memory": 80 << 20},
        )  # fmt: skip
        self.nodes = [self.add() for _ in range(2)]

    def add(self) -> object:
        return self.cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=80 << 20)

    def lose(self) -> None:
        """A node is gone without a word, and all its processes with it."""
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)

    def replace(self) -> None:
        self.nodes.append(self.add())

    def env(self) -> dict[str, str]:
        return {"RAY_ADDRESS": self.cluster.address}


def processes(words: str) -> list[psutil.Process]:
    """Those whose command line holds `words`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if words in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


def shoot(words: str) -> bool:
    """SIGKILL for one of them. Whether there was any."""
    if targets := processes(words):
        try:
            random.choice(targets).kill()
        except psutil.NoSuchProcess:
            return False
        return True
    return False


ACTOR, WORKER = "ray::UnitActor", "maskmill.pipeline.child"


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """Two nodes for all tests of this file."""
    if ray.is_initialized():
        ray.shutdown()  # another file's cluster
    made = Machines()
    yield made
    made.cluster.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images: one that raises, one that is empty."""
    return images(tmp_path_factory.mktemp("in"), 40, {3: fake.RAISE, 11: fake.EMPTY})


@pytest.fixture(scope="module")
def want(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    """The undisturbed build."""
    out = tmp_path_factory.mktemp("want") / "b"
    run_local(source, out, inside=True)
    return tables(out)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where to build, slowly enough to be hurt on the way."""
    pace(tmp_path, SLOW)
    return tmp_path / "b"


def pace(folder: Path, seconds: float) -> None:
    """How long an image takes in the builds in `folder`."""
    (folder / "seconds").write_text(str(seconds))


def committed(out: Path) -> int:
    return len(Ledger(out).redos())


def ends(process: "subprocess.Popen[str]", code: int = 0, seconds: float = 240) -> str:
    """Its stderr, once it has ended with `code`."""
    _, words = process.communicate(timeout=seconds)
    assert process.returncode == code, words[-3000:]
    return words


def test_workers_actors_and_a_node_die(machines: Machines, source: Path, want: dict[str, pa.Table], out: Path) -> None:
    process = driver(source, out, GPU, engine="ray", env=machines.env())
    wait_for(lambda: committed(out) >= 1)
    assert shoot(WORKER)
    wait_for(lambda: committed(out) >= 3)
    assert shoot(ACTOR)
    wait_for(lambda: committed(out) >= 5)
    machines.lose()
    machines.replace()
    ends(process)
    assert_same(out, want)


def test_the_driver_dies_and_its_actors_live_on_for_a_while(
    machines: Machines, source: Path, want: dict[str, pa.Table], out: Path
) -> None:
    chance = random.Random(1)
    pace(out.parent, 0.8)
    assert killed_often(machines, source, out, chance, times=3) == 3
    pace(out.parent, 0)
    ends(driver(source, out, GPU, engine="ray", env=machines.env()))
    assert_same(out, want)


def killed_often(machines: Machines, source: Path, out: Path, chance: random.Random, times: int) -> int:
    """Start a driver and SIGKILL it, again and again; how often it was still at work."""
    hits = 0
    for i in range(times):
        goal = committed(out) + 1
        process = driver(source, out, GPU, engine="ray", env=machines.env())
        if i % 3:  # at any moment of its start
            time.sleep(chance.uniform(0.5, 9))
        else:  # while units are being committed
            until = time.monotonic() + 60
            while committed(out) < goal and time.monotonic() < until:
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.5))
        hits += process.poll() is None
        kill(process)
    return hits


def test_sigterm_drains(machines: Machines, source: Path, want: dict[str, pa.Table], out: Path) -> None:
    process = driver(source, out, GPU, engine="ray", env=machines.env())
    wait_for(lambda: committed(out) >= 2)
    process.send_signal(signal.SIGTERM)
    words = ends(process, code=75, seconds=60)
    assert "stopping; running units have 20 s to finish" in words and "the same command continues" in words
    assert 2 <= committed(out) < 14
    assert not [p for p in (out / "attempts").iterdir() if p.name.startswith("stop-")]
    ends(driver(source, out, GPU, engine="ray", env=machines.env()))
    assert_same(out, want)


@pytest.mark.chaos
def test_twenty_driver_deaths(machines: Machines, source: Path, want: dict[str, pa.Table], out: Path) -> None:
    """A build of 40 one-image units, so that no death comes after its end."""
    hits, chance, builds = 0, random.Random(2), 0
    while hits < 20:
        builds += 1
        assert builds < 8, "the builds end too soon to be killed"
        out = out.with_name(f"b{builds}")
        pace(out.parent, 0.8)
        for _ in range(7):
            process = driver(source, out, GPU, "run.unit_size=1", engine="ray", env=machines.env())
            time.sleep(chance.uniform(0.5, 14))
            alive = process.poll() is None
            kill(process)
            hits += alive
        pace(out.parent, 0)
        ends(driver(source, out, GPU, "run.unit_size=1", engine="ray", env=machines.env()))
        assert_same(out, want)


@pytest.mark.chaos
def test_a_node_is_lost_for_good(machines: Machines, source: Path, want: dict[str, pa.Table], out: Path) -> None:
    process = driver(source, out, GPU, engine="ray", env=machines.env())
    wait_for(lambda: committed(out) >= 3)
    machines.lose()
    try:
        ends(process)
        assert_same(out, want)
    finally:
        machines.replace()


@pytest.mark.chaos
def test_many_actors_die(machines: Machines, source: Path, want: dict[str, pa.Table], out: Path) -> None:
    hits = 0
    pace(out.parent, 0.8)
    process = driver(source, out, GPU, engine="ray", env=machines.env())
    wait_for(lambda: committed(out) >= 1)
    until = time.monotonic() + 40
    while process.poll() is None and hits < 8 and time.monotonic() < until:
        hits += shoot(ACTOR)
        time.sleep(2.5)
    ends(process)
    assert hits >= 5
    assert_same(out, want)


@pytest.mark.chaos
def test_two_drivers_at_once(machines: Machines, source: Path, want: dict[str, pa.Table], out: Path) -> None:
    pace(out.parent, 0.8)
    first = driver(source, out, GPU, "run.actors=1", engine="ray", env=machines.env())
    wait_for(lambda: committed(out) >= 1)
    second = driver(source, out, GPU, "run.actors=1", engine="ray", env=machines.env())
    ends(first)
    assert "another run is at work" in ends(second)
    assert_same(out, want)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("how", "words"),
    [
        (fake.SEGFAULT, "ProcessDied: the worker process died 3 times at this image, last: killed by SIGSEGV"),
        (fake.HANG, "no progress for"),
        (fake.KILL_ACTOR, "ActorLost: its actor or node was lost 3 times at this image"),
    ],
)
def test_poison_costs_one_image(how: int, words: str, machines: Machines, tmp_path: Path) -> None:
    calm = images(tmp_path / "calm", 12)
    run_local(calm, tmp_path / "want", inside=True)
    ill = images(tmp_path / "in", 12, {7: how})
    settings = (GPU, "run.image_timeout_s=1.5")
    ends(driver(ill, tmp_path / "b", *settings, engine="ray", env=machines.env()))
    rows = {row["key"]: row for row in tables(tmp_path / "b")["images"].to_pylist()}
    assert [k for k, row in rows.items() if row["status"] == "quarantined"] == ["0007.png"]
    assert words in rows["0007.png"]["error"]
    good = {row["key"]: row for row in tables(tmp_path / "want")["images"].to_pylist() if row["key"] != "0007.png"}
    assert {k: row for k, row in rows.items() if k != "0007.png"} == good
    assert tables(tmp_path / "b")["masks"].num_rows == 2 * 11


@pytest.mark.chaos
def test_a_broken_tar_under_a_driver_death(machines: Machines, source: Path, out: Path) -> None:
    """A key twice, a picture that is none, an image without masks, and an end that is cut off."""
    whole = out.with_name("whole.tar")
    with tarfile.open(whole, "w") as tar:
        for name in [*sorted(source.iterdir())[:14], source / "0002.png"]:
            tar.add(name, name.name)
        words = tarfile.TarInfo("text.jpg")
        words.size = 1000
        tar.addfile(words, io.BytesIO(b"no picture" * 100))
        tar.add(source / "0020.png", "last.png")
    with tarfile.open(whole) as tar:
        end = tar.getmember("last.png").offset_data + 10
    cut = out.with_name("cut.tar")
    cut.write_bytes(whole.read_bytes()[:end])
    run_local(cut, out.with_name("want"), inside=True)
    want = tables(out.with_name("want"))
    odd = {row["key"]: row["error"] for row in want["images"].to_pylist() if row["status"] == "quarantined"}
    assert {"0002#2", "0003", "text"} < odd.keys() and any(key.startswith("@byte=") for key in odd)
    assert "empty" in want["images"]["status"].to_pylist()
    process = driver(cut, out, GPU, engine="ray", env=machines.env())
    wait_for(lambda: committed(out) >= 1)
    kill(process)
    ends(driver(cut, out, GPU, engine="ray", env=machines.env()))
    assert_same(out, want)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MiB; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.chaos
def test_the_disk_is_full(machines: Machines, source: Path, want: dict[str, pa.Table], small_disk: Path) -> None:
    pace(small_disk, SLOW)
    out = small_disk / "b"
    process = driver(source, out, GPU, engine="ray", env=machines.env())
    wait_for(lambda: committed(out) >= 2)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(os.urandom(4096)):
            pass
    words = ends(process, code=1)
    assert "No space left on device" in words
    filler.unlink()
    ends(driver(source, out, GPU, engine="ray", env=machines.env()))
    assert_same(out, want)


@pytest.mark.chaos
def test_the_output_becomes_read_only(
    machines: Machines, source: Path, want: dict[str, pa.Table], small_disk: Path
) -> None:
    remount(small_disk, "size=64m")
    pace(small_disk, SLOW)
    out = small_disk / "b"
    process = driver(source, out, GPU, engine="ray", env=machines.env())
    wait_for(lambda: committed(out) >= 2)
    for _ in range(100):  # refused while a file is open for writing
        try:
            remount(small_disk, "ro")
            break
        except subprocess.CalledProcessError:
            time.sleep(0.01)
    words = ends(process, code=1)
    assert "Read-only file system" in words
    remount(small_disk, "rw")
    ends(driver(source, out, GPU, engine="ray", env=machines.env()))
    assert_same(out, want)
