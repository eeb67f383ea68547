"""How every test runs: one torch thread, and memory that is kept."""

import ctypes
import sys
from collections.abc import Iterator

import pytest
import torch


def keep_freed_memory() -> None:
    """glibc gives a freed large tensor back to the kernel, which must zero the pages of the next: half of the CPU time.

    M_MMAP_MAX = 0 and a high M_TRIM_THRESHOLD keep the pages. No result changes.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)
        libc.mallopt(-1, 2**31 - 1)


keep_freed_memory()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Another number of threads adds up in another order (DESIGN, promise 4), and is slow on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
