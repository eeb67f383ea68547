"""What must hold for any image set and any history: the plan, and the resume."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskmill.errors import UserError
from maskmill.pipeline.generate import open_build
from maskmill.pipeline.plan import Unit, compare, make_units, read_plan
from maskmill.storage.ledger import Ledger
from maskmill.storage.sources import ImageSet, scan
from tests.chaos.builds import assert_same, images, recipe, run_local, tables
from tests.pipeline.conftest import make_tar
from tests.pipeline.properties import STILL, folder

NS = 1_700_000_000_000_000_000

names = st.text("abAB019_- é", min_size=1, max_size=5).map(lambda s: s.strip() or "x")
keys = st.tuples(st.lists(names, max_size=2), names).map(lambda t: "/".join([*t[0], f"{t[1]}.png"]))


def seeds() -> st.SearchStrategy[random.Random]:
    return st.integers(0, 2**32).map(random.Random)


@contextmanager
def listed_in_any_order(rng: random.Random) -> Iterator[None]:
    """The kernel promises no order of a folder's entries: os.scandir gives them as they come."""
    scandir = os.scandir

    @contextmanager
    def shuffled(path: Any) -> Iterator[list["os.DirEntry[str]"]]:
        with scandir(path) as entries:
            found = list(entries)
        rng.shuffle(found)
        yield found

    os.scandir = shuffled  # type: ignore[assignment]
    try:
        yield
    finally:
        os.scandir = scandir  # type: ignore[assignment]


