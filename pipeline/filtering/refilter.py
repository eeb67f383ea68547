"""A later filter of a build: its name and settings, what it has done, and what is still to do."""

import re
import uuid
from pathlib import Path
from typing import Any

import yaml
from upath import UPath

from maskmill.config import Config, FilterConfig, GenerateConfig, RunConfig, from_tree, merge, read_yaml, to_tree
from maskmill.errors import UserError
from maskmill.pipeline.plan import read_plan
from maskmill.pipeline.recipe import differences, own_filter
from maskmill.pipeline.unit import Job, Task
from maskmill.storage.build import Build
from maskmill.storage.files import create_if_absent, exists, is_local, read_bytes
from maskmill.storage.ledger import Ledger, Manifest

NAME = re.compile(r"\w[\w.-]*", re.ASCII)  # part of file names, and of the names of attempts


def settings(build: Build, name: str, given: str | None, changes: dict[str, Any]) -> FilterConfig:
    """The filter that is asked for: --filter, else the build's own, with --set on top.

    With --filter it is what `generate --filter` would take for a build with this model. With neither, a name that the
    build knows is to be continued.
    """
    if given is None and not changes and NAME.fullmatch(name) and exists(settings_file(build, name)):
        return stored_settings(build, name)
    if given is None:
        base = to_tree(own_filter(build.info))
    else:
        model = build.info["recipe"]["model"]["name"]
        recommended = (read_yaml("model", model).get("recommended") or {}) if model else {}
        base = merge(recommended.get("filter") or {}, read_yaml("filter", given))
    return from_tree(FilterConfig, merge(base, changes), "filter.")


def stored_settings(build: Build, name: str) -> FilterConfig:
    """Those of a filter of the build. UserError if its file is damaged."""
    if name == build.own_filter:
        return own_filter(build.info)
    path = settings_file(build, name)
    try:
        tree = yaml.safe_load(read_bytes(path))
    except yaml.YAMLError as e:
        raise UserError(f"{str(path)!r} is not YAML: {' '.join(str(e).split())}: restore it from a copy") from e
    return from_tree(FilterConfig, tree, "filter.")


def settings_file(build: Build, name: str) -> UPath:
    """Where the settings of a filter lie."""
    return build.path / "filters" / f"{name}.yaml"


def begin_filter(build: Build, name: str, cfg: FilterConfig) -> None:
    """Give the name to these settings, or find that it has them already. Refused before anything is written."""
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name!r}: give letters, digits, dots, dashes and underscores, no dash or dot first")
    if build.info["candidates"] is False:
        raise UserError(
            f"{str(build.path)!r} was built with --no-candidates: it holds masks only, so a filter has nothing to "
            f"choose from; build it anew with candidates"
        )
    Config(generate=generate_config(build), filter=cfg).check_floor()
    text = yaml.safe_dump(to_tree(cfg), sort_keys=False).encode()
    try:
        begun = name != build.own_filter and create_if_absent(settings_file(build, name), text)
    except OSError as e:
        raise UserError(f"cannot write to {str(build.path)!r}: {e.strerror or e}") from e
    if not begun and (changes := differences(to_tree(stored_settings(build, name)), to_tree(cfg))):
        raise UserError(
            f"--name {name!r} is taken by another filter of {str(build.path)!r}: {'; '.join(changes)}. "
            f"Give another --name, or the same settings"
        )


def outdated(build: Build, name: str) -> list[str]:
    """Committed units whose masks by this later filter are missing, or were made from an older manifest."""
    return made_from_others(Ledger(build.path).digests(), build.manifests(f"masks/{name}"))


def made_from_others(digests: dict[str, str], made: list[Manifest]) -> list[str]:
    """The units of `digests` for which no manifest of `made` has read the one with this sha256."""
    read = {m.unit: m.read_sha256 for m in made}
    return [unit for unit, sha256 in digests.items() if read.get(unit) != sha256]


def lagging(build: Build) -> list[str]:
    """Later filters that some committed units were not made with, or not since they were done again."""
    return [name for name in build.later_filters if outdated(build, name)]


def filter_tasks(build: Build, name: str) -> list[Task]:
    """One task for each outdated unit, largest first.

    Its redo is that of the images it reads, so a filter of older images that is still at work can never take its place.
    """
    ledger = build.ledger(f"masks/{name}")
    made, todo = ledger.redos(), set(outdated(build, name))
    redos = Ledger(build.path).redos()  # last: another driver may commit meanwhile, and each of `todo` must be here
    units = sorted(read_plan(build.path / "plan.parquet"), key=lambda u: (-u.bytes, u.unit))
    return [Task(u, max(redos[u.unit], made.get(u.unit, 0) + 1), ledger=ledger.name) for u in units if u.unit in todo]


def masks_by(build: Build, name: str, tasks: list[Task]) -> int:
    """How many masks the units of these tasks have by this filter."""
    units = {task.unit.unit for task in tasks}
    return sum(m.masks for m in build.manifests(f"masks/{name}") if m.unit in units)


def generate_config(build: Build) -> GenerateConfig:
    """How the build's candidates were made."""
    return from_tree(GenerateConfig, build.info["recipe"]["generate"], "generate.")


def run_config(build: Build, changes: dict[str, Any]) -> RunConfig:
    """The build's, but for how many machines it had, with --set on top."""
    here = {k: v for k, v in build.info["run"].items() if k not in ("actors", "gpus_per_actor", "cpus_per_actor")}
    return from_tree(RunConfig, merge(here, changes), "run.")


def filter_job(build: Build, name: str, run: RunConfig) -> Job:
    """What every worker of a run of this filter is told."""
    model = build.info["recipe"]["model"]
    return Job(
        build=str(Path(str(build.path)).resolve()) if is_local(build.path) else str(build.path),
        run_id=uuid.uuid4().hex[:8],
        config=Config(generate=generate_config(build), filter=stored_settings(build, name), run=run),
        model_id=f"{model['name']}-{model['sha256'][:8]}" if model["name"] else "",
        model_sha256=model["sha256"] or "",
        filter_name=name,
        device="cpu",  # of no GPU's actors
        candidates=False,
        worker="maskmill.pipeline.filtering.filter_worker:FilterWorker",
    )
