import pytest
import torch

from maskmill.config import from_tree, merge, read_yaml
from maskmill.errors import UserError
from maskmill.sam.build import build_sam, load_config
from maskmill.training.config import OptimConfig, TrainConfig, for_model
from maskmill.training.regularise import Regulariser
from maskmill.training.schedule import layer_of, parameter_groups, rate


def test_the_papers_schedule_by_hand() -> None:
    cfg = OptimConfig()
    assert rate(0, cfg) == pytest.approx(8e-4 / 250) and rate(124, cfg) == pytest.approx(4e-4)
    assert rate(249, cfg) == rate(59_999, cfg) == pytest.approx(8e-4)
    assert rate(60_000, cfg) == rate(86_665, cfg) == pytest.approx(8e-5)
    assert rate(86_666, cfg) == rate(89_999, cfg) == pytest.approx(8e-6)
    assert rate(0, OptimConfig(warmup=0)) == 8e-4


def test_layer_decay_and_weight_decay() -> None:
    model = build_sam(load_config("nano"))  # 6 blocks
    assert layer_of("image_encoder.pos_embed", 6) == layer_of("image_encoder.patch_embed.proj.weight", 6) == 0
    assert layer_of("image_encoder.blocks.5.attn.qkv.weight", 6) == 6
    assert layer_of("image_encoder.neck.0.weight", 6) == layer_of("mask_decoder.iou_token.weight", 6) == 7
    groups = parameter_groups(model, 6, OptimConfig(lr=1.0, layer_decay=0.5))
    found = {id(p): g for g in groups for p in g["params"]}
    names = dict(model.named_parameters())
    assert len(found) == len(names) == sum(len(g["params"]) for g in groups)
    assert found[id(names["image_encoder.blocks.0.mlp.lin1.weight"])]["scale"] == 0.5**6
    assert found[id(names["image_encoder.pos_embed"])]["scale"] == 0.5**7
    assert found[id(names["mask_decoder.mask_tokens.weight"])]["scale"] == 1.0
    bare = {n for n, p in names.items() if found[id(p)]["weight_decay"] == 0}
    assert {"image_encoder.pos_embed", "image_encoder.blocks.2.attn.rel_pos_h", "mask_decoder.iou_token.weight"} <= bare
    assert "prompt_encoder.point_embeddings.0.weight" in bare and "prompt_encoder.no_mask_embed.weight" in bare
    assert {n for n in names if names[n].ndim == 1} <= bare
    assert "image_encoder.blocks.0.mlp.lin1.weight" not in bare


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    model = build_sam(load_config("nano")).train()
    keeper = Regulariser(model, 0.5, 0.0)
    last = model.image_encoder.blocks[-1].mlp
    with torch.no_grad():
        for p in last.parameters():
            p.zero_()
        last.lin2.bias.fill_(1.0)  # type: ignore[union-attr]
    keeper.begin(4000)
    out = last(torch.zeros(4000, 1, 1, 192))
    each = out.flatten(1)
    assert {*each.unique().tolist()} == {0.0, 2.0} and (each == each[:, :1]).all()
    assert torch.equal(last(torch.zeros(4000, 1, 1, 192)), out)  # another part of the same images
    keeper.begin(4000)
    assert not torch.equal(last(torch.zeros(4000, 1, 1, 192)), out)
    assert abs(float(each.detach().mean()) - 1) < 0.06
    model.eval()
    assert torch.equal(last(torch.zeros(2, 1, 1, 192)), torch.ones(2, 1, 1, 192))


def test_windows_of_an_image_are_dropped_together() -> None:
    torch.manual_seed(0)
    model = build_sam(load_config("nano")).train()
    Regulariser(model, 0.9, 0.0).begin(5)
    block = model.image_encoder.blocks[4]  # windowed
    out = block.attn(torch.randn(5, 24, 24, 192), 8).detach()  # type: ignore[operator]
    gone = out.abs().sum(-1) == 0
    assert (gone == gone[:, :1, :1]).all() and 0 < gone[:, 0, 0].sum() < 5


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"model": {"train": "decode"}}, "model.train"),
        ({"model": {"drop_path": 1.0}}, "model.drop_path"),
        ({"data": {"jitter": [0, 2]}}, "data.jitter"),
        ({"data": {"tile": True}}, "data.tile"),
        ({"data": {"tile": True, "jitter": [0.5, 2]}}, "data.tile"),
        ({"optim": {"milestones": [5, 1]}}, "optim.milestones"),
        ({"loss": {"stride": 3}}, "loss.stride"),
        ({"loss": {"relaxed": 1.1}}, "loss.relaxed"),
        ({"run": {"precision": "half"}}, "run.precision"),
        ({"cache": "float32"}, "model.train"),
        ({"cache": "float32", "model": {"train": "decoder"}, "data": {"symmetry": "mirror"}}, "data.symmetry"),
        ({"cache": "float32", "model": {"train": "decoder"}, "data": {"colour_jitter": True}}, "data.colour_jitter"),
        ({"optim": {"rl": 1}}, "optim.rl"),
    ],
)
def test_bad_settings_are_named(tree: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_tree(TrainConfig, tree)


@pytest.mark.parametrize(
    "name",
    ["sam", "finetune", "decoder", "small", "small_fine", "small_wide", "small_last", "small_finest", "small_short"],
)
def test_every_recipe_is_a_config_whose_rate_falls_before_its_end(name: str) -> None:
    cfg = from_tree(TrainConfig, for_model(read_yaml("train", name)))
    assert cfg.loss.logit_scale == (1 if name == "sam" else 0.25)  # nano's, but for random weights
    assert cfg.optim.warmup < cfg.optim.steps and all(m < cfg.optim.steps for m in cfg.optim.milestones)


def test_the_scale_of_logits_is_the_models_own() -> None:
    tree = read_yaml("train", "finetune")
    other = for_model(merge(tree, {"model": {"name": "vit_b", "checkpoint": "sam_vit_b.pth"}}))
    assert from_tree(TrainConfig, other).loss.logit_scale == 1 and other["loss"]["stride"] == 2
    assert for_model(tree, "vit_b")["loss"]["logit_scale"] == 1  # of the data engine, whose own section names the model
    assert for_model(merge(tree, {"loss": {"logit_scale": 0.5}}))["loss"]["logit_scale"] == 0.5
    with pytest.raises(UserError, match="unknown model 'nono'"):
        for_model({"model": {"name": "nono"}})
