"""Compiled loops: where nothing can be cached, they are compiled for the process."""

import subprocess
import sys

from numba import int64

from maskmill.masks.jit import compiled


def test_without_a_place_for_the_cache() -> None:
    """numba caches beside the source file; a function without one has no such place."""
    space: dict[str, object] = {}
    exec("def twice(x):\n    return 2 * x\n", space)
    twice = compiled(int64(int64))(space["twice"])  # type: ignore[type-var]
    assert twice(21) == 42 and not twice.stats.cache_path  # type: ignore[attr-defined, operator]


def test_numba_waits_until_it_is_needed() -> None:
    """Importing maskmill and filtering without small regions need no numba, which costs half a second."""
    code = "import sys, maskmill, maskmill.filters.apply, maskmill.generate.candidates; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
