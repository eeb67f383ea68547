import re
from pathlib import Path

import pytest
import torch

from maskmill.config import from_tree, read_yaml
from maskmill.training.config import TrainConfig
from maskmill.training.precision import fast_bfloat16, resolved

CPU = torch.device("cpu")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux alone says what its CPU can do")
def test_bfloat16_where_the_cpu_has_units_for_it() -> None:
    flags = set(re.findall(r"\S+", Path("/proc/cpuinfo").read_text()))
    assert fast_bfloat16(CPU) == bool(flags & {"amx_tile", "avx512_bf16"})


def test_auto_takes_what_is_fast_and_a_name_is_kept() -> None:
    assert resolved("auto", CPU) == ("bfloat16" if fast_bfloat16(CPU) else "float32")
    assert [resolved(p, CPU) for p in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    assert from_tree(TrainConfig, read_yaml("train", "finetune")).run.precision == "auto"
