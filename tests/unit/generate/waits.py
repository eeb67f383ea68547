"""Counts where the host would wait for a device, without one: tensors that know that they would lie there."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor

WAITING = {
    "cpu", "item", "tolist", "numpy", "nonzero", "argwhere", "masked_select", "unique", "__bool__", "__int__",
    "__float__", "__index__",
}  # fmt: skip
waits: Counter[str] = Counter()


class OnDevice(Tensor):
    """As if on a GPU: what is computed from it is there too, until `cpu` brings it to the host."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.__name__, kwargs or {}
        if name in WAITING or (name == "to" and copies(args[1:], kwargs)):
            waits[name] += 1
            plain = [x.as_subclass(Tensor) if isinstance(x, OnDevice) else x for x in args]
            return func(*plain, **kwargs)
        if name in ("__getitem__", "__setitem__", "index_put_") and any(counts(i) for i in tuple_of(args[1])):
            waits[name] += 1
        return super().__torch_function__(func, types, args, kwargs)


def copies(args: Any, kwargs: Any) -> bool:
    """Whether a call of Tensor.to goes to another device and the host waits for it."""
    device = any(isinstance(x, str | torch.device) for x in (*args, *kwargs.values()))
    return device and not kwargs.get("non_blocking", False)


def tuple_of(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def counts(index: Any) -> bool:
    """A mask has to be counted first; an index from the host has to be copied."""
    return isinstance(index, Tensor) and (index.dtype == torch.bool or not isinstance(index, OnDevice))


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Stands in for maskmill.sam.common.to_device."""
    return tensor.as_subclass(OnDevice)
