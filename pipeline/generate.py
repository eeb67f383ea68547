"""The main job: plan, run what is pending, close the build."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from maskmill.config import Config
from maskmill.errors import UserError
from maskmill.pipeline.engines import Engine
from maskmill.pipeline.plan import Changes, Unit, compare, make_units, read_plan, write_plan
from maskmill.pipeline.recipe import Recipe, check_recipe, write_recipe
from maskmill.pipeline.unit import Job, Receipt
from maskmill.storage.files import create_if_absent, to_json
from maskmill.storage.ledger import Ledger
from maskmill.storage.sources import scan


@dataclass(frozen=True)
class Opened:
    """A build that is ready to run."""

    build: Path
    plan: list[Unit]
    pending: list[Unit]  # largest first, so that no straggler ends the run


def open_build(recipe: Recipe, out: Path, append: bool) -> Opened:
    """Begin a build, or continue one after checking that recipe and inputs are the same. Idempotent."""
    images = scan(recipe.inputs)
    check_writable(out)
    if (out / "build.json").exists():
        check_recipe(out, recipe)
        plan = read_plan(out / "plan.parquet")
        changes = compare(plan, images)
        check_inputs(out, changes, append)
        now_at = {shard.name: shard.url for shard in images.shards}
        plan = [replace(unit, url=now_at[unit.shard]) for unit in plan]  # the same files may have moved
        if changes.new.shards:
            plan += make_units(changes.new, recipe.config.run.unit_size, first=len(plan))
            write_plan(out / "plan.parquet", plan)
            (out / "_SUCCESS").unlink(missing_ok=True)
    else:
        if not (out / "plan.parquet").exists() and any(p for p in out.iterdir() if not p.name.startswith(".")):
            raise UserError(f"{str(out)!r} is not empty and not a build: give --out a new folder")
        plan = make_units(images, recipe.config.run.unit_size)
        write_plan(out / "plan.parquet", plan)
        write_recipe(out, recipe, images.kind)  # last: with build.json the build exists
    committed = Ledger(out).newest()
    pending = sorted((u for u in plan if u.unit not in committed), key=lambda u: (-u.bytes, u.unit))
    return Opened(out, plan, pending)


def check_writable(out: Path) -> None:
    """Find out before the model is loaded."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(
            f"cannot write to --out {str(out)!r}: {e.strerror or e}; give a folder that can be written"
        ) from e


def check_inputs(out: Path, changes: Changes, append: bool) -> None:
    """A build goes on with the inputs it was planned from."""
    for what, names in (("changed", changes.changed), ("gone", changes.gone)):
        if names:
            raise UserError(
                f"the inputs of {str(out)!r} are no longer as planned: {len(names)} {what} (first: {names[0]}). "
                f"Restore them, or begin another --out"
            )
    if changes.new.shards and not append:
        raise UserError(
            f"the inputs of {str(out)!r} have grown by {len(changes.new_names)} (first: {changes.new_names[0]}): "
            f"add --append to include them"
        )


def run_pending(opened: Opened, recipe: Recipe, engine: Engine, device: str | None) -> Iterator[Receipt]:
    """Receipts of the pending units."""
    job = Job(
        build=str(opened.build.resolve()),
        config=with_absolute_checkpoint(recipe.config),  # a worker may stand in another folder
        model_id=recipe.model_id,
        model_sha256=recipe.model_sha256,
        filter_name=recipe.filter_name,
        device=device,
        candidates=recipe.candidates,
    )
    yield from engine.run(job, opened.pending)


def with_absolute_checkpoint(cfg: Config) -> Config:
    """The same config, readable from any folder."""
    path = cfg.model.checkpoint
    return replace(cfg, model=replace(cfg.model, checkpoint=path and str(Path(path).resolve())))


def close_build(opened: Opened) -> bool:
    """If every unit is committed: collect orphans and write _SUCCESS. Whether the build is complete."""
    ledger = Ledger(opened.build)
    committed = ledger.newest()
    if any(u.unit not in committed for u in opened.plan):
        return False
    if not (opened.build / "_SUCCESS").exists():
        collect_orphans(opened.build, lambda path: path.unlink(missing_ok=True))
        create_if_absent(opened.build / "_SUCCESS", to_json({"units": len(opened.plan)}))
    return True


def orphans(build: Path) -> list[Path]:
    """Data files of committed units that no manifest names, and temporary files beside them."""
    manifests = Ledger(build).manifests()
    named = {build / f.path for m in manifests for f in m.files.values()}
    units = {m.unit for m in manifests}
    found = []
    for folder in ("images", "candidates", "masks"):
        for path in sorted((build / folder).rglob("*.parquet*")):
            unit = path.name.removeprefix(".").rpartition("-")[0]
            if unit in units and path not in named:
                found.append(path)
    return found


def collect_orphans(build: Path, remove: Callable[[Path], None]) -> int:
    """Remove every orphan, and the traces of attempts at committed units."""
    found = orphans(build)
    for path in found:
        remove(path)
    committed = Ledger(build).newest()
    for trace in (build / "attempts").glob("*.json"):
        if trace.name.rpartition("-")[0] in committed:
            remove(trace)
    return len(found)
