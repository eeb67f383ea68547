"""Begin or continue a build, and close it."""

import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from upath import UPath

from maskmill.errors import UserError
from maskmill.pipeline.attempts import parse_task, read_attempts
from maskmill.pipeline.filtering.refilter import lagging
from maskmill.pipeline.plan import Changes, Unit, compare, make_units, read_plan, where_now, write_plan
from maskmill.pipeline.recipe import Recipe, check_recipe, write_recipe
from maskmill.pipeline.unit import Job
from maskmill.storage import listing
from maskmill.storage.build import Build
from maskmill.storage.files import (
    at,
    check_writable,
    create_if_absent,
    exists,
    files_in,
    is_local,
    relative,
    remove,
    to_json,
)
from maskmill.storage.ledger import Ledger
from maskmill.storage.sources import ImageSet, scan

TEMPORARY_S = 3600.0  # no write takes so long


@dataclass(frozen=True)
class Opened:
    """A build that is ready to run."""

    build: UPath
    plan: list[Unit]
    pending: list[Unit]  # largest first, so that no straggler ends the run


def open_build(recipe: Recipe, out: str | Path | UPath, append: bool) -> Opened:
    """Begin a build, or continue one after checking that recipe and inputs are the same. Idempotent."""
    build = at(out)
    check_apart(recipe.inputs, build)
    return open_with(scan(recipe.inputs), recipe, build, append)


def open_with(images: ImageSet, recipe: Recipe, build: UPath, append: bool) -> Opened:
    """The same, with the inputs listed already."""
    check_writable(build)
    if not exists(build / "build.json"):
        if holds_something(build) and not exists(build / "plan.parquet"):
            raise UserError(f"{str(build)!r} is not empty and not a build: give --out a new folder")
        write_plan(build / "plan.parquet", make_units(images, recipe.config.run.unit_size))
        write_recipe(build, recipe, images.kind)  # last: with build.json the build exists
    check_recipe(build, recipe)  # even if it is new: another driver may have begun it at the same moment
    plan = read_plan(build / "plan.parquet")
    changes = compare(plan, images)
    check_inputs(build, changes, append)
    if changes.new.shards:
        extend_plan(build, plan, make_units(changes.new, recipe.config.run.unit_size, first=len(plan)))
        return open_with(images, recipe, build, append)
    plan = follow(build, images)
    committed = Ledger(build).redos()
    pending = sorted((u for u in plan if u.unit not in committed), key=lambda u: (-u.bytes, u.unit))
    return Opened(build, plan, pending)


def follow(build: UPath, images: ImageSet) -> list[Unit]:
    """The plan, in which the shards are now where `images` has them: `maskmill verify` reads them there too."""
    old = read_plan(build / "plan.parquet")
    plan = where_now(old, images)
    if plan != old:
        write_plan(build / "plan.parquet", plan, replace_old=True)
    return plan


def check_apart(inputs: str, build: UPath) -> None:
    """A build inside the folder that it reads would be listed as input by the next run."""
    root, out = listing.absolute(inputs), listing.absolute(str(build))
    if (out == root or out.startswith(root.rstrip("/") + "/")) and listing.stat(root) == "folder":
        raise UserError(f"--out {str(build)!r} lies inside the images {inputs!r}: give a folder outside of them")


def extend_plan(build: UPath, plan: list[Unit], new: list[Unit]) -> None:
    """Put `new` behind the units of `plan`, once `new` is known whole: only one --append may number units from there.

    The claim on these numbers is the longer plan itself, so the same command goes on after a kill, and of two at once
    that add the same units both may. UserError if other units have the claim.
    """
    claim = build / "attempts" / f"append-{len(plan):06d}.parquet"
    if not write_plan(claim, [*plan, *new]):
        raise UserError(
            f"another --append is at work on {str(build)!r}: wait for it (if none is, remove {str(claim)!r})"
        )
    try:
        remove(build / "_SUCCESS")
        if read_plan(build / "plan.parquet") == plan:  # else another one with the same claim was quicker
            write_plan(build / "plan.parquet", [*plan, *new], replace_old=True)
    except BaseException:
        remove(claim)
        raise


def holds_something(build: UPath) -> bool:
    """Whether there is any file that is not hidden."""
    return any(not path.name.startswith(".") for path in files_in(build))


def check_inputs(out: UPath, changes: Changes, append: bool) -> None:
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


