"""What benchmarks/gpu.py measures on: how much of it, and one model with its images."""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.agreement import Record
from benchmarks.flops import Work, count
from benchmarks.pictures import pictures
from benchmarks.shaped import shaped_model
from maskmill import MaskGenerator
from maskmill.config import GenerateConfig
from maskmill.generate.grids import crop_plan
from maskmill.sam.build import build_sam, load_config
from maskmill.sam.precision import cast
from maskmill.sam.sam import ModelConfig, Sam
from tests.parity.official import SamAutomaticMaskGenerator


@dataclass(frozen=True)
class Scale:
    """How much is measured: the real thing, or a small copy of it for a test."""

    height: int = 1500
    width: int = 2250
    points_per_side: int = 32
    points_per_batch: int = 64  # of the official generator: its default
    own_points_per_batch: int = 1024  # of ours: a whole image's points, or 16 small crops
    crop_layers: int = 2  # of SA-1B mode
    most_images: int = 64  # of a timed batch
    batch_seconds: float = 4.0  # about as long as one timed batch shall take
    checked_images: int = 2  # with the official generator
    matmul: int = 8192
    copy_mb: int = 4096

    def settings(self, mode: str) -> dict[str, Any]:
        """Keyword arguments of both generators. SA-1B mode: crops, fewer points in each, small regions."""
        default = {
            "points_per_side": self.points_per_side,
            "points_per_batch": self.points_per_batch,
            "output_mode": "coco_rle",
        }
        if mode == "default":
            return default
        assert mode == "sa1b", mode
        crops = {"crop_n_layers": self.crop_layers, "crop_n_points_downscale_factor": 2}
        return default | crops | {"min_mask_region_area": 100}


TINY = Scale(90, 135, 4, 8, 16, 1, most_images=2, batch_seconds=0.1, checked_images=1, matmul=256, copy_mb=8)


def tiny_config(name: str) -> ModelConfig:
    """The same classes, small enough for seconds on a CPU; each model has its own."""
    cfg = load_config("nano")
    depth = {"vit_b": 2, "vit_l": 3, "vit_h": 4}[name]
    encoder = replace(cfg.image_encoder, img_size=128, embed_dim=32, num_heads=2, out_chans=64)
    encoder = replace(encoder, depth=depth, global_attn_indexes=(1,))
    transformer = replace(cfg.mask_decoder.transformer, mlp_dim=64)
    return replace(
        cfg, name=name, image_encoder=encoder, mask_decoder=replace(cfg.mask_decoder, transformer=transformer)
    )


class Subject:
    """One architecture with shaped weights, in the official classes and in ours, and the images."""

    def __init__(self, cfg: ModelConfig, scale: Scale, device: torch.device, own: dict[str, Any]) -> None:
        begun = time.perf_counter()
        self.cfg, self.scale, self.device = cfg, scale, device
        self.own = own  # keys of `generate` that only our generator has or shall have
        self.work: Work = count(cfg)
        self.images = pictures(max(4, scale.checked_images), scale.height, scale.width)
        self.official, self.look = shaped_model(cfg, self.images[0], device=device)
        self.models: dict[str, Sam] = {}  # ours, by precision
        assert self.look.like_masks, f"these weights give no masks, but noise: {self.look}"
        self.built_seconds = time.perf_counter() - begun
        self.known: dict[tuple[str, int], list[Record]] = {}  # of the official generator, by (mode, image)

    def model(self, precision: str) -> Sam:
        """Ours, with the same weights."""
        if precision not in self.models:
            with torch.device(self.device):
                made = build_sam(self.cfg).eval().to(self.device)
            made.load_state_dict(self.official.state_dict())
            self.models[precision] = cast(made, precision)
        return self.models[precision]

    def bytes_beside(self, precision: str) -> int:
        """What the weights of all other models here take."""
        others = [self.official, *(model for name, model in self.models.items() if name != precision)]
        return sum(p.numel() * p.element_size() for model in others for p in model.parameters())

    def generator(self, mode: str, precision: str, floor: tuple[float, float] | None = None) -> MaskGenerator:
        """Ours. A precision that the library does not know raises UserError."""
        GenerateConfig(precision=precision)  # refuses what it does not know
        made = MaskGenerator(self.model(precision), **self.scale.settings(mode))
        own: dict[str, Any] = {"points_per_batch": self.scale.own_points_per_batch} | self.own
        changed = replace(made.generate_config, **own)
        if floor is not None:
            changed = replace(changed, floor_pred_iou=floor[0], floor_stability=floor[1])
        made.generate_config = changed
        return made

    def checked(self, mode: str) -> int:
        """Images that the official generator sees. In SA-1B mode it takes a minute for one."""
        return self.scale.checked_images if mode == "default" else 1

    def plan(self, mode: str) -> tuple[int, int]:
        """Crops and prompts of an image."""
        crops = crop_plan(self.scale.height, self.scale.width, self.generator(mode, "float32").generate_config)
        return len(crops), sum(len(crop.points) for crop in crops)

    def official_records(self, mode: str, i: int) -> list[Record]:
        """The official generator's records of image i, computed once."""
        if (mode, i) not in self.known:
            generator = SamAutomaticMaskGenerator(self.official, **self.scale.settings(mode))
            self.known[mode, i] = generator.generate(self.images[i])
        return self.known[mode, i]
