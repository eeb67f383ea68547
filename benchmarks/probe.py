"""Time by step: functions of the library are wrapped while a run is watched, and put back afterwards.

A step's time is its own, without that of the steps it calls. On a GPU the clock is the stream: an event at each change
of step, so what waits for the host counts for the step that waits.
"""

import functools
import importlib
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Step -> the functions it consists of, "module:attribute" or "module:Class.attribute". A name that is gone is reported.
BOTH: dict[str, tuple[str, ...]] = {
    "preprocess": ("maskmill.sam.sam:Sam.resize", "maskmill.sam.sam:Sam.preprocess"),
    "encode": ("maskmill.sam.image_encoder:ImageEncoderViT.forward",),
    "filter": ("maskmill.generate.generator:apply_filter",),
    "rle": ("maskmill.generate.generator:MaskGenerator.segmentation",),
}
STEPS: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": BOTH
    | {
        "decode": ("maskmill.generate.candidates:decode_points",),
        "post": ("maskmill.generate.candidates:full_resolution",),
    },
    "cuda": BOTH
    | {
        "decode": ("maskmill.generate.gpu_image:decode",),
        "post": ("maskmill.generate.gpu_image:launch", "maskmill.generate.gpu_image:fetch"),
    },
}
OTHER = "other"


class Timeline:
    """Marks, each with the step that begins there. Other threads than the one that made it are not watched."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock  # of a CPU
        self.cuda = device.type == "cuda"
        self.thread = threading.get_ident()
        self.stack = [OTHER]
        self.marks: list[tuple[Any, str]] = []
        self.mark()

    def mark(self) -> None:
        """The current step begins (again) here."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.marks.append((event, self.stack[-1]))
        else:
            self.marks.append((self.clock(), self.stack[-1]))

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        if threading.get_ident() != self.thread:
            yield
            return
        self.stack.append(name)
        self.mark()
        try:
            yield
        finally:
            self.stack.pop()
            self.mark()

    def seconds(self) -> dict[str, float]:
        """Of each step that was seen, in all."""
        if self.cuda:
            torch.cuda.synchronize()
        out: dict[str, float] = {}
        for (begun, name), (ended, _) in zip(self.marks, self.marks[1:], strict=False):
            took = begun.elapsed_time(ended) / 1000 if self.cuda else ended - begun
            out[name] = out.get(name, 0.0) + took
        return out


@contextmanager
def watch(
    device: torch.device, missing: list[str], clock: Callable[[], float] = time.perf_counter
) -> Iterator[Timeline]:
    """Wrap STEPS, yield the timeline, unwrap. Names that are gone are added to `missing`."""
    timeline = Timeline(device, clock)
    undo: list[tuple[Any, str, Any]] = []
    try:
        for step, names in STEPS[device.type].items():
            for name in names:
                try:
                    owner, attribute = resolve(name)
                    original = getattr(owner, attribute)
                except (ImportError, AttributeError):
                    missing.append(name)
                    continue
                undo.append((owner, attribute, original))
                setattr(owner, attribute, wrapped(original, step, timeline))
        yield timeline
        timeline.mark()
    finally:
        for owner, attribute, original in undo:
            setattr(owner, attribute, original)


def resolve(name: str) -> tuple[Any, str]:
    """ "module:Class.attribute" -> the class (or module) and the attribute."""
    module, _, path = name.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, attribute = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, attribute


def wrapped(function: Callable[..., Any], step: str, timeline: Timeline) -> Callable[..., Any]:
    """The same function, timed; of a generator, each of its turns."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def turns(*args: Any, **kwargs: Any) -> Iterator[Any]:
            items = function(*args, **kwargs)
            while True:
                with timeline.step(step):
                    try:
                        item = next(items)
                    except StopIteration:
                        return
                yield item

        return turns

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with timeline.step(step):
            return function(*args, **kwargs)

    return call
