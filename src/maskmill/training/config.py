"""What a training run is: frozen dataclasses. The defaults are SAM's own recipe (paper, appendix A).

`run.*`, and where weights and data lie, may change between a run and its continuation; all else is part of it.
"""

from dataclasses import dataclass, field
from typing import Any

from maskmill.config import at_least, merge, one_of, read_yaml
from maskmill.errors import UserError


@dataclass(frozen=True)
class TrainModel:
    """Where the weights come from, and which of them learn.

    fresh: random weights in place of a checkpoint; encoder: a file of MAE's to begin its encoder with, as SAM did
    (training/pretrained.py). train: `all`, or `decoder` for the prompt encoder and the mask
    decoder alone. drop_path: probability of the encoder's last block to be skipped, falling to 0 at the first one.
    keep: share of the first weights in those that are written; the rest is what training ended with. Some of the new is
    lost, and less of the old (WiSE-FT: Wortsman et al., Robust fine-tuning of zero-shot models, 2022).
    img_size: side of the input in pixels, if not that of the weights: a finer one shows smaller things, at a price that
    grows faster than its area. detail: give the mask decoder a view of single pixels (sam/detail.py), if the weights do
    not have it. Weights that are written either way say so themselves, and are loaded as any others.
    """

    name: str = "nano"
    checkpoint: str | None = None
    fresh: bool = False
    encoder: str | None = None
    train: str = "all"
    drop_path: float = 0.4
    decoder_dropout: float = 0.1
    keep: float = 0.0
    img_size: int | None = None
    detail: bool = False

    def __post_init__(self) -> None:
        one_of("model", self, {"train": ("all", "decoder")})
        for name in ("drop_path", "decoder_dropout", "keep"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name):g}: it must lie in [0, 1)")
        if self.fresh and (self.checkpoint is not None or self.train != "all"):
            raise UserError("model.fresh starts from random weights: leave out model.checkpoint, and train all of them")
        if self.detail and self.train != "all":
            raise UserError(
                "model.detail is a part of the encoder, which learns with model.train=all alone; weights that have it "
                "keep it without being asked"
            )
        if self.img_size is not None:
            patch = read_yaml("model", self.name).get("image_encoder", {}).get("patch_size", 16)
            if self.img_size < patch or self.img_size % patch:
                raise UserError(
                    f"model.img_size is {self.img_size}: expected a multiple of the patches of {self.name!r}, "
                    f"{patch} pixels"
                )
        if self.encoder is not None and not self.fresh:
            raise UserError("model.encoder begins a fresh model: set model.fresh=true, or leave it out")
        if self.fresh and self.keep:
            raise UserError(f"model.keep is {self.keep:g}: random weights (model.fresh) are not worth keeping")


@dataclass(frozen=True)
class Source:
    """One annotated set: a build, SA-1B-style files, or COCO JSON (storage/annotated.py).

    repeat: how often an epoch goes through it (the paper oversamples stages 1 and 2 tenfold). limit: its first images
    only.
    """

    path: str
    images: str | None = None
    filter: str | None = None
    repeat: int = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        at_least("data.sources", self, {"repeat": 1})
        if self.limit is not None:
            at_least("data.sources", self, {"limit": 1})


@dataclass(frozen=True)
class DataConfig:
    """masks_per_image: as many of an image's masks at random. max_area_share: larger masks are left out.

    jitter: large-scale jitter, the range of the scale (the paper's stages 1 and 2: 0.1, 2.0); none by default. tile: an
    image that it makes smaller than half of the input is laid out in copies until the input is full.
    symmetry: `mirror` turns left and right around, `square` takes any of a square's eight symmetries. colour_jitter:
    contrast, brightness and colours at random, as in nano's own training."""

    sources: tuple[Source, ...] = ()
    masks_per_image: int = 64
    max_area_share: float = 0.9
    jitter: tuple[float, float] | None = None
    tile: bool = False
    symmetry: str = "none"
    colour_jitter: bool = False

    def __post_init__(self) -> None:
        at_least("data", self, {"masks_per_image": 1})
        one_of("data", self, {"symmetry": ("none", "mirror", "square")})
        if not 0 < self.max_area_share <= 1:
            raise UserError(f"data.max_area_share is {self.max_area_share:g}: it must lie in (0, 1]")
        if self.jitter is not None and not 0 < self.jitter[0] <= self.jitter[1]:
            raise UserError(f"data.jitter is {list(self.jitter)}: expected a range of scales above 0")
        if self.tile and (self.jitter is None or self.jitter[0] >= 0.5):
            raise UserError("data.tile fills what data.jitter leaves empty below a scale of 0.5: give such a range too")


