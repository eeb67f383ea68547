"""RT-DETR (arXiv 2304.08069) from transformers, with one class: the heavier detector, with a backbone of its own.

Worth its price from published weights (`checkpoint`); from random ones it needs far more images than a round has.
Needs the extra `detr` (transformers, scipy); neither torchvision nor timm.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from upath import UPath

from maskmill.config import at_least
from maskmill.detect.boxes import Boxes, Seen
from maskmill.detect.train import DetectorTraining, batches, need_examples, rate
from maskmill.errors import UserError
from maskmill.sam.common import plain_float32
from maskmill.storage.files import at, write_bytes

FINE_TUNING = DetectorTraining(steps=2000, batch_size=4, lr=1e-4, weight_decay=1e-4, warmup=100)
KEY = "rtdetr"  # in the file's metadata
Example = tuple[np.ndarray, Tensor]  # image H x W x 3 uint8; boxes N x 4 XYXY in its pixels


@dataclass(frozen=True)
class RtDetrConfig:
    """checkpoint: a folder that `save_pretrained` wrote, or a name that transformers knows (PekingU/rtdetr_r18vd).

    Without one, a model of the sizes below with random weights: backbone_* of its ResNet, of width and decoder_layers.
    image_size: the square that images are stretched to, a multiple of 32. queries: the most boxes of an image.
    """

    checkpoint: str | None = None
    image_size: int = 640
    queries: int = 300
    width: int = 256
    decoder_layers: int = 3
    backbone_depths: tuple[int, ...] = (2, 2, 2, 2)
    backbone_sizes: tuple[int, ...] = (64, 128, 256, 512)
    training: DetectorTraining = field(default_factory=lambda: FINE_TUNING)

    def __post_init__(self) -> None:
        at_least("rtdetr", self, {"image_size": 32, "queries": 1, "width": 8, "decoder_layers": 1})
        if self.image_size % 32:
            raise UserError(f"rtdetr.image_size is {self.image_size}: it must be a multiple of 32")
        if len(self.backbone_depths) != 4 or len(self.backbone_sizes) != 4:
            raise UserError("rtdetr.backbone_depths and backbone_sizes: give four of each, one for each stage")


def need_transformers() -> None:
    """UserError where the extra is missing."""
    for name in ("transformers", "scipy"):
        if find_spec(name) is None:
            raise UserError(f"RT-DETR needs {name}: pip install 'maskmill[detr]'")


class RtDetr:
    """A trained model as a detector."""

    def __init__(self, model: Any, image_size: int) -> None:
        self.model, self.image_size = model.eval(), image_size

    @torch.no_grad()
    def __call__(self, seen: Seen) -> Boxes:
        height, width = seen.image.shape[:2]
        x = pixels(seen.image, self.image_size)[None].to(self.model.device)
        with plain_float32(x):
            out = self.model(pixel_values=x)
        scores, order = out.logits[0].sigmoid().amax(-1).sort(descending=True, stable=True)
        center, sides = out.pred_boxes[0, order].split(2, dim=-1)
        size = center.new_tensor([width, height])
        corners = [(center - sides / 2).clamp(0, 1) * size, (center + sides / 2).clamp(0, 1) * size]
        xyxy = torch.cat(corners, dim=-1).cpu().numpy()
        whole = (xyxy[:, 2:] - xyxy[:, :2] >= 1).all(1)
        return Boxes(xyxy[whole].astype(np.float32), scores.cpu().numpy().astype(np.float32)[whole])

    def save(self, path: str | Path | UPath) -> None:
        """Weights and settings in one safetensors file."""
        state = {name: value.detach().cpu().clone().contiguous() for name, value in self.model.state_dict().items()}
        about = {"config": self.model.config.to_dict(), "image_size": self.image_size}
        write_bytes(at(path), safetensors.torch.save(state, {KEY: json.dumps(about, default=str)}))

    @classmethod
    def load(cls, data: bytes, about: str, device: torch.device) -> "RtDetr":
        """What `save` wrote; `about` is its metadata."""
        need_transformers()
        from transformers import RTDetrConfig, RTDetrForObjectDetection

        tree = json.loads(about)
        model = RTDetrForObjectDetection(RTDetrConfig.from_dict(tree["config"]))
        model.load_state_dict(safetensors.torch.load(data))
        return cls(model.to(device), tree["image_size"])


def new_model(cfg: RtDetrConfig) -> Any:
    """The model that training begins with. UserError if the checkpoint cannot be read."""
    need_transformers()
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    if cfg.checkpoint is not None:
        try:
            return RTDetrForObjectDetection.from_pretrained(
                cfg.checkpoint, num_labels=1, num_queries=cfg.queries, anchor_image_size=None,
                ignore_mismatched_sizes=True,  # its classes, of which we have one
            )  # fmt: skip
        except (OSError, ValueError) as e:
            words = " ".join(str(e).split())[:200]
            raise UserError(f"rtdetr.checkpoint {cfg.checkpoint!r}: transformers cannot read it: {words}") from e
    backbone = RTDetrResNetConfig(
        depths=list(cfg.backbone_depths), hidden_sizes=list(cfg.backbone_sizes), layer_type="basic",
        embedding_size=cfg.backbone_sizes[0], out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    width = cfg.width
    return RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=backbone, freeze_backbone_batch_norms=False, num_labels=1, num_queries=cfg.queries,
            encoder_in_channels=list(cfg.backbone_sizes[1:]), encoder_hidden_dim=width, d_model=width,
            encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width, decoder_in_channels=[width] * 3,
            decoder_layers=cfg.decoder_layers,
        )
    )  # fmt: skip


def train_rtdetr(
    examples: Sequence[Callable[[], Example]],
    cfg: RtDetrConfig,
    device: torch.device,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> RtDetr:
    """Train on images and boxes; the same examples, settings and machine give the same bits on a CPU."""
    training = cfg.training
    need_examples(len(examples))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)  # weights, and the noise that its denoising queries learn from
        model = new_model(cfg).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr, weight_decay=training.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, training))
        for step, picked in enumerate(batches(len(examples), training)):
            shown = [examples[i]() for i in picked]
            images = torch.stack([pixels(image, cfg.image_size) for image, _ in shown]).to(device)
            loss = model(pixel_values=images, labels=[label(*s, device) for s in shown]).loss
            if not torch.isfinite(loss):
                raise UserError(f"RT-DETR's loss is {loss.item()} at step {step}: lower rtdetr.training.lr")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            schedule.step()
            report(step, loss.item())
    return RtDetr(model, cfg.image_size)


def pixels(image: np.ndarray, side: int) -> Tensor:
    """H x W x 3 uint8 -> 3 x side x side float32 in [0, 1], stretched as the published weights saw images."""
    scaled = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1))).float() / 255


def label(image: np.ndarray, boxes: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Centers and sides in shares of the image; one class."""
    size = torch.tensor([image.shape[1], image.shape[0]]).repeat(2)
    low, high = torch.split(boxes / size, 2, dim=-1)
    shares = torch.cat([(low + high) / 2, high - low], dim=-1)
    return {"class_labels": torch.zeros(len(boxes), dtype=torch.long, device=device), "boxes": shares.to(device)}
