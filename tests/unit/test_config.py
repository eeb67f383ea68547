"""The YAML tree: what is refused, and who wins."""

from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskmill.config import Config, FilterConfig, from_tree, merge, names, parse_set, read_yaml, resolve, to_tree
from maskmill.errors import UserError
from tests.parity.official import SamAutomaticMaskGenerator


def refused(*words: str, config: Path | None = None, text: str | bytes | None = None, **args: object) -> str:
    """One line with these words."""
    if config is not None and text is not None:
        config.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as e:
        resolve(config=None if config is None else str(config), **args)  # type: ignore[arg-type]
    assert "\n" not in str(e.value)
    for word in words:
        assert word in str(e.value), str(e.value)
    return str(e.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "my.yaml"


# ---- defaults and names


def test_defaults_are_the_official_generators() -> None:
    """Of a model that recommends nothing."""
    import inspect

    cfg = resolve(model="vit_b")
    ours = {**asdict(cfg.generate), **asdict(cfg.filter)}
    official = inspect.signature(SamAutomaticMaskGenerator.__init__).parameters
    for name in set(ours) & set(official):
        assert ours[name] == official[name].default, name
    assert set(official) - set(ours) == {"self", "model", "output_mode"}
    assert (cfg.generate.floor_pred_iou, cfg.generate.floor_stability) == (0.80, 0.90)


def test_every_shipped_config_resolves() -> None:
    assert set(names("model")) == {"nano", "vit_b", "vit_l", "vit_h"}
    for config in names("generate"):
        for filter_name in (None, *names("filter")):
            assert isinstance(resolve(model="vit_h", config=config, filter_name=filter_name), Config)
    for model in names("model"):
        assert resolve(model=model).model.name == model


def test_sa1b_is_the_papers() -> None:
    """Section 3.4 of the design: 32 x 32, two layers, factor 2, 0.88, 0.95, 0.7, 100 px, 95%."""
    cfg = resolve(model="vit_h", config="sa1b")
    assert (cfg.generate.points_per_side, cfg.generate.crop_n_layers) == (32, 2)
    assert cfg.generate.crop_n_points_downscale_factor == 2 and cfg.generate.crop_overlap_ratio == 512 / 1500
    want = FilterConfig(
        0.88, 0.95, max_area_share=0.95, box_nms_thresh=0.7, crop_nms_thresh=0.7, min_mask_region_area=100
    )
    assert cfg.filter == want == resolve(model="vit_h", filter_name="sa1b").filter


# ---- who wins


def test_later_wins(tmp_path: Path) -> None:
    """Defaults < the model's recommendation < --config < --filter < --set, key by key."""
    recommended = read_yaml("model", "nano")["recommended"]["filter"]["pred_iou_thresh"]
    assert FilterConfig().pred_iou_thresh != recommended == resolve(model="nano").filter.pred_iou_thresh
    (tmp_path / "c.yaml").write_text("filter: {pred_iou_thresh: 0.71, box_nms_thresh: 0.5, min_mask_region_area: 9}")
    (tmp_path / "f.yaml").write_text("pred_iou_thresh: 0.72\nbox_nms_thresh: 0.6")
    config, filter_name = str(tmp_path / "c.yaml"), str(tmp_path / "f.yaml")
    assert resolve(config=config).filter.pred_iou_thresh == 0.71
    assert resolve(config=config, filter_name=filter_name).filter.pred_iou_thresh == 0.72
    last = resolve(config=config, filter_name=filter_name, assignments=("filter.pred_iou_thresh=0.73",))
    assert (last.filter.pred_iou_thresh, last.filter.box_nms_thresh, last.filter.min_mask_region_area) == (0.73, 0.6, 9)
    assert last.generate.floor_pred_iou == read_yaml("model", "nano")["recommended"]["generate"]["floor_pred_iou"]


def test_the_last_set_wins() -> None:
    assert resolve(assignments=("run.unit_size=3", "run.unit_size=4")).run.unit_size == 4


def test_which_model(file: Path) -> None:
    """--model, then --set, then --config, then nano; the recommendation follows the model."""
    file.write_text("model: {name: vit_l, checkpoint: a.pth}")
    assert resolve(config=str(file)).model.name == "vit_l"
    assert resolve(config=str(file)).model.checkpoint == "a.pth"
    assert resolve(config=str(file), checkpoint="b.pth").model.checkpoint == "b.pth"
    by_set = resolve(config=str(file), assignments=("model.name=vit_b",))
    assert by_set.model.name == "vit_b" and by_set.filter == FilterConfig()
    assert resolve(model="vit_h", config=str(file)).model.name == "vit_h"
    assert resolve(model="vit_h").filter == FilterConfig() != resolve().filter


# ---- refusals


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("generate: {crop_n_layer: 1}", ("generate.crop_n_layer'", "did you mean 'crop_n_layers'")),
        ("generat: {crop_n_layers: 1}", ("'generat'", "did you mean 'generate'")),
        ("zzz: 1", ("'zzz'", "known keys: model, generate, filter, run")),
        ("generate: {points_per_side: many}", ("generate.points_per_side", "'many'", "expected int")),
        ("generate: {points_per_side: 7.5}", ("7.5", "expected int")),
        ("generate: {points_per_side: true}", ("True", "expected int")),
        ("filter: {pred_iou_thresh: high}", ("filter.pred_iou_thresh", "expected float")),
        ("filter: {pred_iou_thresh: null}", ("None", "expected float")),
        ("filter: {pred_iou_thresh: .nan}", ("pred_iou_thresh", "nan")),
        ("filter: 3", ("filter", "expected a mapping")),
        ("generate: {point_grids: 3, points_per_side: null}", ("point_grids", "expected a list")),
        ("generate: {point_grids: [[[0.5]]], points_per_side: null}", ("expected 2 values",)),
        ("generate: {point_grids: [[[0.5, 0.5]]]}", ("exactly one of points_per_side and point_grids",)),
        ("generate: {points_per_side: null}", ("exactly one of points_per_side and point_grids",)),
        ("generate: {crop_overlap_ratio: 1.0}", ("crop_overlap_ratio", "[0, 1)")),
        ("generate: {precision: float8}", ("generate.precision", "'float8'", "float32, bfloat16, float16")),
        ("generate: {points_per_batch: 0}", ("generate.points_per_batch is 0", "at least 1")),
        ("filter: {box_nms_thresh: -0.1}", ("filter.box_nms_thresh is -0.1", "at least 0")),
        ("run: {actors: 0}", ("run.actors is 0", "at least 1")),
        ("run: {gpus_per_actor: -1}", ("run.gpus_per_actor is -1", "at least 0")),
        ("run: {cpus_per_actor: .nan}", ("run.cpus_per_actor is nan", "at least 0")),
        ("generate: {stability_score_offset: -0.5}", ("stability_score_offset is -0.5", "at least 0")),
        ("generate: {stability_score_offset: .nan}", ("stability_score_offset is nan", "at least 0")),
        ("generate: {max_image_mpx: 0}", ("max_image_mpx is 0", "above 0")),
        ("generate: {max_image_mpx: .nan}", ("max_image_mpx is nan", "above 0")),
        ("generate: {crop_n_layers: 7}", ("crop_n_layers is 7", "at most 6")),
        ("generate: {point_grids: [[[0.5, 1.5]]], points_per_side: null}", ("[0.5, 1.5]", "in [0, 1]")),
        ("generate: {point_grids: [[[.nan, 0]]], points_per_side: null}", ("[nan, 0.0]", "in [0, 1]")),
        (f"filter: {{pred_iou_thresh: {'9' * 400}}}", ("filter.pred_iou_thresh", "expected float")),
        ("run: {unit_size: 2024-13-45}", ("is not YAML", "month")),
        ("run: {unit_size: 0x_}", ("is not YAML",)),
        ("- 1", ("holds list", "expected a mapping")),
        ("a: [", ("is not YAML",)),
        ("model: {name: vitb}", ("unknown model 'vitb'", "did you mean 'vit_b'")),
    ],
)
def test_refused_in_one_line(text: str, words: tuple[str, ...], file: Path) -> None:
    refused(*words, config=file, text=text)


