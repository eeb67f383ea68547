"""What the parity tests share: one torch thread on both sides, and models that hold the same weights twice."""

from collections.abc import Iterator

import pytest
import torch

from tests.parity.pair import Pair, nano_pair


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums must run in the same order on both sides, and in every run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def nano() -> Pair:
    """The shipped nano weights in the official classes and in ours."""
    return nano_pair()
