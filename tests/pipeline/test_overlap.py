"""Several images in work at a time change nothing but the time."""

import threading
import time
from pathlib import Path

import pytest

from maskmill.pipeline.overlap import Budget, in_order
from tests.chaos.builds import assert_same, images, run_local, tables
from tests.chaos.fake import EXIT, HANG, RAISE, SEGFAULT


def test_results_keep_their_order_and_few_are_begun() -> None:
    begun, given = [], 0

    def work(i: int) -> int:
        begun.append(i)
        time.sleep(0.02 if i % 3 == 0 else 0)
        return i * i

    for n, result in enumerate(in_order(work, range(20), threads=3)):
        assert result == n * n
        given += 1
        assert len(begun) <= given + 3
    assert given == 20


def test_work_really_overlaps() -> None:
    meet = threading.Barrier(3, timeout=10)  # nobody passes alone
    assert len(list(in_order(lambda i: meet.wait(), range(6), threads=3))) == 6


def test_an_error_comes_at_its_place_and_ends_the_rest() -> None:
    results = in_order(lambda i: 1 // (i - 2), range(100), threads=3)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_budget_is_never_exceeded() -> None:
    budget, held, most = Budget(10.0), [0.0], [0.0]
    lock = threading.Lock()

    def work(amount: float) -> None:
        with budget.hold(amount):
            with lock:
                held[0] += min(amount, 10.0)
                most[0] = max(most[0], held[0])
            time.sleep(0.001)
            with lock:
                held[0] -= min(amount, 10.0)

    list(in_order(work, [4.0, 7.0, 25.0, 1.0, 3.0, 9.0] * 10, threads=6))
    assert 0 < most[0] <= 10.0 and budget.left == 10.0


def test_rows_are_those_of_one_at_a_time(tmp_path: Path) -> None:
    source = images(tmp_path / "in", 9, {3: RAISE})
    run_local(source, tmp_path / "one", inside=True)
    run_local(source, tmp_path / "three", "run.images_in_flight=3", inside=True)
    assert_same(tmp_path / "three", tables(tmp_path / "one"))


def test_the_poisonous_images_are_found_among_those_in_flight(tmp_path: Path) -> None:
    odd = {1: SEGFAULT, 4: EXIT, 7: HANG}
    calm = images(tmp_path / "calm", 9)
    run_local(calm, tmp_path / "want", inside=True)
    source = images(tmp_path / "in", 9, odd)
    settings = ("run.images_in_flight=3", "run.image_timeout_s=1.5", "run.unit_size=9")
    assert not run_local(source, tmp_path / "b", *settings).left
    rows = {row["key"]: row for row in tables(tmp_path / "b")["images"].to_pylist()}
    ill = {k for k, row in rows.items() if row["status"] == "quarantined"}
    assert ill == {f"{i:04d}.png" for i in odd}
    assert "killed by SIGSEGV" in rows["0001.png"]["error"] and "exit 3" in rows["0004.png"]["error"]
    want = {row["key"]: row for row in tables(tmp_path / "want")["images"].to_pylist()}
    assert all(rows[k] == want[k] for k in rows.keys() - ill)
