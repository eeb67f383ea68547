"""`maskmill import`: masks of others into a build, with the same plan, ledger and files as any other.

Every mask that the source has is a candidate and, by the filter `imported`, a mask: its thresholds are off. No model
made them, so the recipe has none; floors are 0, so `maskmill filter` may ask for anything. A mask without a score
passes only a threshold that is off (0).
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from upath import UPath

from maskmill.config import Config, FilterConfig, GenerateConfig, RunConfig, from_tree, merge
from maskmill.errors import UserError
from maskmill.pipeline.generate import Opened, check_apart, open_with
from maskmill.pipeline.plan import read_plan
from maskmill.pipeline.recipe import Recipe
from maskmill.pipeline.unit import Job
from maskmill.storage import coco_source, listing
from maskmill.storage.build import Build, read_info
from maskmill.storage.coco_source import CocoFile
from maskmill.storage.files import at, exists, is_local, write_bytes
from maskmill.storage.sa1b_source import lonely_json, scan_sa1b
from maskmill.storage.sources import ImageSet

FILTER = "imported"
# NMS drops what overlaps by more than its threshold: 1 is nothing
EVERYTHING = FilterConfig(pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0, crop_nms_thresh=1.0)
UNIT_SIZE = 512  # images: here one takes milliseconds, not seconds
Tell = Callable[[str], None]
Ids = Literal["keep", "hash"]


@dataclass(frozen=True)
class ImportJob(Job):
    """What the worker of an import must know besides."""

    worker: str = "maskmill.pipeline.exchange.import_worker:ImportWorker"
    format: str = "sa1b"
    ids: Ids = "keep"


def slice_name(unit: str) -> str:
    """Where a unit's part of a COCO file lies within the build; it goes when the build is closed."""
    return f"attempts/{unit}-annotations.jsonl"


@dataclass(frozen=True)
class ImportRecipe(Recipe):
    """What decides the rows of an import. `annotations`: the JSON of a COCO set, `head`: what it says of all images."""

    format: str = "sa1b"
    ids: Ids = "keep"
    annotations: dict[str, Any] | None = None
    head: dict[str, Any] = field(default_factory=dict)

    @property
    def model_id(self) -> str:
        """None: the column is null."""
        return ""

    def fingerprint(self) -> dict[str, Any]:
        """The part that a resume may not change."""
        cfg = self.config.generate
        generate = {"floor_pred_iou": 0.0, "floor_stability": 0.0, "crop_n_layers": 0}
        return super().fingerprint() | {
            "model": {"name": None, "sha256": None},
            "generate": generate | {"max_image_mpx": cfg.max_image_mpx},
            "import": {"format": self.format, "ids": self.ids},
        }

    def to_json(self, kind: str) -> dict[str, Any]:
        """The content of build.json."""
        return super().to_json(kind) | {"import": {"annotations": self.annotations, **self.head}}


def import_config(tree: dict[str, Any]) -> tuple[RunConfig, float]:
    """`run` and generate.max_image_mpx out of the --set tree: nothing else shapes an import."""
    foreign = [f"generate.{name}" for name in tree.get("generate", {}) if name != "max_image_mpx"]
    if foreign := foreign + [name for name in tree if name not in ("run", "generate")]:
        raise UserError(f"--set {foreign[0]}: an import has no model; only run.* and generate.max_image_mpx are used")
    cfg = from_tree(Config, merge({"run": {"unit_size": UNIT_SIZE}}, tree))
    return cfg.run, cfg.generate.max_image_mpx


def make_recipe(inputs: str, format: str, ids: Ids, run: RunConfig, max_mpx: float, candidates: bool) -> ImportRecipe:
    """Settings as an import needs them."""
    config = Config(generate=GenerateConfig(max_image_mpx=max_mpx), filter=EVERYTHING, run=run)
    return ImportRecipe(config, "", inputs, FILTER, candidates, format, ids)


def open_sa1b_import(recipe: ImportRecipe, out: UPath, append: bool, tell: Tell) -> Opened:
    """Begin or continue an import of SA-1B files."""
    check_apart(recipe.inputs, out)
    images = scan_sa1b(recipe.inputs)
    planned = {u.shard for u in read_plan(out / "plan.parquet")} if exists(out / "build.json") else set()
    warn_of_lonely_json(images, planned, tell)
    return open_with(images, recipe, out, append)


