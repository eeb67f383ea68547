"""configs/engine/*.yaml: the three stages as one run. Frozen dataclasses; an unknown key is refused."""

from dataclasses import dataclass, field, replace
from typing import Any

from maskmill.config import (
    Config,
    ModelSection,
    RunConfig,
    at_least,
    from_tree,
    merge,
    one_of,
    parse_set,
    read_yaml,
    resolve,
)  # fmt: skip
from maskmill.detect.head import DetectorConfig
from maskmill.detect.rtdetr import RtDetrConfig
from maskmill.detect.train import DetectorTraining
from maskmill.errors import UserError
from maskmill.evaluate.config import EvaluateConfig
from maskmill.prompts.session import SessionConfig
from maskmill.training.config import TrainConfig, for_model
from maskmill.training.scenes import KINDS, SceneConfig


@dataclass(frozen=True)
class EngineData:
    """Annotated images: the masks stand for what annotators want, and measure the held-out part.

    source: a build, SA-1B-style files or COCO JSON; `images`: where the images of a build or of COCO JSON lie.
    scenes: how many images the engine draws itself, if there is no source; kinds: which (training/scenes), all by
    default. held_out: share of the images, by name and seed, that no annotator sees and no model learns from.
    """

    source: str | None = None
    images: str | None = None
    scenes: int = 0
    kinds: tuple[str, ...] = ()
    held_out: float = 0.25

    def __post_init__(self) -> None:
        at_least("data", self, {"scenes": 0})
        if unknown := set(self.kinds) - set(KINDS):
            raise UserError(f"data.kinds: {sorted(unknown)[0]!r} is no kind of scene: known are {', '.join(KINDS)}")
        if (self.source is None) == (self.scenes == 0):
            raise UserError("data: give exactly one of source (annotated images) and scenes (how many to draw)")
        if not 0 < self.held_out < 1:
            raise UserError(f"data.held_out is {self.held_out:g}: it must lie between 0 and 1")

    @property
    def scene(self) -> SceneConfig:
        """What is drawn."""
        return SceneConfig(**{kind: float(kind in self.kinds) for kind in KINDS}) if self.kinds else SceneConfig()


@dataclass(frozen=True)
class StageConfig:
    """How many rounds, and new images in each."""

    rounds: int = 3
    images: int = 20

    def __post_init__(self) -> None:
        at_least("stage", self, {"rounds": 0, "images": 1})


@dataclass(frozen=True)
class QueueConfig:
    """Annotators at work at the same time, and how long a claimed task is theirs. processes: 0 leaves the work to
    others (docs/engine.md, Another annotation tool)."""

    processes: int = 2
    lease_s: float = 300.0

    def __post_init__(self) -> None:
        at_least("queue", self, {"processes": 0, "lease_s": 1})


@dataclass(frozen=True)
class PrefillConfig:
    """Which masks annotators are shown.

    kind: the detector that learns from all masks so far: `head` (`detector`, `training`) or `rtdetr`. detections: a
    COCO results file in its place, for the same images (`image_id` as the set has it). A box of at least box_score
    prompts SAM; its mask is shown if predicted IoU and stability reach their thresholds.
    """

    kind: str = "head"
    detections: str | None = None
    box_score: float = 0.3
    pred_iou_thresh: float = 0.5
    stability_score_thresh: float = 0.8
    nms_thresh: float = 0.7
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    training: DetectorTraining = field(default_factory=DetectorTraining)
    rtdetr: RtDetrConfig = field(default_factory=RtDetrConfig)

    def __post_init__(self) -> None:
        one_of("prefill", self, {"kind": ("head", "rtdetr")})
        if self.detections is not None and self.kind != "head":
            raise UserError(f"prefill: give one of kind ({self.kind!r}) and detections ({self.detections!r})")

    @property
    def whose(self) -> str:
        """The boxes in a few words."""
        if self.detections is not None:
            return f"boxes of {self.detections}"
        training = self.training if self.kind == "head" else self.rtdetr.training
        return f"{'detector' if self.kind == 'head' else 'RT-DETR'} {training.steps} steps"


@dataclass(frozen=True)
class GateConfig:
    """A new model serves only if no figure of the held-out part is worse by more than `tolerance` than the best of all
    that have served."""

    enabled: bool = True
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        at_least("gate", self, {"tolerance": 0})


