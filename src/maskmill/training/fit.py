"""A training run: OUT holds all of it, and the same command continues where OUT stands.

OUT/config.yaml        the recipe; a continuation under another one is refused
OUT/checkpoint.pt      weights, optimiser, step: replaced as a whole every `run.save_every` steps and at the end
OUT/model.safetensors  the weights alone, official names: what `load_model` and `maskmill evaluate` take,
                       averaged with the first ones if `model.keep` says so
OUT/metrics.jsonl      one line every `run.log_every` steps, means over them
OUT/tensorboard/       the same figures as events, with `run.tensorboard`
OUT/embeddings/        of a frozen encoder, with `cache`
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.utils.data import DataLoader
from upath import UPath

from maskmill.config import from_tree, plain, to_tree
from maskmill.errors import UserError
from maskmill.sam.build import checkpoint_sha256
from maskmill.sam.sam import Sam
from maskmill.storage import listing
from maskmill.storage.files import at, exists, is_local, read_bytes, write_bytes
from maskmill.training.config import TrainConfig, TrainModel
from maskmill.training.data import Broken, Example, Samples, deaf
from maskmill.training.embeddings import EmbeddingCache
from maskmill.training.pretrained import read_encoder
from maskmill.training.trainer import ALONE, Place, Trainer

FITTED = 16  # images that a fresh patch embedding is fitted to


class NothingToLearn(UserError):
    """Not one mask of the data can be trained on."""


@dataclass(frozen=True)
class Progress:
    """Where a run is: `left` seconds at the pace so far, `figures` the means of the last line."""

    step: int
    steps: int
    left: float
    figures: dict[str, float]


def never() -> bool:
    return False


def ignore(progress: Progress) -> None:
    return None


def fit(
    cfg: TrainConfig,
    out: str,
    place: Place = ALONE,
    say: Callable[[Progress], None] = ignore,
    stopped: Callable[[], bool] = never,
) -> bool:
    """Train, from where `out` stands, to the last step (True) or until `stopped` says so between two steps (False).

    UserError, in one line: bad data, another recipe than `out` was begun with. Diverged: the loss is no number. In
    either case `out` keeps its last checkpoint.
    """
    if cfg.optim.images % place.world:
        raise UserError(f"optim.images={cfg.optim.images} cannot be shared evenly by {place.world} processes")
    threads = torch.get_num_threads()
    if cfg.run.threads is not None:
        torch.set_num_threads(cfg.run.threads)
    try:
        run = Run(cfg, at(out), place)
        try:
            return run.go(say, stopped)
        finally:
            run.close()
    finally:
        torch.set_num_threads(threads)  # the caller's: another number rounds sums in another order


class Run:
    """A trainer with its data and its files; only the first of several processes writes."""

    def __init__(self, cfg: TrainConfig, out: UPath, place: Place) -> None:
        self.cfg, self.out, self.place = cfg, out, place
        self.trainer = Trainer(cfg, place)
        self.first = on_cpu(self.trainer.model) if cfg.model.keep else {}
        self.samples = Samples(cfg, self.trainer.model.img_size)
        if cfg.cache != "none":
            folder = at(cfg.run.embeddings) if cfg.run.embeddings else out / "embeddings"
            self.trainer.cache = EmbeddingCache(folder, self.trainer.model, cfg.cache, self.trainer.precision)
        self.lines: list[str] = []
        self.begin()
        self.board = open_board(out, self.trainer.step) if cfg.run.tensorboard and place.rank == 0 else None

    def begin(self) -> None:
        """Take up what is there, or write down what begins."""
        model = self.cfg.model
        weights = first_weights(model)
        about = {"config": recipe(self.cfg), "data": self.samples.fingerprint, "weights": weights}
        about["masks"] = self.samples.masks_fingerprint
        path = self.out / "checkpoint.pt"
        if exists(path):
            state = torch.load(io.BytesIO(read_bytes(path)), map_location=self.trainer.device, weights_only=True)
            begun, now = dict(state["about"]), dict(about)
            if "weights" not in begun:  # an earlier version's run: it knows them by their place
                begun["weights"], now["weights"] = begun["config"]["model"]["checkpoint"], model.checkpoint
            begun.setdefault("masks", now["masks"])  # nor which masks of a build
            begun["config"] = recipe(from_tree(TrainConfig, begun["config"]))  # with keys that it may not have known
            refuse_changes(self.out, begun, now)
            self.trainer.load(state)
            self.lines = kept_lines(self.out, self.trainer.step)
        elif self.cfg.model.fresh:
            some = (self.sample(n) for n in range(FITTED))
            self.trainer.fresh([e.pixels for e in some])
        self.trainer.check_together(str(self.out))
        self.about = about
        if self.place.rank == 0 and not exists(self.out / "config.yaml"):
            write_bytes(self.out / "config.yaml", yaml.safe_dump(to_tree(self.cfg), sort_keys=False).encode())

    def sample(self, number: int) -> Example:
        """One sample. UserError if it is broken."""
        found = self.samples[number]
        if isinstance(found, Broken):
            raise UserError(found.words)
        return found

    def batches(self) -> Iterator[list[Example]]:
        """This process's share of every step from here on."""
        images = self.cfg.optim.images
        mine = images // self.place.world
        first = self.place.rank * mine
        steps = range(self.trainer.step, self.cfg.optim.steps)
        numbers = (list(range(s * images + first, s * images + first + mine)) for s in steps)
        loader = DataLoader(
            self.samples, batch_sampler=numbers, collate_fn=list, num_workers=self.cfg.run.workers, worker_init_fn=deaf
        )
        for batch in loader:
            for found in batch:
                if isinstance(found, Broken):
                    raise UserError(found.words)
            yield batch

    def go(self, say: Callable[[Progress], None], stopped: Callable[[], bool]) -> bool:
        """All steps that are left."""
        window: list[dict[str, float]] = []
        begun, before, masks = time.monotonic(), self.trainer.step, 0.0
        told = begun
        for batch in self.batches():
            window.append(self.trainer.train_step(batch))
            masks += window[-1]["masks"]
            step, steps = self.trainer.step, self.cfg.optim.steps
            if not masks and step - before >= 1 + len(self.samples.entries) // self.cfg.optim.images:
                raise NothingToLearn(
                    f"no mask to train on in {len(self.samples.entries)} images: all are empty, too small or too large"
                )
            if step % self.cfg.run.log_every == 0 or step == steps:
                now = time.monotonic()
                figures = means(window)
                self.log({"step": step, **figures, "seconds": (now - told) / len(window)})
                say(Progress(step, steps, (now - begun) / (step - before) * (steps - step), figures))
                window, told = [], now
            asked = step < steps and stopped()
            if asked or step % self.cfg.run.save_every == 0 or step == steps:
                self.save()
            if asked:
                return False
        return True

    def log(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        if self.place.rank:
            return
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in line.items()}
        self.lines.append(json.dumps(rounded))
        write_bytes(self.out / "metrics.jsonl", ("\n".join(self.lines) + "\n").encode(), synced=False)
        if self.board is not None:
            for name in line.keys() - {"step"}:
                self.board.add_scalar(name, line[name], line["step"])

    def save(self) -> None:
        """Weights first: a checkpoint never claims more than what is there."""
        if self.place.rank:
            return
        state = on_cpu(self.trainer.model)
        if self.first:
            state = {k: v.lerp(self.first[k], self.cfg.model.keep) for k, v in state.items()}
        write_bytes(self.out / "model.safetensors", save_safetensors(state))
        whole = io.BytesIO()
        torch.save({"about": self.about, **self.trainer.state()}, whole)
        write_bytes(self.out / "checkpoint.pt", whole.getvalue())

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def first_weights(model: TrainModel) -> str | None:
    """sha256 of the file that training begins with; None for random weights. UserError if it is not there."""
    if not model.fresh:
        return checkpoint_sha256(model.name, model.checkpoint)
    return None if model.encoder is None else hashlib.sha256(read_encoder(model.encoder)).hexdigest()


