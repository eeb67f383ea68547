"""What an export is made of: its settings, the parts of the build that it reads, and its claim on DEST."""

import hashlib
import json
from collections.abc import Container
from dataclasses import asdict, dataclass, replace
from typing import Any

from upath import UPath

from maskmill.errors import UserError
from maskmill.pipeline.filtering.refilter import outdated
from maskmill.pipeline.plan import Unit, read_plan
from maskmill.storage import listing
from maskmill.storage.build import Build, read_table
from maskmill.storage.exports import Format
from maskmill.storage.files import exists, files_in, read_bytes, to_json, write_bytes
from maskmill.storage.ledger import DataFile
from maskmill.storage.schemas import QUARANTINED
from maskmill.storage.sources import scan


@dataclass(frozen=True)
class Settings:
    """What an export is; the same again continues it. `images`: with the pictures; `upright`: see exports.picture."""

    format: Format
    filter: str
    images: bool
    upright: bool


def settings_for(build: Build, format: Format, filter: str | None, images: bool, upright: bool) -> Settings:
    """With the build's own filter where none is named. Label maps need no pictures, and lie on the upright grid."""
    images = images and format != "png"
    if upright and not images:
        raise UserError("--upright changes how images are written, and this export writes none: leave it out")
    return Settings(format, filter or build.own_filter, images, upright)


@dataclass(frozen=True)
class Part:
    """One unit of the build: what is read."""

    unit: Unit
    images: DataFile
    masks: DataFile

    @property
    def receipt(self) -> str:
        """The file name of its receipt: another state of the tables has another one."""
        state = hashlib.sha256(f"{self.images.sha256} {self.masks.sha256}".encode()).hexdigest()[:12]
        return f"{self.unit.unit}-{state}.csv"


def parts_of(build: Build, filter: str) -> list[Part]:
    """Every unit, in order. UserError unless all are committed, and have been filtered."""
    table, out = f"masks/{filter}", str(build.path)
    if filter not in build.filters:
        raise UserError(f"{out!r} has no filter {filter!r}: it has {', '.join(build.filters)}")
    plan = read_plan(build.path / "plan.parquet")
    images = {m.unit: m for m in build.manifests()}
    check_whole(plan, images, f"{out!r} is not finished", "maskmill status says more, maskmill generate continues it")
    masks = images
    if filter != build.own_filter:
        late = set(outdated(build, filter))
        masks = {m.unit: m for m in build.manifests(table) if m.unit not in late}
        check_whole(plan, masks, f"filter {filter!r} of {out!r} is not finished", "maskmill filter continues it")
    return [Part(u, images[u.unit].files["images"], masks[u.unit].files[table]) for u in plan]


def check_whole(plan: list[Unit], done: Container[str], what: str, mend: str) -> None:
    """UserError unless every unit is done."""
    if left := [u.unit for u in plan if u.unit not in done]:
        raise UserError(f"{what}: {len(left)} of {len(plan)} units are open (first: {left[0]}): {mend}")


def moved(parts: list[Part], images: str | None) -> list[Part]:
    """The same parts, their images read from where `images` says that they lie now."""
    if images is None:
        return parts
    now_at = {shard.name: shard.url for shard in scan(images).shards}
    if lost := [p.unit.shard for p in parts if p.unit.shard not in now_at]:
        raise UserError(
            f"--images {images!r} has no {lost[0]!r}, which the build was made from: name the same image set"
        )
    return [replace(p, unit=replace(p.unit, url=now_at[p.unit.shard])) for p in parts]


def about_export(build: Build, settings: Settings) -> dict[str, Any]:
    """What DEST must say of itself for this export to go on in it."""
    return {**asdict(settings), "build": hashlib.sha256(read_bytes(build.path / "build.json")).hexdigest()}


def check_dest(build: Build, dest: UPath, settings: Settings) -> None:
    """UserError for a DEST that holds anything but this export."""
    path = dest / ".export" / "export.json"
    if exists(path):
        begun = json.loads(read_bytes(path))
        about = about_export(build, settings)
        changed = [f"{k}: {begun.get(k)} -> {v}" for k, v in about.items() if begun.get(k) != v and k != "build"]
        changed += ["of another build"] * (begun.get("build") != about["build"])
        if changed:
            raise UserError(f"{str(dest)!r} holds another export ({'; '.join(changed)}): give another DEST")
    elif any(not p.name.startswith(".") for p in files_in(dest)):
        raise UserError(f"{str(dest)!r} is not empty and not an export: give a new DEST")


def begin_export(build: Build, dest: UPath, settings: Settings) -> None:
    """Mark DEST as this export's."""
    try:
        write_bytes(dest / ".export" / "export.json", to_json(about_export(build, settings)))
    except OSError as e:
        raise UserError(f"cannot write to DEST {str(dest)!r}: {e.strerror or e}; give one that can be written") from e


def check_apart(build: Build, dest: UPath) -> None:
    """An export inside the build or the images would be taken for a part of them."""
    out = listing.absolute(str(dest))
    for what, root in (("the build", str(build.path)), ("the images", build.info["inputs"]["url"])):
        root = listing.absolute(root)
        if out == root or out.startswith(root.rstrip("/") + "/"):
            raise UserError(f"DEST {str(dest)!r} lies inside {what} {root!r}: give a folder outside of it")


def good_images(build: Build, part: Part) -> list[dict[str, Any]]:
    """The rows of images that have a size, by image_id."""
    rows = read_table(build.path / part.images.path).to_pylist()
    return [row for row in rows if row["status"] != QUARANTINED]
