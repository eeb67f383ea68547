"""Check the promises of a build. One line for each break, and nothing is repaired."""

import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
from upath import UPath

from maskmill.errors import UserError
from maskmill.pipeline.filtering.refilter import lagging, made_from_others, stored_settings
from maskmill.pipeline.generate import orphans
from maskmill.pipeline.plan import Unit, read_plan
from maskmill.storage.build import Build, read_table
from maskmill.storage.files import exists, relative, sha256_file
from maskmill.storage.ledger import Ledger, Manifest, hash_keys
from maskmill.storage.schemas import EMPTY, IMAGES, MASKS, QUARANTINED, broken_masks
from maskmill.storage.sources import image_id, read_items


def verify(path: str | Path | UPath, quick: bool) -> Iterator[str]:
    """Every broken promise in one line. `quick` skips hashing and the walk over the sources."""
    build = Build(path)
    path = build.path
    plan = {unit.unit: unit for unit in read_plan(path / "plan.parquet")}
    manifests, damaged = readable(build.ledger())
    yield from damaged.values()
    committed = {m.unit for m in manifests} | damaged.keys()
    for unit in sorted(plan.keys() - committed):
        yield f"unit {unit}: not committed yet"
    for unit in sorted(committed - plan.keys()):
        yield f"unit {unit}: committed, but not in plan.parquet"
    later: dict[str, dict[str, Manifest]] = {}
    lost = set(damaged)
    for name in build.later_filters:
        made, broken = readable(build.ledger(f"masks/{name}"))
        later[name] = {m.unit: m for m in made}
        yield from broken.values()
        yield from verify_later(build, name, committed, later[name], damaged.keys() | broken)
        lost |= broken.keys()
    ids: Counter[int] = Counter()
    for manifest in manifests:
        if manifest.unit in plan:
            others = [later[name][manifest.unit] for name in later if manifest.unit in later[name]]
            yield from verify_unit(build, plan[manifest.unit], [manifest, *others], ids, quick)
    yield from (f"image_id {i}: stands in images {n} times" for i, n in ids.items() if n > 1)
    if lost:
        return  # which files they name, and what is lagging, nobody knows
    if exists(path / "_SUCCESS"):
        yield from (f"{relative(p, path)}: no manifest names it (maskmill gc removes it)" for p in orphans(path))
    elif not plan.keys() - committed and not lagging(build):
        yield "_SUCCESS is missing though every unit is committed: run generate once more"


def readable(ledger: Ledger) -> tuple[list[Manifest], dict[str, str]]:
    """The manifests that count, by unit; for each unit whose manifest is damaged what to say of it."""
    newest = ledger.newest()

    def read(path: UPath) -> Manifest | UserError:
        try:
            return Manifest.read(path)
        except UserError as e:
            return e

    with ThreadPoolExecutor(16) as pool:
        found = dict(zip(newest, pool.map(read, newest.values()), strict=True))
    damaged = {unit: f"unit {unit}: {e}" for unit, e in found.items() if isinstance(e, UserError)}
    return [m for m in found.values() if isinstance(m, Manifest)], damaged


def verify_later(
    build: Build, name: str, committed: set[str], made: dict[str, Manifest], broken: set[str]
) -> Iterator[str]:
    """That the masks of a later filter were made of what counts now. `broken`: units of which it cannot be known."""
    mend = f"maskmill filter {build.path} --name {name} makes them anew"
    try:
        stored_settings(build, name)
    except (OSError, UserError) as e:
        yield f"filter {name}: its settings cannot be read: {e}"
    for unit in sorted(made.keys() - committed):
        yield f"filter {name}: unit {unit} has masks, but is not committed"
    for unit in made_from_others(build.ledger().digests(), list(made.values())):
        if unit in broken:
            continue
        if unit in made:
            yield f"filter {name}: the masks of unit {unit} are of an older manifest: {mend}"
        else:
            yield f"filter {name}: unit {unit} has no masks yet: {mend}"


def verify_unit(build: Build, unit: Unit, manifests: list[Manifest], ids: Counter[int], quick: bool) -> Iterator[str]:
    """The files of one unit against its manifests (that of images, then of later filters), its plan and each other."""
    manifest, tables = manifests[0], dict[str, pa.Table]()
    for name, file in (pair for m in manifests for pair in m.files.items()):
        path = build.path / file.path
        if not exists(path):
            yield f"unit {unit.unit}: {file.path} is missing"
            return
        if path.stat().st_size != file.bytes or (not quick and sha256_file(path) != file.sha256):
            yield f"unit {unit.unit}: {file.path} is not the file that was committed"
            return
        try:
            table = tables[name] = read_table(path)
        except (OSError, pa.ArrowException) as e:
            yield f"unit {unit.unit}: {file.path} cannot be read: {e}"
            return
        if not table.schema.remove_metadata().equals(IMAGES if name == "images" else MASKS):
            yield f"unit {unit.unit}: {file.path} has another schema"
            return
        if table.num_rows != file.rows:
            yield f"unit {unit.unit}: {file.path} has {table.num_rows} rows, its manifest says {file.rows}"
    masks = tables[f"masks/{build.own_filter}"].num_rows
    yield from verify_images(unit, manifest, tables["images"], masks, ids)
    if not build.imported:
        yield from verify_ids(unit, tables["images"])
    for other in manifests[1:]:
        for name, file in other.files.items():
            if other.masks != file.rows:
                yield f"unit {unit.unit}: {name}: its manifest says {other.masks} masks and {file.rows} rows"
    for name, table in tables.items():
        if name != "images":
            yield from verify_masks(unit, name, table, tables["images"])
    if "candidates" in tables:
        yield from verify_subset(unit, tables)
    if not quick:
        yield from verify_source(unit, manifest, tables["images"])


