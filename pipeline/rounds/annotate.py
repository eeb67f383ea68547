"""One simulated annotator: a process that claims images from a round's queue, works on them, and hands the masks in.

`python -m maskmill.pipeline.rounds.annotate ROUND NAME PARENT`; the engine starts several, and each ends with the
process PARENT. What is handed in follows from the image, the model and the settings alone, never from who did it or
when. SIGTERM: the image at hand is the last.
"""

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskmill.config import ModelSection, from_tree, to_tree
from maskmill.masks.boxes import xyxy_to_xywh
from maskmill.masks.rle import decode, encode
from maskmill.pipeline.child import die_with
from maskmill.pipeline.rounds.pack import stem
from maskmill.pipeline.rounds.prepare import box_logits
from maskmill.pipeline.rounds.queue import Claim, TaskQueue
from maskmill.pipeline.rounds.tools import cached_predictor, number
from maskmill.pipeline.unit import describe
from maskmill.prompts.annotator import iou
from maskmill.prompts.clicks import Mask, extent
from maskmill.prompts.session import Answer, Session, SessionConfig, annotate_image
from maskmill.sam.build import load_model
from maskmill.sam.predictor import Predictor
from maskmill.sam.sam import Sam
from maskmill.storage.annotated import Annotated, AnnotatedSet, open_annotated
from maskmill.storage.build import Build
from maskmill.storage.files import at, to_json, write_bytes
from maskmill.training.embeddings import EmbeddingCache

IDLE_S = 0.1  # between two looks at a queue whose tasks are all in others' hands
THREADS = 1  # one number on every machine: another rounds sums in another order


@dataclass(frozen=True)
class Assignment:
    """What an annotator must know. round: its name; prepared: the build of what images are shown with."""

    round: str
    model: ModelSection
    model_id: str
    source: str
    images: str | None
    embeddings: str
    session: SessionConfig
    lease_s: float
    annotators: int
    prepared: str


def queue_of(folder: Path, assignment: Assignment) -> TaskQueue:
    """The round's queue."""
    return TaskQueue(folder / "queue.sqlite", assignment.lease_s)


