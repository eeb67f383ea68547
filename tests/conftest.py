"""How every test runs: one torch thread, and memory that is kept."""

from collections.abc import Iterator

import pytest
import torch

from maskmill.pipeline.memory import keep_freed_memory

keep_freed_memory()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Another number of threads adds up in another order (DESIGN, promise 4), and is slow on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
