"""Time by step, on the real library."""

import time

import pytest
import torch

from benchmarks import probe
from benchmarks.gpu_subject import TINY, tiny_config
from benchmarks.pictures import picture
from benchmarks.shaped import shaped_model
from maskmill import MaskGenerator
from maskmill.sam.build import build_sam


def test_every_step_is_found_and_seen() -> None:
    cfg, image = tiny_config("vit_b"), picture(0, 90, 135)
    model = build_sam(cfg).eval()
    model.load_state_dict(shaped_model(cfg, image)[0].state_dict())
    generator = MaskGenerator(model, **TINY.settings("default"))
    missing: list[str] = []
    begun = time.perf_counter()
    with probe.watch(torch.device("cpu"), missing) as timeline:
        assert generator.generate(image)
    wall = time.perf_counter() - begun
    assert missing == [], "the library has changed: mend STEPS in benchmarks/probe.py"
    seconds = timeline.seconds()
    assert set(seconds) == {*probe.STEPS["cpu"], probe.OTHER}
    assert sum(seconds.values()) == pytest.approx(wall, rel=0.2)


def test_the_names_of_the_gpu_path_exist() -> None:
    pytest.importorskip("triton")
    for names in probe.STEPS["cuda"].values():
        for name in names:
            assert hasattr(*probe.resolve(name)), f"{name} is gone: mend STEPS in benchmarks/probe.py"


def test_put_back_and_missing_names_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(probe.STEPS["cpu"], "gone", ("maskmill.sam.sam:Sam.nothing", "maskmill.nowhere:f"))
    before = [getattr(*probe.resolve(name)) for name in probe.BOTH["preprocess"]]
    missing: list[str] = []
    with pytest.raises(ZeroDivisionError), probe.watch(torch.device("cpu"), missing):
        assert [getattr(*probe.resolve(name)) for name in probe.BOTH["preprocess"]] != before
        raise ZeroDivisionError
    assert [getattr(*probe.resolve(name)) for name in probe.BOTH["preprocess"]] == before
    assert missing == ["maskmill.sam.sam:Sam.nothing", "maskmill.nowhere:f"]


def test_a_step_has_its_own_time_only() -> None:
    timeline = probe.Timeline(torch.device("cpu"))

    def inner() -> None:
        time.sleep(0.3)

    def outer() -> None:
        time.sleep(0.02)
        probe.wrapped(inner, "inner", timeline)()

    def turns() -> object:
        for i in range(3):
            time.sleep(0.02)
            yield i

    probe.wrapped(outer, "outer", timeline)()
    for _ in probe.wrapped(turns, "turns", timeline)():
        time.sleep(0.01)
    timeline.mark()
    seconds = timeline.seconds()
    assert seconds["inner"] >= 0.3
    assert 0.02 <= seconds["outer"] < seconds["inner"]  # the inner sleep is not in it
    assert seconds["turns"] >= 0.06
    assert seconds["other"] >= 0.03
