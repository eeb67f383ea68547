"""`maskmill export` as a user meets it: progress, words and exit codes around the work."""

from dataclasses import dataclass

import click

from maskmill.pipeline.exchange.coco_export import FILE, write_coco_json
from maskmill.pipeline.exchange.export_plan import Settings, begin_export, check_apart, check_dest, moved, parts_of
from maskmill.pipeline.exchange.exporting import COLUMNS, Exporter, to_csv
from maskmill.pipeline.ticker import Ticker
from maskmill.storage.build import Build
from maskmill.storage.files import at, exists, remove, to_json, write_bytes
from maskmill.storage.whole import open_whole

DONE = 0


@dataclass
class Totals:
    """Of a whole export."""

    images: int = 0
    masks: int = 0
    turned: int = 0  # images whose EXIF turns them


def run_export(build: Build, dest: str, settings: Settings, images: str | None, threads: int, quiet: bool) -> int:
    """Begin, continue or leave an export. Returns the exit code."""
    parts, out = parts_of(build, settings.filter), at(dest)
    check_apart(build, out)
    check_dest(build, out, settings)
    export = Exporter(build, out, settings, moved(parts, images))
    pending = export.pending()
    if not pending and exists(out / "_SUCCESS"):
        click.echo(f"{out} is finished: {len(parts)} units; nothing to do")
        return DONE
    if settings.format == "png":
        with Ticker("images looked at", sum(part.images.rows for part in pending), quiet) as ticker:
            export.check_disjoint(pending, ticker)
    begin_export(build, out, settings)
    remove(export.dest / "_SUCCESS")
    with Ticker("images", sum(part.images.rows for part in pending), quiet) as ticker:
        export.run(pending, threads, ticker)
    if settings.format == "coco":
        with Ticker("masks", sum(part.masks.rows for part in parts), quiet) as ticker:
            write_coco_json(export, ticker.add)
    totals = close_export(export)
    if not quiet:
        say(export, totals)
    return DONE


def close_export(export: Exporter) -> Totals:
    """index.csv, then _SUCCESS."""
    totals = Totals()
    export.drop_stale()
    with open_whole(export.dest / "index.csv") as file:
        file.write(to_csv([]))
        for lines in export.receipts():
            file.write(to_csv(lines).partition(b"\n")[2])
            totals.images += len(lines)
            totals.masks += sum(int(line["masks"]) for line in lines)
            totals.turned += sum(line["orientation"] not in ("", "1") for line in lines)
    about = {"units": len(export.parts), "images": totals.images, "masks": totals.masks}
    write_bytes(export.dest / "_SUCCESS", to_json(about))
    return totals


def say(export: Exporter, totals: Totals) -> None:
    """What there is now, and what may surprise."""
    what = export.dest / FILE if export.settings.format == "coco" else export.dest
    click.echo(f"{'export':<11} {what} ({export.settings.format}, filter {export.settings.filter!r})")
    click.echo(f"{'images':<11} {totals.images}; index.csv says which is which: {', '.join(COLUMNS[:4])} ...")
    click.echo(f"{'masks':<11} {totals.masks}")
    if not export.settings.images and export.settings.format in ("coco", "png"):
        click.echo(
            f"{'turned':<11} not looked at: no image was read. Masks lie on the upright grid, whatever EXIF says"
        )
    if totals.turned:
        click.echo(
            f"{'turned':<11} {totals.turned} images have an EXIF orientation: masks lie on the upright grid, as "
            f"viewers and cv2.imread show it. For readers that ignore EXIF (PIL alone) export with --upright"
        )
