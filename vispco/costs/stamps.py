"""When each decoder layer of a forward begins and ends, by hooks that are gone afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Floats = NDArray[np.float64]


@dataclass
class Stamps:
    """Times of one forward, in milliseconds: ``layers`` [L] of each layer, ``gaps`` [L - 1] between them, ``outside``
    before the first and after the last, ``total``."""

    layers: Floats
    gaps: Floats
    outside: float
    total: float


@dataclass
class Clock:
    """Reads the time on a device: events on CUDA, so that nothing waits in between; the processor's clock elsewhere."""

    cuda: bool
    marks: list[Any] = field(default_factory=list)

    def mark(self, *_: Any) -> None:
        if self.cuda:
            event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def milliseconds(self) -> Floats:
        """Between each mark and the next."""
        if self.cuda:
            torch.cuda.synchronize()
            pairs = zip(self.marks, self.marks[1:], strict=False)
            return np.array([first.elapsed_time(second) for first, second in pairs])
        return 1000.0 * np.diff(np.array(self.marks))


def is_cuda(model: Any) -> bool:
    return bool(next(model.parameters()).is_cuda)


def timed_call(call: Callable[[], Any], cuda: bool) -> float:
    """Milliseconds of ``call``."""
    clock = Clock(cuda)
    if cuda:
        torch.cuda.synchronize()
    clock.mark()
    call()
    clock.mark()
    return float(clock.milliseconds()[0])


@contextmanager
def stamped(layers: Sequence[nn.Module], cuda: bool) -> Iterator[Callable[[Callable[[], Any]], Stamps]]:
    """Gives a function that calls a forward and returns its :class:`Stamps`. Enter it inside ``vispco.prune``, so that
    what pruning does before a layer counts as a gap."""
    clock = Clock(cuda)
    handles = []
    for layer in layers:
        handles += [layer.register_forward_pre_hook(clock.mark), layer.register_forward_hook(clock.mark)]

    def run(forward: Callable[[], Any]) -> Stamps:
        clock.marks.clear()
        if cuda:
            torch.cuda.synchronize()
        clock.mark()
        forward()
        clock.mark()
        between = clock.milliseconds()
        return Stamps(between[1::2], between[2:-1:2], float(between[0] + between[-1]), float(between.sum()))

    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()