def new_job(recipe: Recipe, build: UPath, device: str | None) -> Job:
    """What every worker of one run is told. A worker may stand in another folder, so paths are absolute."""
    path = recipe.config.model.checkpoint
    model = replace(recipe.config.model, checkpoint=path and str(Path(path).resolve()))
    return Job(
        build=str(build.resolve()) if is_local(build) else str(build),
        run_id=uuid.uuid4().hex[:8],
        config=replace(recipe.config, model=model),
        model_id=recipe.model_id,
        model_sha256=recipe.model_sha256,
        filter_name=recipe.filter_name,
        device=device,
        candidates=recipe.candidates,
    )


Closed = Literal["closed", "others", "incomplete", "filters"]


def close_build(build: str | Path | UPath) -> Closed:
    """If every unit is committed, and filtered by every filter of the build: collect orphans and write _SUCCESS.

    Returns `incomplete` if units are open, `filters` if a later filter lacks some, `others` if another run is still at
    work: its end will close the build.
    """
    build = at(build)
    plan, committed = read_plan(build / "plan.parquet"), Ledger(build).redos()  # another run may have appended
    if any(u.unit not in committed for u in plan):
        return "incomplete"
    if not exists(build / "_SUCCESS"):
        if lagging(Build(build)):
            return "filters"
        if not others_have_ended(build):
            return "others"
        collect_orphans(build)
        create_if_absent(build / "_SUCCESS", to_json({"units": len(plan)}))
    return "closed"


def others_have_ended(build: UPath, most: float = 60.0) -> bool:
    """Attempts of another driver, or of a killed one whose actors still live, may be writing files of committed units.
    They take them away themselves, or their heartbeats end: that is waited for."""
    until = time.monotonic() + most
    while at_work := any(t.alive for t in read_attempts(build)):
        if time.monotonic() > until:
            break
        time.sleep(1)
    return not at_work


def orphans(build: str | Path | UPath) -> list[UPath]:
    """Data files of committed units that no valid manifest names, temporary ones too, and old leftovers elsewhere.

    A unit with a living attempt is left alone: a redo's files have no manifest until it commits.
    """
    build = at(build)
    # In this order: a file of the listing then belongs to an attempt that lives, or has committed, or is dead.
    files = files_in(build)
    alive = {(t.ledger, t.unit) for t in read_attempts(build) if t.alive}
    own = f"masks/{Build(build).own_filter}/"
    manifests = {name: ledger.manifests() for name, ledger in ledgers_of(build).items()}
    named = {f.path for ms in manifests.values() for m in ms for f in m.files.values()}
    units = {(name, m.unit) for name, ms in manifests.items() for m in ms} - alive
    found = []
    for path in files:
        name, unit = relative(path, build), path.name.removeprefix(".").rpartition("-")[0]
        table, _, rest = name.partition("/")
        if table in ("images", "candidates", "masks"):
            filed = "images" if table != "masks" or name.startswith(own) else f"masks.{rest.partition('/')[0]}"
            if (filed, unit) in units and name not in named:
                found.append(path)
        elif path.name.startswith(".") and table != "attempts" and is_old(path):
            found.append(path)  # of a write, or of the probe at the start of a run
    return found


def ledgers_of(build: UPath) -> dict[str, Ledger]:
    """Every ledger of a build by its name: `images`, and one for each later filter."""
    made = Build(build)
    ledgers = [made.ledger(), *(made.ledger(f"masks/{name}") for name in made.later_filters)]
    return {ledger.name: ledger for ledger in ledgers}


def is_old(path: UPath) -> bool:
    """Whether nobody can be writing this temporary file any more."""
    try:
        return time.time() - path.stat().st_mtime > TEMPORARY_S
    except FileNotFoundError:
        return False


def collect_orphans(build: UPath) -> list[UPath]:
    """Remove every orphan, and what attempts/ holds of committed units and ended runs. Returns the orphans."""
    found = orphans(build)
    for path in found:
        remove(path)
    committed = {name: ledger.redos() for name, ledger in ledgers_of(build).items()}
    alive = {t.task for t in read_attempts(build) if t.alive}
    for path in files_in(build / "attempts"):
        task = path.name.removeprefix("verdict-").removeprefix(".").rpartition("-")[0]
        filed, unit, redo = parse_task(task)
        ended = committed.get(filed, {}).get(unit, 0) >= redo and task not in alive
        if ended or (path.name.startswith(("stop-", "append-")) and is_old(path)):
            remove(path)
    return found
