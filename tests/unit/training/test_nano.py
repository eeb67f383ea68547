import json
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from maskmill.errors import UserError
from maskmill.sam.build import build_sam, load_config
from maskmill.training import nano, nano_loss
from maskmill.training.nano_model import decode, embed_prompts, initialise, scale_logits, whiten_patches
from maskmill.training.nano_trainer import NanoConfig, Phase, Trainer
from maskmill.training.photos import Photo, read_tar
from maskmill.training.pool import Packed, click, pack_photos, random_view
from maskmill.training.trainer import Diverged
from tests.unit.sam import plain


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_sam(load_config("nano"))
    initialise(model, torch.randn(4, 3, 128, 128), torch.Generator().manual_seed(0))
    for name, p in model.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(p, std=0.02)  # zero at the start: would hide a mistake
    return model


@torch.no_grad()
def test_the_training_passes_equal_the_model(model: torch.nn.Module) -> None:
    side = model.img_size
    low = side // 4
    embedding = model.image_encoder(torch.randn(1, 3, side, side))
    points, labels = torch.rand(3, 1, 2) * side, torch.tensor([[1], [0], [1]])
    coords = torch.cat([points, torch.zeros(3, 1, 2)], 1)
    codes = torch.cat([labels, -torch.ones(3, 1, dtype=torch.long)], 1)
    tokens = embed_prompts(model, coords, codes, side)
    for masks in (None, torch.randn(3, 1, low, low)):
        sparse, dense = model.prompt_encoder((points, labels), None, masks)
        assert torch.allclose(tokens, sparse, atol=1e-5)
        want = plain.decode(model.mask_decoder, embedding, model.prompt_encoder.get_dense_pe(), sparse, dense)
        got = decode(model, embedding, tokens[None], masks)
        assert torch.allclose(got[0][0], want[0], atol=1e-4) and torch.allclose(got[1][0], want[1], atol=1e-4)

    boxes = torch.tensor([[10.0, 20.0, 200.0, 300.0]])
    tokens = embed_prompts(model, boxes.view(1, 2, 2), torch.tensor([[2, 3]]), side)
    assert torch.allclose(tokens, model.prompt_encoder(None, boxes, None)[0], atol=1e-5)


def test_whitened_patches_have_unit_variance(model: torch.nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 256, 256)
    fresh = build_sam(load_config("nano"))
    initialise(fresh, x, torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = fresh.image_encoder.patch_embed(x).flatten(0, 2)
    assert tokens.mean(0).abs().max() < 0.02 and (tokens.std(0) - 1).abs().max() < 0.1


def test_an_encoder_wider_than_its_patches(model: torch.nn.Module) -> None:
    """ViT-L and ViT-H have more channels than 16 x 16 pixels have colours: the others stay random."""
    torch.manual_seed(0)
    fresh = build_sam(load_config("nano"))
    proj = fresh.image_encoder.patch_embed.proj = torch.nn.Conv2d(3, 1280, kernel_size=16, stride=16)
    before = proj.weight.detach().clone()
    whiten_patches(fresh, torch.randn(8, 3, 256, 256))
    assert torch.equal(proj.weight[768:], before[768:]) and not torch.equal(proj.weight[767], before[767])


def test_a_right_mask_costs_nothing_and_a_wrong_one_much() -> None:
    target = torch.zeros(1, 1, 16, 16)
    target[..., 4:10, 4:10] = 1
    right = (target * 40 - 20)[:, :, None]
    loss, iou = nano_loss.mask_loss(torch.cat([right, -right], 2), target, 0.5)
    assert loss[0, 0, 0] < 1e-2 and iou[0, 0, 0] == 1
    assert loss[0, 0, 1] > 5 and iou[0, 0, 1] == 0


def test_the_second_click_lies_in_the_error() -> None:
    target = torch.zeros(1, 2, 16, 16, dtype=torch.bool)
    target[..., 4:10, 4:10] = True
    answer = torch.zeros_like(target)
    answer[0, 1, 4:10, 4:14] = True  # the second answer spills over to the right
    xy, label = nano_loss.error_click(answer, target, torch.Generator().manual_seed(0))
    assert label.tolist() == [[1, 0]]
    assert 16 <= xy[0, 0, 0] + 0.5 <= 40 and 40 <= xy[0, 1, 0] + 0.5 <= 56


def test_a_right_answer_is_clicked_anywhere() -> None:
    target = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    target[..., :8] = True
    chance = torch.Generator().manual_seed(0)
    made = [nano_loss.error_click(target, target, chance) for _ in range(60)]
    assert {int(label) for _, label in made} == {0, 1}
    assert all(int(label) == (xy[0, 0, 0] < 31.5) for xy, label in made)


def test_every_process_makes_other_views() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, 8:40, 8:40] = 1
    source = [(1.0, [Packed(image, np.packbits(mask, axis=-1))])]
    views = nano.Views(source, Phase(1.0, 64, 1), 1, 0)
    # spawned: a fork of this process, where other tests have started OpenCV's threads, would wait for them for ever
    loader = DataLoader(views, batch_size=None, num_workers=2, multiprocessing_context="spawn", timeout=120)
    stream = iter(loader)
    first, second, third = (next(stream).points.tolist() for _ in range(3))
    assert first != second and third != first


