"""One YAML tree: model, generate, filter, run. Frozen dataclasses; an unknown key is refused with the nearest known.

`generate.*` shapes candidates and stands in the build's fingerprint, `filter.*` chooses among candidates, `run.*` never
changes a row. Names and defaults are the official generator's where it has one (automatic_mask_generator.py:36-52).
"""

import contextlib
import dataclasses
import difflib
import itertools
import types
import typing
from dataclasses import MISSING, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml

from maskmill.errors import UserError

CONFIGS = files("maskmill") / "configs"
PRECISIONS = ("float32", "bfloat16", "float16")
MAX_CROP_LAYERS = 6
NO_YAML = (yaml.YAMLError, ValueError)  # ValueError: PyYAML of what looks like a date or a number and is none


@dataclass(frozen=True)
class ModelSection:
    """Which weights. `checkpoint` is a path; null means the weights inside the package."""

    name: str = "nano"
    checkpoint: str | None = None


@dataclass(frozen=True)
class GenerateConfig:
    """What becomes a candidate."""

    points_per_side: int | None = 32
    points_per_batch: int = 64
    point_grids: tuple[tuple[tuple[float, float], ...], ...] | None = None
    crop_n_layers: int = 0
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    stability_score_offset: float = 1.0
    crop_edge_tolerance: float = 20.0
    floor_pred_iou: float = 0.80
    floor_stability: float = 0.90
    precision: str = "float32"
    threads: int = 1
    max_image_mpx: float = 400.0

    def __post_init__(self) -> None:
        if (self.points_per_side is None) == (self.point_grids is None):
            raise UserError("generate: give exactly one of points_per_side and point_grids, and set the other to null")
        at_least("generate", self, {"points_per_batch": 1, "crop_n_layers": 0, "crop_n_points_downscale_factor": 1})
        at_least("generate", self, {"threads": 1, "floor_pred_iou": 0.0, "floor_stability": 0.0})
        at_least("generate", self, {"crop_edge_tolerance": 0.0, "stability_score_offset": 0.0})
        if not self.max_image_mpx > 0:
            raise UserError(f"generate.max_image_mpx is {self.max_image_mpx:g}: it must lie above 0")
        if self.max_image_mpx > 536:  # 2**29 pixels: beyond, pycocotools' rleToString overruns its buffer
            raise UserError(f"generate.max_image_mpx is {self.max_image_mpx:g}: COCO's RLE code holds at most 536 Mpx")
        if self.crop_n_layers > MAX_CROP_LAYERS:
            raise UserError(
                f"generate.crop_n_layers is {self.crop_n_layers}: it must be at most {MAX_CROP_LAYERS}, which has "
                f"{4**MAX_CROP_LAYERS} crops in its last layer"
            )
        if self.points_per_side is not None:
            at_least("generate", self, {"points_per_side": 1})
        for point in itertools.chain.from_iterable(self.point_grids or ()):
            if not all(0 <= place <= 1 for place in point):
                raise UserError(f"generate.point_grids has {list(point)}: points lie in [0, 1], as shares of a crop")
        if self.point_grids is not None and len(self.point_grids) != self.crop_n_layers + 1:
            raise UserError(
                f"generate.point_grids has {len(self.point_grids)} grids: crop_n_layers={self.crop_n_layers} needs "
                f"{self.crop_n_layers + 1}, one for each layer"
            )
        if not 0 <= self.crop_overlap_ratio < 1:
            raise UserError(f"generate.crop_overlap_ratio is {self.crop_overlap_ratio}: it must lie in [0, 1)")
        one_of("generate", self, {"precision": PRECISIONS})


