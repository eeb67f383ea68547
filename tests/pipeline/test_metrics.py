"""What Prometheus sees of a run."""

import contextlib
import re
import socket
import time
import urllib.request
from pathlib import Path

import ray

from tests.chaos import fake
from tests.chaos.builds import driver, images


def test_a_run_exports_its_metrics(tmp_path: Path) -> None:
    """Scraped as Prometheus would, from the port that Ray gives its node."""
    source = images(tmp_path / "in", 6, {1: fake.RAISE, 2: fake.EMPTY})
    (tmp_path / "seconds").write_text("0.01")
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20,
                        "metrics_export_port": port, "_system_config": {"metrics_report_interval_ms": 500}},
    )  # fmt: skip
    try:
        process = driver(source, tmp_path / "b", engine="ray", env={"RAY_ADDRESS": cluster.address})
        text, until = "", time.monotonic() + 60
        while 'status="quarantined"' not in text.lower() and time.monotonic() < until:
            time.sleep(0.5)
            with contextlib.suppress(OSError):  # it opens when the node's agent is up
                text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        _, words = process.communicate(timeout=120)
        assert process.returncode == 0, words
        found = {
            match[1]: float(match[2])
            for match in re.finditer(
                r'^ray_maskmill_images_total\{.*Status="?(\w+)"?.*\} ([\d.e+]+)$', text, re.M | re.I
            )
        }
        assert found == {"ok": 4.0, "empty": 1.0, "quarantined": 1.0}, text[-2000:]
    finally:
        cluster.shutdown()
