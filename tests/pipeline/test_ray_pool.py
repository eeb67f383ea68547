"""What the Ray engine makes of actors that are lost, on a stand-in for a cluster; tests/chaos/test_ray.py has one."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from maskmill.pipeline.engines.ray import RayEngine
from maskmill.pipeline.run import FAILURES_IN_A_ROW, run_tasks
from maskmill.pipeline.unit import Job
from tests.chaos.builds import images, job_for


class Cluster:
    """Its actors start, and each is lost with its first task."""

    def __init__(self) -> None:
        self.refs = itertools.count()
        self.lost: list[int] = []  # references of tasks

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, num_cpus: float, num_gpus: float) -> object:
        return lambda cls: SimpleNamespace(remote=self.start)

    def start(self, job: Job) -> object:
        return SimpleNamespace(ready=SimpleNamespace(remote=self.refs.__next__), run=SimpleNamespace(remote=self.lose))

    def lose(self, task: object) -> int:
        self.lost.append(next(self.refs))
        return self.lost[-1]

    def wait(self, refs: list[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        return refs[:1], refs[1:]

    def get(self, ref: int) -> None:
        if ref in self.lost:
            raise ActorDiedError

    def kill(self, actor: object) -> None:
        pass


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr("maskmill.pipeline.engines.ray.ray", made)
    return made


def test_units_whose_actors_are_lost_have_errors_and_end_the_round(cluster: Cluster, tmp_path: Path) -> None:
    """As many in a row as with other failures: the rest is not thrown after them."""
    job, tasks = job_for(images(tmp_path / "in", 20), tmp_path / "b", "run.unit_size=1", "run.max_retries=0")
    outcome = run_tasks(job, tasks, RayEngine(job.config.run), print)
    assert len(outcome.left) == 20 and len(cluster.lost) == FAILURES_IN_A_ROW
    assert len(outcome.errors) == FAILURES_IN_A_ROW and "actor" in outcome.errors[tasks[0].unit.unit].lower()


def test_a_task_is_given_to_as_many_actors_as_may_be_lost(cluster: Cluster, tmp_path: Path) -> None:
    job, tasks = job_for(images(tmp_path / "in", 2), tmp_path / "b", "run.unit_size=1", "run.max_retries=2")
    receipts = list(RayEngine(job.config.run).run(job, tasks))
    assert sorted(r.unit for r in receipts) == ["000000", "000001"] and all(r.error for r in receipts)
    assert len(cluster.lost) == 2 * 3