def test_unknown_names_and_files() -> None:
    refused("unknown filter config 'sa1bb'", "did you mean 'sa1b'", filter_name="sa1bb")
    refused("known names: default, labels, sa1b", filter_name="../model/nano")
    refused("'/none.yaml' does not exist", config=Path("/none.yaml"))


def test_whole_numbers_are_floats_too(file: Path) -> None:
    file.write_text("filter: {pred_iou_thresh: 1}")
    value = resolve(config=str(file)).filter.pred_iou_thresh
    assert value == 1.0 and isinstance(value, float)


@pytest.mark.parametrize("text", ["filter.x", "=3", "filter.=0.9", ""])
def test_set_needs_section_key_value(text: str) -> None:
    refused(repr(text), "section.key=value", assignments=(text,))


@given(st.dictionaries(st.sampled_from("abc"), st.integers() | st.lists(st.integers()), min_size=1))
def test_parse_set_and_merge(values: dict[str, object]) -> None:
    """Values are YAML scalars or lists; assignments of one section come together."""
    tree = parse_set([f"filter.{k}={v}" for k, v in values.items()])
    assert tree == {"filter": values}
    assert merge({"filter": {"z": 1}, "run": 2}, tree) == {"filter": {"z": 1, **values}, "run": 2}


def test_set_values_may_hold_equal_signs() -> None:
    assert parse_set(["model.checkpoint=a=b.pth"]) == {"model": {"checkpoint": "a=b.pth"}}


