"""How this package compiles its loops: numba, ahead of the first call, cached on disk where a folder can be written.

numba is imported only with a module that holds such loops; nothing else needs it. `nogil` lets image threads go on,
there are no parallel regions (so a fork is safe), and fastmath stays off: results are those of IEEE arithmetic.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(signature: Any) -> Callable[[F], F]:
    """A function of this signature in machine code, at import; from the cache if it was compiled before."""

    def decorate(function: F) -> F:
        try:
            made = numba.njit(signature, cache=True, nogil=True, error_model="numpy")(function)
        except (RuntimeError, OSError):  # no folder to write a cache in, or a full one: compile for this process
            made = numba.njit(signature, nogil=True, error_model="numpy")(function)
        return made  # type: ignore[return-value]

    return decorate


def part(function: F) -> F:
    """A piece of a compiled function of the same file. Not of another file: the cache would not see it change."""
    return numba.njit(forceinline=True, error_model="numpy")(function)  # type: ignore[return-value]