def test_a_view_keeps_clicks_and_boxes_on_the_masks() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 60, 90), bool)
    masks[0, 10:40, 20:60], masks[1, 20:30, 30:40] = True, True
    source = Packed(rng.integers(0, 255, (60, 90, 3), dtype=np.uint8), np.packbits(masks, axis=-1))
    seen = 0
    for _ in range(30):
        view = random_view(rng, source, 64, 3, 0.65)
        if view is None:
            continue
        seen += 1
        assert view.image.shape == (3, 64, 64) and view.masks.shape == (3, 16, 16)
        assert view.masks.min() >= 0 and view.masks.max() <= 1
        for mask, (x, y), (x0, y0, x1, y1) in zip(view.masks, view.points, view.boxes, strict=True):
            assert mask[int((y + 0.5) // 4), int((x + 0.5) // 4)] > 0.5
            assert x0 <= x + 0.5 <= x1 and y0 <= y + 0.5 <= y1
    assert seen > 20


def test_regions_are_those_of_the_picture_not_of_its_name(tmp_path: Path) -> None:
    """Two tars may have a picture of the same name, and names may have folders in them."""
    rng = np.random.default_rng(0)
    photos = []
    for _ in range(2):
        image = np.repeat(np.repeat(rng.integers(0, 255, (8, 8, 3), np.uint8), 16, 0), 16, 1)
        photos.append(Photo("train/0001", image, np.zeros((0, 128, 128), bool), np.zeros(0, bool)))
    alone = [pack_photos(chosen, tmp_path / "regions")[1] for chosen in (photos, photos[1:])]
    assert len(list((tmp_path / "regions").iterdir())) == 2
    assert np.array_equal(alone[0][1].bits, alone[1][0].bits) and not np.array_equal(alone[0][0].bits, alone[0][1].bits)


def test_the_share_of_parts() -> None:
    """A whole picture of 60 x 90 has 44 rows at a side of 64; most parts of it have more or fewer."""
    source = Packed(np.zeros((60, 90, 3), np.uint8), np.packbits(np.tri(60, 90, 10, bool)[None], axis=-1))

    def whole(crops: float) -> int:
        rng = np.random.default_rng(0)
        views = [random_view(rng, source, 64, 1, crops) for _ in range(200)]
        return sum(v is not None and v.image.any((0, 2)).sum() == 44 for v in views)

    assert whole(0.0) == 200 and 120 < whole(0.3) < 180 and whole(0.9) < 60
    with pytest.raises(UserError, match=r"phases\.crops is 1\.5"):
        Phase(1.0, 64, 2, 1.5)


def test_a_click_on_one_cell_finds_it() -> None:
    mask = np.zeros((16, 16), np.float32)
    mask[5, 11] = 1
    x, y = click(np.random.default_rng(0), mask)
    assert 44 <= x + 0.5 <= 48 and 20 <= y + 0.5 <= 24


def train_apart(cfg: NanoConfig, out: Path) -> None:
    """In a fresh process, as people train: it forks, and this one may hold the threads of a Ray cluster."""
    process = get_context("spawn").Process(target=nano.train, args=(cfg, out, []))
    process.start()
    process.join(timeout=240)
    assert process.exitcode == 0, "the training hangs or failed"


def test_training_resumes_and_exports_official_names(tmp_path: Path) -> None:
    cfg = NanoConfig(
        minutes=0.03,
        phases=(Phase(1.0, 128, 2),),
        prompts=2,
        chunks=1,
        crowd_chunks=1,
        scene_size=64,
        warmup=2,
        more=1.0,
    )
    train_apart(cfg, tmp_path)
    first = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert first["step"] >= 1
    train_apart(NanoConfig(**{**vars(cfg), "minutes": first["elapsed"] / 60 + 0.05}), tmp_path)
    second = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert second["step"] > first["step"] and second["elapsed"] > first["elapsed"]
    weights = load_file(tmp_path / "nano.safetensors")
    model = build_sam(load_config("nano"))
    model.load_state_dict(weights, strict=True)
    assert {v.dtype for v in weights.values()} == {torch.float16}
    assert not list(tmp_path.glob("*.partial"))


def small_trainer(**changes: float) -> Trainer:
    torch.set_num_threads(1)
    trainer = Trainer(NanoConfig(warmup=1, more=0.0, **changes))  # type: ignore[arg-type]
    trainer.prepare(torch.randn(2, 3, 64, 64))
    return trainer


def batch(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One image of 64 x 64 with one mask, its click and its box."""
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    image = scale * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return image, mask, torch.tensor([[[31.5, 31.5]]]), torch.tensor([[[16.0, 16, 48, 48]]])


def test_a_gradient_that_is_no_number_is_said_and_changes_nothing() -> None:
    trainer = small_trainer()
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with pytest.raises(Diverged, match="the gradient is nan at step 1: lower lr"):
        trainer.train_step(batch(float("nan")))
    assert trainer.step == 0 and all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    assert np.isfinite(trainer.train_step(batch())["loss"])


def test_a_pytorch_without_muon_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match="muon=true needs PyTorch 2"):
        Trainer(NanoConfig())
    assert Trainer(NanoConfig(muon=False)).step == 0


def test_no_process_for_views_is_refused() -> None:
    with pytest.raises(UserError, match="workers is 0: it must be at least 1"):
        NanoConfig(workers=0)


def test_it_goes_on_with_its_own_recipe_only(tmp_path: Path) -> None:
    trainer = small_trainer()
    trainer.train_step(batch())
    trainer.save(tmp_path)
    longer = small_trainer(minutes=500.0)
    longer.load(tmp_path / "checkpoint.pt")
    assert longer.step == 1 and all(torch.equal(v, trainer.average[k]) for k, v in longer.average.items())
    with pytest.raises(UserError, match=r"was begun with lr=0\.001, not 0\.01"):
        small_trainer(lr=0.01).load(tmp_path / "checkpoint.pt")


@torch.no_grad()
def test_scaled_logits_leave_masks_scores_and_mask_prompts_alone(model: torch.nn.Module) -> None:
    sharp = build_sam(load_config("nano"))
    sharp.load_state_dict(scale_logits(model.state_dict(), 4.0))
    embedding = torch.randn(1, 128, 28, 28)
    tokens = embed_prompts(model, torch.rand(2, 2, 2) * 448, torch.tensor([[1, -1], [0, -1]]), 448)[None]
    logits, iou = decode(model, embedding, tokens, None)
    scaled, same = decode(sharp, embedding, tokens, None)
    assert torch.allclose(scaled, 4 * logits, atol=1e-4) and torch.allclose(same, iou)
    again = decode(model, embedding, tokens, logits[0, :, :1])
    fed = decode(sharp, embedding, tokens, scaled[0, :, :1])
    assert torch.allclose(fed[0], 4 * again[0], atol=1e-3) and torch.allclose(fed[1], again[1], atol=1e-4)


def test_a_log_line_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(NanoConfig())
    nano.log(
        tmp_path,
        trainer,
        Phase(1.0, 256, 8),
        [{"best": 0.5, "chosen": 0.4}, {"best": 0.7, "chosen": 0.4, "last": 0.2}],
        False,
    )
    assert capsys.readouterr().out == "step 0  IoU 0.600 best, 0.400 chosen  90 min left\n"
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["best"] == 0.6 and line["last"] == 0.2 and line["size"] == 256


def test_a_file_that_is_no_tar_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a file"):
        list(read_tar(tmp_path / "none.tar"))
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match="cannot be read as a tar"):
        list(read_tar(tmp_path / "bad.tar"))