class Desk:
    """Model, images and settings, loaded once in each process."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(THREADS)
        self.folder = folder
        self.assignment: Assignment = from_tree(Assignment, json.loads((folder / "assignment.json").read_bytes()))
        self.queue = queue_of(folder, self.assignment)
        self.stopping = False

    @cached_property
    def model(self) -> Sam:
        return load_model(self.assignment.model.name, self.assignment.model.checkpoint, device="cpu")

    @cached_property
    def cache(self) -> EmbeddingCache:
        return EmbeddingCache(at(self.assignment.embeddings), self.model, "float32")

    @cached_property
    def images(self) -> AnnotatedSet:
        return open_annotated(self.assignment.source, self.assignment.images)

    @cached_property
    def shown(self) -> dict[str, list[dict[str, Any]]]:
        """The prefilled masks of each image, best first, by its name among the round's images."""
        build = Build(self.assignment.prepared)
        keys = {row["image_id"]: row["key"] for row in build.images().to_pylist()}
        found: dict[str, list[dict[str, Any]]] = {key: [] for key in keys.values()}
        for row in build.masks().to_pylist():
            found[keys[row["image_id"]]].append(row)
        return {key: sorted(rows, key=lambda r: (-r["predicted_iou"], r["mask_id"])) for key, rows in found.items()}

    def do(self, claim: Claim) -> bytes:
        """The masks of one image as SA-1B's JSON."""
        found = self.images.read(int(claim.payload))
        predictor = cached_predictor(self.model, found.image, self.cache)
        rows = self.shown[stem(found.name)]
        objects = [m for m in found.masks if m.any()]
        session = annotate_image(
            objects, prefilled(predictor, rows), answers(predictor), self.assignment.session, found.name
        )
        return to_json(self.tree(found, objects, session, rows))

    def tree(
        self, found: Annotated, objects: Sequence[Mask], session: Session, prefilled: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        """SA-1B's JSON with the lineage of every mask in its `meta`."""
        height, width = found.image.shape[:2]
        who = f"simulated-{number(found.name) % self.assignment.annotators}"
        annotations = []
        for n, made in enumerate(session.made):
            box = xyxy_to_xywh(np.array([extent(made.mask)]))[0]
            shown = prefilled[made.prefilled] if made.edit == "accepted" and made.prefilled is not None else {}
            annotations.append(
                {
                    "bbox": box.tolist(),
                    "area": int(made.mask.sum()),
                    "segmentation": {"size": [height, width], "counts": encode(made.mask)},
                    "predicted_iou": shown.get("predicted_iou"),
                    "point_coords": None,
                    "crop_box": None,
                    "id": n,
                    "stability_score": shown.get("stability_score"),
                    "meta": {
                        "round": self.assignment.round, "model": self.assignment.model_id, "annotator": who,
                        "edit": made.edit, "clicks": made.clicks, "seconds": round(made.seconds, 3),
                    },
                }
            )  # fmt: skip
        about = {
            "name": found.name, "seconds": round(session.seconds, 3), "rejected": session.rejected,
            "given_up": session.given_up, "prefilled": len(prefilled), "objects": len(objects),
            "ious": [round(max((iou(o, made.mask) for o in objects), default=0.0), 4) for made in session.made],
        }  # fmt: skip
        name = f"sa_{number(found.name)}.png"
        image = {"image_id": number(found.name), "width": width, "height": height, "file_name": name, "meta": about}
        return {"image": image, "annotations": annotations}

    def work(self, name: str) -> None:
        """Until every task is handed in, by whomever."""
        while not self.stopping and self.queue.left():
            claim = self.queue.claim(name)
            if claim is None:
                time.sleep(IDLE_S)
                continue
            with renewed(self.queue, claim):
                data = self.do(claim)
            write_bytes(at(self.folder / "answers" / claim.file), data)
            self.queue.finish(claim, name)


def prefilled(predictor: Predictor, rows: list[dict[str, Any]]) -> list[tuple[Mask, np.ndarray]]:
    """The masks that an image is shown with, and logits to mend them from: the model's answer to each one's box."""
    masks = [decode(r["counts"], r["height"], r["width"]) for r in rows]
    if not masks:
        return []
    low, _ = box_logits(predictor, np.array([extent(mask) for mask in masks], np.float64))
    return [(mask, low[i : i + 1].cpu().numpy()) for i, mask in enumerate(masks)]


def answers(predictor: Predictor) -> Answer:
    """Masks by the model: the most confident of three for a first click; then one, from the last one's logits."""

    def answer(points: np.ndarray, labels: np.ndarray, logits: np.ndarray | None) -> tuple[Mask, np.ndarray]:
        first = logits is None and len(points) == 1
        masks, scores, low = predictor.predict(points, labels, mask_input=logits, multimask_output=first)
        best = int(scores.argmax())
        return masks[best], low[best : best + 1]

    return answer


@contextmanager
def renewed(queue: TaskQueue, claim: Claim) -> Iterator[None]:
    """Keep the lease while the work goes on."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(queue.lease_s / 3):
            queue.renew(claim)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def write_assignment(folder: Path, assignment: Assignment) -> None:
    """What `Desk` reads."""
    write_bytes(at(folder / "assignment.json"), to_json(to_tree(assignment)))


def main(folder: str, name: str, parent: str) -> None:
    """The process."""
    threading.Thread(target=die_with, args=(int(parent),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent to all processes of a job: the engine decides
    desk = Desk(Path(folder))

    def stop(number: int, frame: object) -> None:
        desk.stopping = True

    signal.signal(signal.SIGTERM, stop)
    try:
        desk.work(name)
    except Exception as e:
        print(f"{name}: {describe(e)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
