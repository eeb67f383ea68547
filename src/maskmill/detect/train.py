"""Train a box head on stored embeddings, and keep it as one file."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from upath import UPath

from maskmill.config import at_least
from maskmill.detect.head import BoxHead, DetectorConfig
from maskmill.detect.loss import detector_loss
from maskmill.errors import UserError
from maskmill.storage.files import at, read_bytes, write_bytes

Example = tuple[Tensor, Tensor]  # embedding C x h x w; boxes N x 4 XYXY in units of the input's side


@dataclass(frozen=True)
class DetectorTraining:
    """AdamW with a short warm-up, then a cosine to zero."""

    steps: int = 600
    batch_size: int = 8
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("detector", self, {"steps": 1, "batch_size": 1, "lr": 0, "weight_decay": 0, "warmup": 0})


def train_detector(
    examples: Sequence[Callable[[], Example]],
    cfg: DetectorConfig,
    training: DetectorTraining,
    device: torch.device,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> BoxHead:
    """A head from scratch: the same examples, settings and machine give the same bits.

    Args: examples: each loads one image's embedding and boxes; report: called with each step and its loss.
    """
    need_examples(len(examples))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        head = BoxHead(cfg, in_channels=examples[0]()[0].shape[0]).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, training))
    for step, picked in enumerate(batches(len(examples), training)):
        embeddings, boxes = zip(*(examples[i]() for i in picked), strict=True)
        logits, sides = head(torch.stack(embeddings).to(device).float())
        objectness, box = detector_loss(logits, sides, [b.to(device) for b in boxes], cfg)
        loss = objectness + 2 * box
        if not torch.isfinite(loss):
            raise UserError(f"the detector's loss is {loss.item()} at step {step}: lower detector.lr ({training.lr:g})")
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(step, loss.item())
    return head.eval()


def need_examples(count: int) -> None:
    """UserError if there is nothing to learn from."""
    if not count:
        raise UserError("there are no images to train the detector on: annotate some first")


def batches(count: int, training: DetectorTraining) -> Iterator[list[int]]:
    """For each step the numbers of its images, of `count`: all of them in random order, then again."""
    order = torch.Generator().manual_seed(training.seed)
    queue: list[int] = []
    for _ in range(training.steps):
        while len(queue) < training.batch_size:
            queue += torch.randperm(count, generator=order).tolist()
        picked, queue = queue[: training.batch_size], queue[training.batch_size :]
        yield picked


def rate(step: int, training: DetectorTraining) -> float:
    """The share of the learning rate at a step."""
    if step < training.warmup:
        return (step + 1) / (training.warmup + 1)
    done = (step - training.warmup) / max(1, training.steps - training.warmup)
    return float(0.5 + 0.5 * torch.cos(torch.tensor(done * torch.pi)))


def save_head(head: BoxHead, path: str | Path | UPath) -> None:
    """Weights and settings in one safetensors file."""
    state = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    about = {"detector": json.dumps(asdict(head.cfg) | {"in_channels": head.in_channels})}
    write_bytes(at(path), safetensors.torch.save(state, about))


def metadata(data: bytes) -> dict[str, str]:
    """What stands beside the weights in a safetensors file. KeyError, ValueError or TypeError if it is none."""
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length])["__metadata__"])


def load_head(path: str | Path | UPath, device: torch.device) -> BoxHead:
    """What `save_head` wrote."""
    data = read_bytes(at(path))
    try:
        tree = json.loads(metadata(data)["detector"])
        in_channels = tree.pop("in_channels")
        head = BoxHead(DetectorConfig(**{**tree, "sizes": tuple(tree["sizes"])}), in_channels)
        head.load_state_dict(safetensors.torch.load(data))
    except (KeyError, ValueError, TypeError, RuntimeError) as e:
        raise UserError(f"{path} is not a detector of maskmill: {e}") from e
    return head.to(device).eval()