@dataclass(frozen=True)
class PromptsConfig:
    """The simulated interaction. One first prompt, then `clicks` from the error region, an iteration without a new
    click among them and another one at the end. box_noise: share of the side; box_noise_most: pixels of the input.
    middle_share: of the first points, those in the middle of their object, where evaluation clicks; the others are
    anywhere in it, as in the paper."""

    clicks: int = 8
    empty: bool = True
    box_share: float = 0.5
    box_noise: float = 0.1
    box_noise_most: float = 20.0
    middle_share: float = 0.0

    def __post_init__(self) -> None:
        at_least("prompts", self, {"clicks": 0, "box_noise": 0, "box_noise_most": 0})
        for name in ("box_share", "middle_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"prompts.{name} is {getattr(self, name):g}: it must lie in [0, 1]")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses; alpha and gamma of focal loss (Lin et al.). stride: on which grid masks are compared, in
    pixels of the input: 4 is the decoder's own, 1 and 2 enlarge its logits and see smaller things, at a price.
    logit_scale: what logits are multiplied by before they are compared. Recipes leave it out: `for_model` fills it in.
    relaxed: chance that of a prompt's three masks any one learns instead of the best: where things are not ambiguous,
    all three learn them, and the most confident one is nearly as good as the best (relaxed winner-takes-all: Rupprecht
    et al., Learning in an Uncertain World, 2017)."""

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    alpha: float = 0.25
    gamma: float = 2.0
    stride: int = 4
    logit_scale: float = 1.0
    relaxed: float = 0.0

    def __post_init__(self) -> None:
        at_least("loss", self, {"focal": 0, "dice": 0, "iou": 0, "gamma": 0})
        if self.logit_scale <= 0:
            raise UserError(f"loss.logit_scale is {self.logit_scale:g}: it must lie above 0")
        if not 0 <= self.relaxed <= 1:
            raise UserError(f"loss.relaxed is {self.relaxed:g}: it must lie in [0, 1]")
        if self.stride not in (1, 2, 4):
            raise UserError(f"loss.stride is {self.stride}: expected 1, 2 or 4 pixels")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule, in steps. images: of one step, over all processes; clip: the largest norm of a gradient,
    0 for no limit."""

    lr: float = 8e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.1
    steps: int = 90_000
    warmup: int = 250
    milestones: tuple[int, ...] = (60_000, 86_666)
    factor: float = 0.1
    layer_decay: float = 0.8
    images: int = 256
    clip: float = 0.0

    def __post_init__(self) -> None:
        at_least("optim", self, {"lr": 0, "steps": 1, "warmup": 0, "images": 1, "weight_decay": 0, "clip": 0})
        if not (0 < self.layer_decay <= 1 and 0 < self.factor <= 1):
            raise UserError("optim.layer_decay and optim.factor must lie in (0, 1]")
        if not all(0 <= b < 1 for b in self.betas):
            raise UserError(f"optim.betas are {list(self.betas)}: they must lie in [0, 1)")
        if list(self.milestones) != sorted(self.milestones):
            raise UserError(f"optim.milestones are {list(self.milestones)}: they must rise")


@dataclass(frozen=True)
class TrainRun:
    """How the work is done. precision: `auto` is bfloat16 where the machine is fast at it (training/precision.py), else
    float32: another machine may round otherwise. images_per_pass: how many go through the encoder at once; gradients
    add up until `images` are done. save_every and log_every: steps. workers: processes that read images. embeddings:
    where `cache` keeps them, OUT/embeddings by default; several runs may share it. tensorboard needs its package."""

    device: str | None = None
    precision: str = "float32"
    images_per_pass: int = 1
    workers: int = 0
    threads: int | None = None
    save_every: int = 500
    log_every: int = 10
    embeddings: str | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        one_of("run", self, {"precision": ("auto", "float32", "bfloat16")})
        at_least("run", self, {"images_per_pass": 1, "workers": 0, "save_every": 1, "log_every": 1})
        if self.threads is not None:
            at_least("run", self, {"threads": 1})


@dataclass(frozen=True)
class TrainConfig:
    """The whole tree. cache: keep the frozen encoder's embeddings on disk; `float16` takes half the space and changes
    them a little, `none` computes them anew each time."""

    model: TrainModel = field(default_factory=TrainModel)
    data: DataConfig = field(default_factory=DataConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: TrainRun = field(default_factory=TrainRun)
    cache: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("train", self, {"cache": ("none", "float32", "float16")})
        at_least("train", self, {"seed": 0})
        if self.cache == "none":
            return
        if self.model.train != "decoder":
            raise UserError("cache keeps embeddings of a frozen encoder: set model.train to decoder, or cache to none")
        if self.data.jitter is not None or self.data.symmetry != "none" or self.data.colour_jitter:
            raise UserError(
                "cache keeps one embedding of each image: leave out data.jitter, data.symmetry and data.colour_jitter"
            )


def for_model(tree: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    """A recipe's tree for a model (by default its own), with the `loss.logit_scale` that the model's file says.

    nano's logits were multiplied by 4 after its own training (`scale_logits`), so it has 0.25: else the first thing
    that more training does is to shrink them again.
    """
    model = tree.get("model")
    model = model if isinstance(model, dict) else {}  # what it is instead is refused later
    about = {} if model.get("fresh") else read_yaml("model", name or str(model.get("name", TrainModel.name)))
    return merge({"loss": {"logit_scale": about.get("logit_scale", 1.0)}}, tree)