def touch(path: Path, text: str = "x") -> None:
    """A file with a fixed time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, ns=(NS, NS))


# --- The plan -------------------------------------------------------------------------------------------------------


@STILL
@given(st.lists(keys, min_size=1, max_size=14, unique_by=str.lower), st.integers(1, 5), seeds())
def test_the_plan_of_a_folder_is_the_same_however_it_is_listed(keys: list[str], size: int, rng: random.Random) -> None:
    with folder() as root:
        for key in keys:
            touch(root / key)
        (root / "link").symlink_to(root, target_is_directory=True)
        plan = make_units(scan(str(root)), size)
        with listed_in_any_order(rng):
            assert make_units(scan(str(root)), size) == plan
        planned = [key for unit in plan for key in unit.keys or ()]
        assert planned == sorted(keys) and all(len(unit.keys or ()) <= size for unit in plan)
        # another folder with the same files, made in another order
        with folder() as copy:
            for key in rng.sample(keys, len(keys)):
                touch(copy / key)
            other = make_units(scan(str(copy)), size)
        assert [(u.unit, u.keys, u.version) for u in other] == [(u.unit, u.keys, u.version) for u in plan]


@STILL
@given(st.dictionaries(names.map(str.lower), st.integers(0, 7), min_size=1, max_size=5), st.integers(1, 4), seeds())
def test_the_plan_of_tars_is_the_same_however_they_are_listed(
    counts: dict[str, int], size: int, rng: random.Random
) -> None:
    with folder() as root:
        for name, count in counts.items():
            make_tar(root / f"{name}.tar", {f"{i}.png": b"x" for i in range(count)})
        plan = make_units(scan(str(root)), size)
        with listed_in_any_order(rng):
            assert make_units(scan(str(root)), size) == plan
        if len(counts) > 1:  # named one by one, in any order
            braces = ",".join(rng.sample(sorted(counts), len(counts)))
            assert make_units(scan(f"{root}/{{{braces}}}.tar"), size) == plan
        assert [u.unit for u in plan] == [f"{i:06d}" for i in range(len(plan))]
        for name, count in counts.items():  # every image in one unit, in order
            runs = [(u.start, u.count) for u in plan if u.shard == f"{name}.tar"]
            assert [i for start, n in runs for i in range(start, start + (n or 0))] == list(range(count))


@STILL
@given(st.sets(names.map(str.lower), min_size=2, max_size=6), seeds())
def test_the_plan_of_remote_shards_is_the_same_however_they_are_listed(shards: set[str], rng: random.Random) -> None:
    memory = fsspec.filesystem("memory")
    plans = []
    for order in (sorted(shards), rng.sample(sorted(shards), len(shards))):
        memory.store.clear()
        for name in order:
            memory.pipe_file(f"/set/{name}.tar", b"x" * 1024)
        plans.append([(u.unit, u.shard, u.url) for u in make_units(scan("memory://set"), 3)])
    memory.store.clear()
    assert plans[0] == plans[1] and [shard for _, shard, _ in plans[0]] == sorted(f"{s}.tar" for s in shards)


def check_growth(old: list[Unit], new: list[Unit], now: ImageSet) -> None:
    """Old units as they were, under their names; new ones only behind them; everything planned once."""
    assert new[: len(old)] == old
    assert [u.unit for u in new] == [f"{i:06d}" for i in range(len(new))], "a name is missing or was given twice"
    changes = compare(new, now)
    assert not changes.changed and not changes.gone and not changes.new.shards


@STILL
@given(st.lists(st.sets(keys, max_size=6), min_size=2, max_size=4), st.integers(1, 4))
def test_new_files_leave_old_units_as_they_were(batches: list[set[str]], size: int) -> None:
    """Through open_build itself: each batch is appended to what the batches before have begun."""
    with folder() as base:
        root, out, seen = base / "in", base / "b", set[str]()
        plan: list[Unit] = []
        for batch in batches:
            fresh = {key for key in batch if key.lower() not in {s.lower() for s in seen}}
            for key in sorted(fresh):
                if not any(
                    (root / key).is_relative_to(root / s) or (root / s).is_relative_to(root / key) for s in seen
                ):
                    touch(root / key)
                    seen.add(key)
            if not seen:
                continue
            made, before = recipe(root, f"run.unit_size={size}"), plan
            if before and fresh & seen:
                with pytest.raises(UserError, match="have grown by"):
                    open_build(made, out, append=False)
                assert read_plan(out / "plan.parquet") == before, "a refusal changes nothing"
            plan = open_build(made, out, append=True).plan
            assert read_plan(out / "plan.parquet") == plan
            check_growth(before, plan, scan(str(root)))
            planned = [key for unit in plan for key in unit.keys or ()]
            assert len(planned) == len(set(planned)) and set(planned) == seen


@STILL
@given(
    st.lists(st.dictionaries(names.map(str.lower), st.integers(0, 5), max_size=3), min_size=2, max_size=4),
    st.integers(1, 3),
)
def test_new_shards_leave_old_units_as_they_were(batches: list[dict[str, int]], size: int) -> None:
    with folder() as base:
        root, out, seen = base / "in", base / "b", dict[str, int]()
        plan: list[Unit] = []
        for batch in batches:
            for name, count in batch.items():
                if name not in seen:
                    make_tar(root / f"{name}.tar", {f"{i}.png": b"x" for i in range(count)})
                    seen[name] = count
            if not seen:
                continue
            before, plan = plan, open_build(recipe(root, f"run.unit_size={size}"), out, append=True).plan
            check_growth(before, plan, scan(str(root)))
            images_of = Counter(u.shard for u in plan for _ in range(u.count or 0))
            assert images_of == Counter({f"{name}.tar": n for name, n in seen.items()})


# --- The resume -----------------------------------------------------------------------------------------------------

UNITS = 6


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, pa.Table]]:
    """Source, a finished build of it, and its tables."""
    base = tmp_path_factory.mktemp("fresh")
    source = images(base / "in", 3 * UNITS - 1)
    run_local(source, base / "b", inside=True)
    return source, base / "b", tables(base / "b")


@settings(STILL, max_examples=10)
@given(
    lost=st.sets(st.integers(0, UNITS - 1)),
    orphaned=st.sets(st.sampled_from(("images", "candidates", "masks/default"))),
    torn=st.booleans(),
)
@example(lost=set(), orphaned=set(), torn=False)
@example(lost=set(range(UNITS)), orphaned={"images", "candidates", "masks/default"}, torn=True)
def test_any_committed_subset_resumes_to_a_fresh_run(
    fresh: tuple[Path, Path, dict[str, pa.Table]], lost: set[int], orphaned: set[str], torn: bool
) -> None:
    """Killed after any commits; the files of the other units are gone, or there as orphans, or in pieces."""
    source, made, want = fresh
    with folder() as base:
        out = Path(shutil.copytree(made, base / "b"))
        kept = {m.unit: m for m in Ledger(out).manifests()}
        (out / "_SUCCESS").unlink()
        for unit in (f"{i:06d}" for i in lost):
            for table, file in kept.pop(unit).files.items():
                path = out / file.path
                if table not in orphaned:
                    path.unlink()
                elif torn:
                    path.write_bytes(path.read_bytes()[: file.bytes // 2])
            (out / "ledger" / "images" / f"{unit}.json").unlink()
        assert {u.unit for u in open_build(recipe(source), out, append=False).pending} == {f"{i:06d}" for i in lost}
        outcome = run_local(source, out, inside=True)
        assert outcome.left == [] and len(outcome.receipts) == len(lost)
        assert_same(out, want)
        assert {u: m for u, m in ((m.unit, m) for m in Ledger(out).manifests()) if u in kept} == kept
        named = {f.path for m in Ledger(out).manifests() for f in m.files.values()}
        there = {str(p.relative_to(out)) for t in ("images", "candidates", "masks") for p in (out / t).rglob("*.*")}
        assert there == named and (out / "_SUCCESS").exists()