# ---- floors


@pytest.mark.parametrize("key", ["pred_iou_thresh", "stability_score_thresh"])
def test_filter_below_the_floor(key: str) -> None:
    """Also 0, which means off: it is legal only where the floor is 0."""
    floor = {"pred_iou_thresh": "floor_pred_iou", "stability_score_thresh": "floor_stability"}[key]
    for value in ("0.4", "0"):
        change = (f"filter.{key}={value}",)
        refused(f"filter.{key}", f"generate.{floor}", "lower the floor", model="vit_b", assignments=change)
    cfg = resolve(model="vit_b", assignments=(f"filter.{key}=0", f"generate.{floor}=0"))
    assert getattr(cfg.filter, key) == 0.0
    at = resolve(model="vit_b", assignments=(f"filter.{key}={0.8 if key[0] == 'p' else 0.9}",))
    assert at.filter != FilterConfig()


# ---- round trip


def test_tree_round_trip() -> None:
    grids = "generate.point_grids=[[[0.5, 0.25]], [[0.1, 0.2], [0.3, 0.4]]]"
    cfg = resolve(assignments=(grids, "generate.points_per_side=null", "generate.crop_n_layers=1", "run.actors=2"))
    assert cfg.generate.point_grids == (((0.5, 0.25),), ((0.1, 0.2), (0.3, 0.4)))
    assert from_tree(Config, to_tree(cfg)) == cfg


# ---- known bugs


def test_set_with_broken_yaml() -> None:
    refused("filter.box_nms_thresh=[", assignments=("filter.box_nms_thresh=[",))


@pytest.mark.parametrize("value", ["2024-13-45", "0x_"])
def test_set_with_what_looks_like_a_date_or_a_number(value: str) -> None:
    refused(f"run.unit_size={value}", "no YAML value", assignments=(f"run.unit_size={value}",))


def test_set_with_an_exponent() -> None:
    assert resolve(assignments=("filter.box_nms_thresh=1e-1",)).filter.box_nms_thresh == 0.1


def test_model_as_a_string(file: Path) -> None:
    refused("model", "expected a mapping", config=file, text="model: vit_b")


def test_config_that_is_not_text(file: Path) -> None:
    refused(str(file), config=file, text=b"\xff\xfe\x00")


def test_negative_tolerance(file: Path) -> None:
    refused("crop_edge_tolerance", config=file, text="generate: {crop_edge_tolerance: -1}")
