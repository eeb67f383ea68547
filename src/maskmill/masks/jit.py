"""How this package compiles its loops: numba, ahead of the first call, cached on disk where a folder can be written.

numba is imported only with a module that holds such loops; nothing else needs it. `nogil` lets image threads go on,
there are no parallel regions (so a fork is safe), and fastmath stays off: results are those of IEEE arithmetic.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numba import float32
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])


def compiled(signature: Any) -> Callable[[F], F]:
    """A function of this signature in machine code, at import; from the cache if it was compiled before."""

    def decorate(function: F) -> F:
        made: Any
        try:
            made = numba.njit(signature, cache=True, nogil=True, error_model="numpy")(function)
        except (RuntimeError, OSError):  # no folder to write a cache in, or a full one: compile for this process
            made = numba.njit(signature, nogil=True, error_model="numpy")(function)
        return made  # type: ignore[no-any-return]

    return decorate


def part(function: F) -> F:
    """A piece of a compiled function of the same file. The cache would not see a piece change in another file: only
    the two below, which are finished, are used from here."""
    return numba.njit(forceinline=True, error_model="numpy")(function)  # type: ignore[return-value]


@intrinsic  # type: ignore[untyped-decorator]
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c in float32, rounded once."""
    return float32(float32, float32, float32), lambda context, builder, signature, args: builder.fma(*args)


@part
def with_room(array: np.ndarray, used: int, more: int) -> np.ndarray:
    """The array, or a copy of its first `used` with at least twice the room, if not so many `more` fit in behind."""
    room = len(array)
    if used + more <= room:
        return array
    while used + more > room:
        room *= 2
    grown = np.empty(room, array.dtype)
    for i in range(used):
        grown[i] = array[i]
    return grown