def warn_of_lonely_json(images: ImageSet, planned: set[str], tell: Tell) -> None:
    """A JSON without its image has no row in a tar's plan, so it is told of as the tar is planned. Only of local tars:
    another would be read as a whole for it."""
    for shard in images.shards:
        if images.kind != "tar" or shard.name in planned or listing.local_path(shard.url) is None:
            continue
        if lonely := lonely_json(shard.url):
            tell(f"{shard.name}: {len(lonely)} .json without an image are left out (first: {lonely[0]}.json)")


def open_coco_import(
    recipe: ImportRecipe, json_url: str, images: str | None, out: UPath
) -> tuple[Opened, ImportRecipe]:
    """Begin or continue an import of a COCO file; the slices of what is still to do are written."""
    stat = listing.stat(json_url)
    assert isinstance(stat, listing.FileStat), "coco_source.find_json has found it"
    annotations = {"url": json_url, "bytes": stat.bytes, "version": stat.version}
    file: CocoFile | None = None
    if exists(out / "build.json"):
        known = stored_import(out, recipe)
        check_same(out, annotations, known["annotations"])
        keys = [key for unit in read_plan(out / "plan.parquet") for key in unit.keys or ()]
        head = {name: value for name, value in known.items() if name != "annotations"}
    else:
        file = coco_source.read_file(json_url)
        keys, head = list(file.keys.values()), file.head
    root = coco_source.find_images(json_url, images, keys)
    recipe = ImportRecipe(
        recipe.config, "", root, FILTER, recipe.candidates, recipe.format, recipe.ids, annotations, head
    )
    check_apart(root, out)
    opened = open_with(coco_source.image_set(root, keys), recipe, out, append=False)
    if opened.pending:
        file = file or coco_source.read_file(json_url)
        units = {unit.unit: unit.keys or () for unit in opened.pending}
        coco_source.slice_file(file, units, lambda unit, lines: write_bytes(out / slice_name(unit), lines))
    return opened, recipe


def stored_import(out: UPath, recipe: ImportRecipe) -> dict[str, Any]:
    """What build.json says of the import that it is."""
    info = read_info(out)
    found: dict[str, Any] | None = info.get("import")
    if found is None or found["annotations"] is None:
        raise UserError(f"{str(out)!r} is another build, not an import of COCO: give another --out")
    return found


def check_same(out: UPath, now: dict[str, Any], before: dict[str, Any]) -> None:
    """The JSON of a continued import may have moved, but not changed."""
    if (now["bytes"], now["version"]) != (before["bytes"], before["version"]):
        raise UserError(
            f"{now['url']} has changed since {str(out)!r} was begun with it: restore it, or begin another --out"
        )


def import_job(recipe: ImportRecipe, build: UPath) -> ImportJob:
    """What every worker of one run is told. No GPU is asked for."""
    return ImportJob(
        build=str(build.resolve()) if is_local(build) else str(build),
        run_id=uuid.uuid4().hex[:8],
        config=recipe.config,
        model_id="",
        model_sha256="",
        filter_name=FILTER,
        device="cpu",
        candidates=recipe.candidates,
        format=recipe.format,
        ids=recipe.ids,
    )


def check_ids(path: UPath) -> None:
    """UserError if two images have one id: masks of one would be those of the other. Before the build is closed."""
    build = Build(at(path))
    if exists(build.path / "_SUCCESS"):
        return
    manifests = build.manifests()
    columns = [build.read_unit(m, "images", ["image_id"])["image_id"].to_numpy() for m in manifests]
    ids, times = np.unique(np.concatenate([np.zeros(0, np.int64), *columns]), return_counts=True)
    if not (times > 1).any():
        return
    twice = int(ids[times > 1][0])
    names: list[str] = []
    for manifest in manifests:
        rows: pa.Table = build.read_unit(manifest, "images", ["image_id", "shard", "key"])
        names += [f"{r['key']} ({r['shard']})" for r in rows.to_pylist() if r["image_id"] == twice]
    raise UserError(
        f"image_id {twice} is that of {len(names)} images: {' and '.join(names[:2])} ({int((times > 1).sum())} ids "
        f"stand twice or more). Import into a new --out with --ids hash: images are then numbered by their names, and "
        f"the old numbers go to meta"
    )
