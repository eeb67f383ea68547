"""Data-parallel training by Ray Train on CPU processes."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from maskmill.errors import UserError
from maskmill.pipeline.commands.train import read_config
from maskmill.pipeline.ray_train import fit_on_ray, words_of
from maskmill.training.fit import fit
from tests.pipeline.test_train import recipe
from tests.unit.training.sets import write_set


@pytest.mark.chaos  # a minute on busy cores
def test_two_processes_do_what_one_does(tmp_path: Path, cluster: None) -> None:
    data, cfg = write_set(tmp_path / "set", 3), recipe(tmp_path)
    words = ("optim.steps=2", "optim.milestones=[]", "optim.lr=1e-4", "model.drop_path=0", "model.decoder_dropout=0")
    config = read_config(str(cfg), (str(data),), None, words)
    fit_on_ray(config, str(tmp_path / "two"), 2)
    assert fit(config, str(tmp_path / "one"))
    norms = [
        [json.loads(line)["norm"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(norms[0]) == 2 and np.allclose(norms[0], norms[1], rtol=1e-3)  # of the gradient of all images
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    # AdamW's first steps are signs: a gradient of nearly nothing may fall to either side
    assert all(np.abs(one[k].numpy() - two[k].numpy()).max() <= 4.1e-4 for k in one)


def test_uneven_shares_are_refused(tmp_path: Path) -> None:
    config = read_config(str(recipe(tmp_path)), (str(tmp_path),), None, ())
    with pytest.raises(UserError, match="cannot be shared evenly by 3"):
        fit_on_ray(config, str(tmp_path / "out"), 3)


def test_what_a_process_says_is_found_in_its_traceback() -> None:
    error = RuntimeError("Traceback\n  File x\nmaskmill.errors.UserError: set/: image a.png: broken: twice\n")
    assert words_of(error, "UserError") == "set/: image a.png: broken: twice"
    assert words_of(error, "Diverged") == ""