def on_cpu(model: Sam) -> dict[str, Tensor]:
    """A copy of the weights, by official names."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in model.state_dict().items()}


def recipe(cfg: TrainConfig) -> dict[str, Any]:
    """What may not change within a run. Weights are compared by content and data by the names in them: their places
    may change."""
    tree = to_tree(cfg)
    del tree["run"], tree["data"]["sources"], tree["model"]["checkpoint"], tree["model"]["encoder"]
    if tree["model"]["name"].endswith((".yaml", ".yml")):  # its place, by whichever process
        tree["model"]["name"] = listing.absolute(tree["model"]["name"])
    return tree


def refuse_changes(out: UPath, old: dict[str, Any], new: dict[str, Any]) -> None:
    """UserError that names the first difference between what was begun and what is asked for."""
    was, now = flat(old), flat(new)
    changed = [k for k in sorted(was.keys() | now.keys()) if was.get(k) != now.get(k)]
    if changed:
        k = changed[0]
        name = k.removeprefix("config.")
        more = f" ({len(changed)} values differ)" if len(changed) > 1 else ""
        raise UserError(
            f"{out} was begun with {name}={was.get(k)}, not {now.get(k)}{more}: "
            f"keep the old value, or train in another --out"
        )


def flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in plain(tree).items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return found


def kept_lines(out: UPath, step: int) -> list[str]:
    """The lines of metrics.jsonl up to a step: what came later is done again."""
    path = out / "metrics.jsonl"
    if not exists(path):
        return []
    return [line for line in read_bytes(path).decode().splitlines() if json.loads(line)["step"] <= step]


def means(window: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure over the steps that have it."""
    names = dict.fromkeys(n for w in window for n in w)
    found = {n: [w[n] for w in window if n in w] for n in names}
    return {n: sum(values) / len(values) for n, values in found.items()}


def open_board(out: UPath, step: int) -> Any:
    """A TensorBoard writer in OUT/tensorboard. What an earlier process wrote after `step` is done again: not shown."""
    if not is_local(out):
        raise UserError(f"run.tensorboard writes to a local folder, not to {out}: leave it out")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise UserError("run.tensorboard needs a package: pip install 'maskmill[board]', or leave it out") from e
    return SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)  # type: ignore[no-untyped-call]