@dataclass(frozen=True)
class FilterConfig:
    """What becomes a mask: the official generator's settings, then more rules, each off by default (docs/filters.md).

    A threshold of 0 means off; an overlap threshold (nms_ios_thresh, outermost_thresh) or a sample of 1 does.
    """

    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    max_area_share: float = 0.0
    box_nms_thresh: float = 0.7
    crop_nms_thresh: float = 0.7
    min_mask_region_area: int = 0
    min_area: int = 0
    max_area: int = 0
    min_area_share: float = 0.0
    tokens: tuple[int, ...] = (0, 1, 2)
    max_aspect_ratio: float = 0.0
    min_border_distance: int = 0
    nms_overlap: str = "box"
    nms_ios_thresh: float = 1.0
    outermost_thresh: float = 1.0
    score_quantile: float = 0.0
    max_masks_per_image: int = 0
    shared_pixels: str = "keep"
    sample: float = 1.0

    def __post_init__(self) -> None:
        at_least("filter", self, {f.name: 0 for f in dataclasses.fields(self) if f.type in (int, float)})
        one_of("filter", self, {"nms_overlap": ("box", "mask"), "shared_pixels": ("keep", "smallest", "best")})
        if not self.tokens or sorted({*self.tokens} & {0, 1, 2}) != sorted(self.tokens):
            raise UserError(f"filter.tokens is {list(self.tokens)}: expected some of 0, 1 and 2, each once")
        if not self.score_quantile < 1:
            raise UserError(f"filter.score_quantile is {self.score_quantile:g}: it must lie in [0, 1)")
        if not 0 < self.sample <= 1:
            raise UserError(f"filter.sample is {self.sample:g}: it must lie in (0, 1]")
        for low, high in (("min_area", "max_area"), ("min_area_share", "max_area_share")):
            if 0 < getattr(self, high) < getattr(self, low):
                raise UserError(
                    f"filter.{low}={getattr(self, low):g} lies above filter.{high}={getattr(self, high):g}: "
                    f"no mask can pass both"
                )


@dataclass(frozen=True)
class RunConfig:
    """How the work is spread. Never changes a row, so it is not in the fingerprint.

    max_retries: how often an image's process may die, and a unit fail, before it is given up. image_timeout_s: silence
    of a worker for so long counts as a death; an image beyond 16 megapixels gets more in proportion. grace_s: how long
    running units may go on once the run is stopped. images_in_flight: how many images an actor works on at a time, by
    threads; default 3 with a GPU, which else would wait for decoding, and 1 without.
    """

    unit_size: int = 64
    actors: int | None = None
    gpus_per_actor: float | None = None
    cpus_per_actor: float | None = None
    max_retries: int = 2
    image_timeout_s: float = 1800.0
    grace_s: float = 20.0
    images_in_flight: int | None = None
    object_store_mb: int = 256

    def __post_init__(self) -> None:
        at_least("run", self, {"unit_size": 1, "max_retries": 0, "object_store_mb": 80, "grace_s": 0})
        at_least("run", self, {"image_timeout_s": 0.1})
        for name, least in {"actors": 1, "images_in_flight": 1, "gpus_per_actor": 0, "cpus_per_actor": 0}.items():
            if getattr(self, name) is not None:
                at_least("run", self, {name: least})


@dataclass(frozen=True)
class Config:
    """The whole tree."""

    model: ModelSection = field(default_factory=ModelSection)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def check_floor(self) -> None:
        """A filter below the floor would ask for candidates that were never kept."""
        pairs = (
            ("pred_iou_thresh", self.filter.pred_iou_thresh, "floor_pred_iou", self.generate.floor_pred_iou),
            (
                "stability_score_thresh",
                self.filter.stability_score_thresh,
                "floor_stability",
                self.generate.floor_stability,
            ),
        )
        for name, threshold, floor_name, floor in pairs:
            if threshold < floor:
                raise UserError(
                    f"filter.{name}={threshold:g} lies below the floor generate.{floor_name}={floor:g}: "
                    f"raise the threshold, or lower the floor in a new build"
                )


def at_least(section: str, cfg: Any, minima: dict[str, float]) -> None:
    """Refuse values below their minimum, naming the key."""
    for name, minimum in minima.items():
        value = getattr(cfg, name)
        if not value >= minimum:  # also catches NaN
            raise UserError(f"{section}.{name} is {value}: it must be at least {minimum:g}")


def one_of(section: str, cfg: Any, choices: dict[str, tuple[str, ...]]) -> None:
    """Refuse words that are not among the known ones, naming the key."""
    for name, known in choices.items():
        if getattr(cfg, name) not in known:
            raise UserError(f"{section}.{name} is {getattr(cfg, name)!r}: known values: {', '.join(known)}")


T = TypeVar("T")


def from_tree(cls: type[T], tree: Any, path: str = "") -> T:
    """A dataclass from nested dicts, every value checked against its annotation."""
    if not isinstance(tree, dict):
        raise UserError(f"{path or 'the config'} is {tree!r}: expected a mapping of keys")
    hints = typing.get_type_hints(cls)
    for key in tree:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(hints)}"
            raise UserError(f"unknown config key {path + str(key)!r}: {hint}")
    needed = [f.name for f in dataclasses.fields(typing.cast(Any, cls)) if f.default is f.default_factory is MISSING]
    if lacking := [name for name in needed if name not in tree]:
        raise UserError(f"config key {path + lacking[0]!r} is missing")
    return cls(**{key: convert(hints[key], value, path + key) for key, value in tree.items()})


def convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotation says: nested dataclass, tuple, optional or scalar."""
    if dataclasses.is_dataclass(hint):
        return from_tree(typing.cast(type, hint), value, path + ".")
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
        return convert(hint, value, path)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"config key {path!r} is {value!r}: expected a list")
        args = typing.get_args(hint)
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise UserError(f"config key {path!r} is {value!r}: expected {len(inner)} values")
        return tuple(convert(h, v, path) for h, v in zip(inner, value, strict=True))
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):  # YAML 1.1 reads 1e-1 as text
            return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"config key {path!r} is {value!r}: expected {hint.__name__}")
    return value


def to_tree(cfg: Any) -> dict[str, Any]:
    """The inverse of `from_tree`: plain dicts and lists, ready for YAML and JSON."""
    tree: dict[str, Any] = plain(dataclasses.asdict(cfg))
    return tree


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, key by key."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def names(kind: str) -> list[str]:
    """The configs that are found by name: configs/KIND/*.yaml."""
    return sorted(f.name.removesuffix(".yaml") for f in (CONFIGS / kind).iterdir() if f.name.endswith(".yaml"))


def read_yaml(kind: str, name: str) -> dict[str, Any]:
    """A YAML file by path, or configs/KIND/NAME.yaml by name."""
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"config file {name!r} does not exist")
        text = read_text(Path(name))
    else:
        known = names(kind)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known names: {', '.join(known)}"
            what = "model" if kind == "model" else f"{kind} config"
            raise UserError(f"unknown {what} {name!r}: {hint}")
        text = (CONFIGS / kind / f"{name}.yaml").read_text()
    try:
        tree = yaml.safe_load(text)
    except NO_YAML as e:
        raise UserError(f"config file {name!r} is not YAML: {' '.join(str(e).split())}") from e
    if not isinstance(tree, dict | None):
        raise UserError(f"config file {name!r} holds {type(tree).__name__}: expected a mapping of keys")
    return tree or {}


def read_text(path: Path) -> str:
    """A config file's text; bytes that are no text are the user's to mend."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"config file {str(path)!r} is not UTF-8 text: save it as UTF-8") from e


def sections(tree: dict[str, Any]) -> dict[str, Any]:
    """A config tree whose sections are mappings; an empty one (null) is left out. Foreign keys are refused later."""
    for part in dataclasses.fields(Config):
        section = tree.get(part.name)
        if section is not None and not isinstance(section, dict):
            raise UserError(f"config section {part.name!r} is {section!r}: expected a mapping of keys")
    return {name: section for name, section in tree.items() if section is not None}


def parse_set(assignments: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """`["filter.pred_iou_thresh=0.9"]` -> a tree; values are YAML scalars."""
    tree: dict[str, Any] = {}
    for text in assignments:
        key, sep, value = text.partition("=")
        parts = key.strip().split(".")
        if not sep or not all(parts):
            raise UserError(f"--set {text!r}: expected section.key=value, for instance filter.pred_iou_thresh=0.9")
        try:
            leaf = yaml.safe_load(value)
        except NO_YAML as e:
            raise UserError(f"--set {text!r}: {value!r} is no YAML value: quote it, or mend its brackets") from e
        for part in reversed(parts):
            leaf = {part: leaf}
        tree = merge(tree, leaf)
    return tree


def resolve(
    model: str | None = None,
    checkpoint: str | None = None,
    config: str | None = None,
    filter_name: str | None = None,
    assignments: tuple[str, ...] = (),
) -> Config:
    """The full config. Later wins: defaults, the model's recommendation, --config, --filter, --model, --set."""
    tree = sections(read_yaml("generate", config)) if config else {}
    over = sections(parse_set(assignments))
    section = merge(tree.get("model", {}), over.get("model", {}))
    name = model or section.get("name") or ModelSection.name
    out = merge(read_yaml("model", str(name)).get("recommended") or {}, tree)
    if filter_name:
        out = merge(out, {"filter": read_yaml("filter", filter_name)})
    out = merge(out, {"model": {"name": name} | ({"checkpoint": checkpoint} if checkpoint else {})})
    cfg = from_tree(Config, merge(out, over))
    cfg.check_floor()
    return cfg