def verify_images(unit: Unit, manifest: Manifest, images: pa.Table, masks: int, ids: Counter[int]) -> Iterator[str]:
    """Keys, ids and counts."""
    ids.update(images["image_id"].to_pylist())
    status = Counter(images["status"].to_pylist())
    found = {
        "images": images.num_rows,
        "empty": status[EMPTY],
        "quarantined": status[QUARANTINED],
        "candidates": sum(images["num_candidates"].to_pylist()),
        "masks": masks,
    }
    for name, number in found.items():
        if number != getattr(manifest, name):
            yield f"unit {unit.unit}: {number} {name}, its manifest says {getattr(manifest, name)}"
    if unit.count is not None and images.num_rows != unit.count:
        yield f"unit {unit.unit}: {images.num_rows} images, its plan says {unit.count}"
    if unit.keys is not None and sorted(images["key"].to_pylist()) != sorted(unit.keys):
        yield f"unit {unit.unit}: its keys are not those of the plan"


def verify_ids(unit: Unit, images: pa.Table) -> Iterator[str]:
    """Ids are made of names, but for those that an import brought along."""
    for row in images.select(["image_id", "shard", "key"]).to_pylist():
        if row["image_id"] != image_id(row["shard"], row["key"]):
            yield f"unit {unit.unit}: {row['key']!r} has a foreign image_id"


def verify_masks(unit: Unit, name: str, masks: pa.Table, images: pa.Table) -> Iterator[str]:
    """Order, parents, sums, and each RLE against its own columns."""
    pairs = list(zip(masks["image_id"].to_pylist(), masks["mask_id"].to_pylist(), strict=True))
    if any(a >= b for a, b in itertools.pairwise(pairs)):
        yield f"unit {unit.unit}: {name} is not sorted by (image_id, mask_id), or has a mask twice"
    size = {row["image_id"]: row for row in images.to_pylist() if row["status"] != QUARANTINED}
    rows = Counter(i for i, _ in pairs)
    for i in rows.keys() - size.keys():
        yield f"unit {unit.unit}: {name} has masks of image_id {i}, which is not a good image"
    for i, row in size.items():
        if name == "candidates" and rows[i] != row["num_candidates"]:
            yield f"unit {unit.unit}: {row['key']!r} has {rows[i]} candidates, its row says {row['num_candidates']}"
    sizes = set(
        zip(masks["image_id"].to_pylist(), masks["height"].to_pylist(), masks["width"].to_pylist(), strict=True)
    )
    for i, h, w in sizes:
        if i in size and (size[i]["height"], size[i]["width"]) != (h, w):
            yield f"unit {unit.unit}: {name} of {size[i]['key']!r} are {h}x{w}, the image is not"
    yield from (f"unit {unit.unit}: {name}: {problem}" for problem in broken_masks(masks))


def verify_subset(unit: Unit, tables: dict[str, pa.Table]) -> Iterator[str]:
    """Every mask is a candidate with the same scores."""
    scores = ["image_id", "mask_id", "predicted_iou", "stability_score", "point_x", "point_y"]
    known = {tuple(row.values()) for row in tables["candidates"].select(scores).to_pylist()}
    for name, table in tables.items():
        if name.startswith("masks/"):
            strangers = [row for row in table.select(scores).to_pylist() if tuple(row.values()) not in known]
            if strangers:
                yield f"unit {unit.unit}: {name}: mask_id {strangers[0]['mask_id']} is not among the candidates"


def verify_source(unit: Unit, manifest: Manifest, images: pa.Table) -> Iterator[str]:
    """The keys of the source, walked afresh."""
    try:
        keys = [item.key for item in read_items(unit.kind, unit.url, unit.start, unit.count, unit.keys)]
    except (OSError, UserError) as e:
        yield f"unit {unit.unit}: the source {unit.url} cannot be read: {e}"
        return
    if hash_keys(keys) != manifest.key_hash or sorted(keys) != sorted(images["key"].to_pylist()):
        yield f"unit {unit.unit}: the source now has other keys than were committed ({len(keys)} now)"
