"""Several images in work at a time inside one worker process, their results in order."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`work` of each item, in the order of `items`; at most `threads` of them are in work or wait for their turn."""
    if threads == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) == threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Budget:
    """An amount that threads share: what one holds the others wait for. One that wants more than all gets all."""

    def __init__(self, total: float) -> None:
        self.total = self.left = total
        self.changed = threading.Condition()

    @contextmanager
    def hold(self, amount: float) -> Iterator[None]:
        """Wait until `amount` is there."""
        amount = min(amount, self.total)
        with self.changed:
            self.changed.wait_for(lambda: self.left >= amount)
            self.left -= amount
        try:
            yield
        finally:
            with self.changed:
                self.left += amount
                assert self.left <= self.total, "nobody gives back more than was taken"
                self.changed.notify_all()