@dataclass(frozen=True)
class AutomaticConfig:
    """The last stage: settings of the main job, as `--set` takes them."""

    enabled: bool = True
    set: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if own := {"model", "run"} & parse_set(self.set).keys():
            whose = {"model": "the model that serves is used", "run": "the engine's own `run` is used"}
            name = sorted(own)[0]
            raise UserError(f"automatic.set has {name}.*: {whose[name]}; leave it out")

    def config(self, model: ModelSection, run: RunConfig) -> Config:
        """What `maskmill generate` would run with."""
        return replace(resolve(model.name, model.checkpoint, assignments=self.set), run=run)


@dataclass(frozen=True)
class EngineConfig:
    """The whole tree. retrain: false leaves the first model in place (an ablation). train_processes: of one training;
    with more than one they are Ray Train's."""

    data: EngineData
    model: ModelSection = field(default_factory=ModelSection)
    annotators: SessionConfig = field(default_factory=SessionConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    assisted: StageConfig = field(default_factory=StageConfig)
    semi: StageConfig = field(default_factory=lambda: StageConfig(rounds=2))
    prefill: PrefillConfig = field(default_factory=PrefillConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    measure: EvaluateConfig = field(default_factory=lambda: EvaluateConfig(points_per_side=0))
    gate: GateConfig = field(default_factory=GateConfig)
    run: RunConfig = field(default_factory=RunConfig)
    automatic: AutomaticConfig = field(default_factory=AutomaticConfig)
    retrain: bool = True
    train_processes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("engine", self, {"train_processes": 1})
        self.automatic.config(self.model, self.run)  # its settings are refused now, not in the last stage
        if self.train.optim.images % self.train_processes:
            raise UserError(
                f"train.optim.images={self.train.optim.images} cannot be shared evenly by "
                f"train_processes={self.train_processes}"
            )
        if self.semi.rounds and not self.assisted.rounds and self.prefill.detections is None:
            raise UserError(
                "assisted.rounds=0: the detector of the semi-automatic stage would have no mask to learn from; give "
                "prefill.detections, or leave semi.rounds=0 too"
            )
        if lacking := {1, 3, 5} - set(self.measure.clicks):
            raise UserError(f"measure.clicks lack {sorted(lacking)[0]}: the gate compares mIoU@1, @3 and @5")
        if lacking_noc := {0.85, 0.9} - set(self.measure.noc):
            raise UserError(f"measure.noc lacks {sorted(lacking_noc)[0]}: the gate compares NoC@85 and NoC@90")
        if self.train.data.sources:
            raise UserError("train.data.sources: the engine trains on what was annotated; leave it out")
        if self.train.model.fresh:
            raise UserError("train.model.fresh: the engine retrains the model that serves; leave it out")
        if self.train.model.checkpoint is not None:
            raise UserError(
                "train.model.checkpoint: the engine retrains the model that serves; model.checkpoint is the first one"
            )
        replace(self.train.model, name=self.model.name)  # img_size must fit the model that serves
        if self.train.run.embeddings is not None:
            raise UserError("train.run.embeddings: the engine keeps its own beside its rounds; leave it out")


def read_engine_config(path: str, assignments: tuple[str, ...] = ()) -> EngineConfig:
    """A YAML file by path, or configs/engine/NAME.yaml by name; `assignments` (key=value) on top of it.

    `train: NAME` is configs/train/NAME.yaml; `train: {from: NAME, ...}` changes some of its keys.
    """
    tree = read_yaml("engine", path)
    tree["train"] = named_recipe(tree.get("train"))
    for text in assignments:  # one by one: `train=NAME` is a whole recipe, and the next may change a key of it
        tree = merge(tree, parse_set((text,)))
        tree["train"] = named_recipe(tree["train"])
    model = from_tree(ModelSection, tree.get("model") or {}, "model.")
    tree["train"] = for_model(tree["train"], model.name)
    return from_tree(EngineConfig, tree)


def named_recipe(tree: Any) -> Any:
    """A training recipe whose `from`, or the recipe itself, is a name."""
    if isinstance(tree, str):
        return read_yaml("train", tree)
    if not isinstance(tree, dict):
        return {} if tree is None else tree
    rest = {key: value for key, value in tree.items() if key != "from"}
    return merge(read_yaml("train", tree["from"]), rest) if "from" in tree else rest
