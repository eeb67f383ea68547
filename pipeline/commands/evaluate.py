"""`maskmill evaluate`."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from maskmill.errors import UserError
from maskmill.pipeline.commands.common import FAILED, check_device

if TYPE_CHECKING:
    from maskmill.evaluate.instances import Instances
    from maskmill.storage.annotated import AnnotatedSet

QUIET_FOR = 10.0  # seconds between lines of a log
SHOWN = 12  # worst and best cases


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.option("--out", required=True, metavar="DIR", help="Figures, table and page: local, s3:// or gs://.")
@click.option("--checkpoint", metavar="FILE", help="Weights: Meta's .pth as it is, or .safetensors.")
@click.option("--images", metavar="FOLDER", help="Where the images of a build or of COCO JSON lie now.")
@click.option(
    "--filter", "filter_name", metavar="NAME", help="Which masks of a build. Default: the build's own filter."
)
@click.option("--baselines", is_flag=True, help="Also what a click reaches without a model: segments, discs.")
@click.option(
    "--boxes", metavar="truth|JSON", help="Also COCO mask AP from boxes: of DATA's masks, or a COCO results file."
)
@click.option("--audit", is_flag=True, help="Compare two sets of masks: MODEL is then the automatic one.")
@click.option("--set", "assignments", multiple=True, metavar="evaluate.key=value", help="Change a setting.")
@click.option("--device", metavar="D", help="cpu, cuda, cuda:1 ... Default: a GPU where there is one.")
@click.option("--quiet", is_flag=True, help="No progress, no table.")
def evaluate(
    model: str,
    data: str,
    out: str,
    checkpoint: str | None,
    images: str | None,
    filter_name: str | None,
    baselines: bool,
    boxes: str | None,
    audit: bool,
    assignments: tuple[str, ...],
    device: str | None,
    quiet: bool,
) -> None:
    """How good are a model's answers on DATA, an annotated set: a build, an SA-1B-style folder or tar, or COCO JSON?

    MODEL is a name that `maskmill models` lists, or the DIR of a training (./nano, if it is called so). Written to DIR:
    evaluation.json with 95% intervals, masks.parquet with a row for each mask, evaluation.html with curves and the
    worst and best cases.
    With --boxes, also boxes.json: the answers as COCO results.
    With --audit, DATA holds the same masks as MODEL, corrected by people: audit.json says how many pairs agree.

    Settings of evaluate.*: clicks, noc, max_clicks, images, masks_per_image, mask_share, min_area, window (pixels: zoom
    into larger images), points_per_side (0 leaves recall out), nms, batch, resamples, seed.

    \b
    Examples:
      maskmill evaluate nano annotations/instances.json --out figures/
      maskmill evaluate nuclei/ test.tar --out figures/ --set evaluate.points_per_side=16
      maskmill evaluate vit_h 'val/*.tar' --checkpoint sam_vit_h_4b8939.pth --out figures/ --set evaluate.images=500
      maskmill evaluate vit_b instances.json --boxes detections.json --out figures/
      maskmill evaluate --audit masks/ corrected/ --out audit/
    """
    from maskmill.config import from_tree, merge, parse_set
    from maskmill.evaluate.config import EvaluateConfig
    from maskmill.storage.annotated import open_annotated
    from maskmill.storage.files import at, check_writable

    tree = parse_set(assignments)
    if foreign := tree.keys() - {"evaluate"}:
        raise UserError(f"--set {sorted(foreign)[0]}...: only evaluate.* can be set here")
    wanted = merge(tree.get("evaluate") or {}, {"baselines": True} if baselines else {})
    cfg = from_tree(EvaluateConfig, wanted, "evaluate.")
    check_device(device, here=True)
    check_writable(at(out))
    if audit:
        if boxes is not None or baselines or checkpoint is not None:
            raise UserError("--audit compares masks with masks: leave out --boxes, --baselines and --checkpoint")
        return write_audit(model, data, out, images, filter_name, cfg.resamples, quiet)
    name, weights = find_model(model, checkpoint)
    annotated = open_annotated(data, images, filter_name)
    instances = box_prompts(boxes, annotated) if boxes is not None else None
    measure(name, weights, annotated, out, cfg, device, {"model": model, "data": data}, quiet, instances)


def box_prompts(boxes: str, data: "AnnotatedSet") -> "Instances":
    """What --boxes names."""
    from maskmill.evaluate.boxes import read_boxes
    from maskmill.evaluate.instances import Instances

    return Instances(None if boxes == "truth" else read_boxes(boxes, data))


def find_model(model: str, checkpoint: str | None) -> tuple[str, str | None]:
    """The name and the weights of MODEL: a name, or a folder that `maskmill train` has written (`./nano`, if it has the
    name of a model)."""
    import yaml

    from maskmill.config import names

    if model in names("model"):
        return model, checkpoint
    if "://" in model:
        raise UserError(f"{model}: weights are read from this machine: copy its model.safetensors, give --checkpoint")
    folder = Path(model)
    begun = (folder / "config.yaml").is_file()
    if not begun and (folder / "nano.safetensors").is_file():  # the built-in model's own recipe keeps no config
        return "nano", checkpoint or str(folder / "nano.safetensors")
    if not begun and folder.is_dir():
        raise UserError(f"{model}: no training wrote this folder (no config.yaml): give a training's DIR, or a name")
    if not begun:
        return model, checkpoint
    if checkpoint is None and not (folder / "model.safetensors").is_file():
        raise UserError(f"{model}: the training has not saved any weights yet: let it go on for a while")
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    return str(tree["model"]["name"]), checkpoint or str(folder / "model.safetensors")


def measure(
    name: str,
    weights: str | None,
    data: "AnnotatedSet",
    out: str,
    cfg: Any,
    device: str | None,
    about: dict[str, str],
    quiet: bool,
    instances: "Instances | None" = None,
) -> None:
    """The evaluation itself, and its files."""
    from maskmill.config import to_tree
    from maskmill.evaluate import cases
    from maskmill.evaluate.run import evaluate as run
    from maskmill.report.evaluation import make_page, rows_of
    from maskmill.sam.build import checkpoint_sha256, load_model
    from maskmill.storage.files import at, parquet_bytes, to_json, write_bytes

    model = load_model(name, weights, device)
    try:
        found = run(model, data, cfg, reporter(quiet), instances)
    except KeyboardInterrupt:  # nothing to continue from
        click.echo("maskmill: stopped; nothing was written, the same command begins anew", err=True)
        sys.exit(FAILED)
    tree = about | {"sha256": checkpoint_sha256(name, weights), **found.summary(), "config": to_tree(cfg)}
    folder = at(out)
    write_bytes(folder / "masks.parquet", parquet_bytes(found.table(), ["image", "mask_id"], {}))
    if instances is not None:
        write_bytes(folder / "boxes.json", json.dumps(instances.results(*instance_ids(data, instances))).encode())
    worst, best = (cases.cases(model, data, found, rows) for rows in cases.pick(found, SHOWN))
    title = f"{Path(about['model']).name} on {Path(about['data']).name}"
    write_bytes(folder / "evaluation.html", make_page(title, tree, found, worst, best).encode())
    write_bytes(folder / "evaluation.json", to_json(tree))
    if not quiet:
        click.echo(f"{tree['images']} images, {tree['masks']} masks")
        for label, value, interval in rows_of(tree):
            click.echo(f"{label:<50} {value:>8}  {interval}")
        click.echo(f"{folder}/evaluation.html")


def instance_ids(data: "AnnotatedSet", instances: "Instances") -> tuple[dict[str, int], dict[str, int]]:
    """Ids of images and categories by name: those of the COCO file that DATA is, else numbers from 1; a category that
    the file does not list (of masks without one) gets the next free number."""
    from maskmill.storage.annotated import CocoSet

    images, categories = ({name: n + 1 for n, name in enumerate(x)} for x in (data.names, instances.categories))
    if not isinstance(data, CocoSet):
        return images, categories
    known = dict(data.category_ids)
    for name in instances.categories:
        known.setdefault(name, max(known.values(), default=0) + 1)
    return data.image_ids, known


def write_audit(
    automatic: str, corrected: str, out: str, images: str | None, filter_name: str | None, resamples: int, quiet: bool
) -> None:
    """audit.json."""
    from maskmill.evaluate.audit import audit
    from maskmill.storage.annotated import has_images_apart, open_annotated
    from maskmill.storage.files import at, to_json, write_bytes

    lie = [images if has_images_apart(path) else None for path in (automatic, corrected)]
    if images is not None and lie == [None, None]:
        raise UserError(f"--images {images}: images are named apart only for a build or for COCO JSON")
    found = audit(open_annotated(automatic, lie[0], filter_name), open_annotated(corrected, lie[1]), resamples)
    tree = {
        "automatic": automatic,
        "corrected": corrected,
        "images": found.images,
        "pairs": len(found.ious),
        "above": {f"{100 * t:g}": e.tree() for t, e in found.above.items()},
        "mean_iou": found.mean.tree(),
        "removed": found.removed,
        "added": found.added,
    }
    write_bytes(at(out) / "audit.json", to_json(tree))
    if not quiet:
        click.echo(f"{tree['images']} images, {tree['pairs']} pairs, {found.removed} removed, {found.added} added")
        for t, e in found.above.items():
            click.echo(f"above {t:.0%} IoU: {e.mean:.1%} of pairs ({e.low:.1%} to {e.high:.1%})")


def reporter(quiet: bool) -> Any:
    """`12/100 images  ETA 0:00:40`: rewritten on a terminal, lines in a log."""
    from maskmill.pipeline.progress import clock

    live, begun, last = sys.stderr.isatty(), time.monotonic(), [time.monotonic()]

    def say(done: int, of: int) -> None:
        now = time.monotonic()
        if quiet or (not live and now - last[0] < QUIET_FOR):
            return
        last[0] = now
        words = f"{done}/{of} images  ETA {clock((now - begun) / done * (of - done))}"
        click.echo(f"\r{words}  " if live else words, err=True, nl=not live or done == of)

    return say
