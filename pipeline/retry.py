"""`maskmill retry`: do the quarantined images of a build again, and nothing else."""

from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from maskmill.config import Config, from_tree, merge
from maskmill.errors import UserError
from maskmill.pipeline.plan import read_plan
from maskmill.pipeline.recipe import Recipe
from maskmill.pipeline.status import quarantine
from maskmill.pipeline.unit import Task
from maskmill.pipeline.weights import weights_sha256
from maskmill.storage.build import Build
from maskmill.storage.files import at
from maskmill.storage.ledger import Ledger
from maskmill.storage.sources import image_id

Image = tuple[str, str]  # shard, key


@dataclass(frozen=True)
class Changed:
    """One image that was quarantined: its error before, and after (None: it is good now)."""

    shard: str
    key: str
    before: str
    after: str | None


def recipe_of(build: Build, run: dict[str, object], checkpoint: str | None, images: str | None = None) -> Recipe:
    """The recipe that build.json records. Weights and `images` must be the same, wherever they lie now."""
    info = build.info
    if build.imported:
        raise UserError(f"{str(build.path)!r} is an import: mend what is quarantined at its source and import it again")
    own = {"name": info["recipe"]["model"]["name"], "checkpoint": checkpoint or info["checkpoint"]}
    thresholds = {k: v for k, v in info["filter"].items() if k != "name"}
    here = {k: v for k, v in info["run"].items() if k not in ("actors", "gpus_per_actor", "cpus_per_actor")}
    tree = {"model": own, "generate": info["recipe"]["generate"], "filter": thresholds, "run": merge(here, run)}
    cfg = from_tree(Config, tree)
    sha256 = weights_sha256(cfg.model.name, cfg.model.checkpoint)
    recipe = Recipe(cfg, sha256, images or info["inputs"]["url"], info["filter"]["name"], info["candidates"])
    if recipe.fingerprint() != info["recipe"]:
        raise UserError(
            f"{str(build.path)!r} was built with model {info['recipe']['model']['sha256'][:8]} by numeric code "
            f"{info['recipe']['numeric_version']}, here are {sha256[:8]} and "
            f"{recipe.fingerprint()['numeric_version']}: give that --checkpoint, or that release of maskmill"
        )
    return recipe


def retry_tasks(path: str | Path | UPath) -> list[Task]:
    """One task for each unit that holds quarantined images."""
    build = at(path)
    ledger = Ledger(build)
    redos = ledger.redos()
    # another driver may commit meanwhile: a unit that is new since then has its turn next time
    ill = {m.unit for m in ledger.manifests() if m.quarantined and m.unit in redos}
    return [Task(u, redos[u.unit] + 1) for u in read_plan(build / "plan.parquet") if u.unit in ill]


def quarantined_now(path: str | Path | UPath) -> dict[Image, str]:
    """(shard, key) -> error."""
    return {(row["shard"], row["key"]): row["error"] for row in quarantine(path)}


def changes(before: dict[Image, str], after: dict[Image, str]) -> list[Changed]:
    """What became of every image that was quarantined."""
    return [Changed(*image, error, after.get(image)) for image, error in before.items()]


def masks_of(path: str | Path | UPath, tasks: list[Task], images: list[Changed]) -> int:
    """How many masks the images of these tasks have that are good now."""
    build = Build(path)
    ids = {image_id(c.shard, c.key) for c in images if c.after is None}
    count = 0
    for task in tasks:
        manifest = build.newest(task.unit.unit)
        found = build.read_unit(manifest, f"masks/{build.own_filter}", ["image_id"])
        count += sum(i in ids for i in found["image_id"].to_pylist())
    return count
