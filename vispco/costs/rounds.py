"""Timings that are taken in turn: round after round, in another order each time.

A slow moment of the machine then hits every measurement once, and not one of them in all its repetitions.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 5  # repetitions before a measurement may be called settled
SETTLED = 0.004  # standard error of its median, as a share of it

TOLD = 30.0  # seconds between two messages
LONG = 20.0  # milliseconds of a reference that needs no second time

Floats = NDArray[np.float64]


@dataclass
class Turns:
    """What was measured: repetitions [R, ...] of each probe, in milliseconds at the speed at which ``reference`` is
    what a fixed piece of work took (median over the whole time)."""

    times: dict[Any, Floats]
    reference: float


def in_turn(
    probes: Mapping[Any, Callable[[], Any]],
    reference: Callable[[], float],
    repeats: int,
    rng: random.Random,
    warm_up: int = 1,
    seconds: float = math.inf,
    say: Callable[[str], None] = lambda text: None,
) -> Turns:
    """Repetitions of each probe, a call that returns milliseconds: a number, or parts of one time.

    Processors change their speed by the second, so ``reference``, always the same work, is timed before and after each
    probe, and what the probe took is divided by it. A probe has at most ``repeats``, and no more once the median of its
    sum is settled. ``warm_up`` rounds are left out. After ``seconds`` no round begins, once each probe has been timed.
    Every half a minute ``say`` is told how much longer it may take.
    """
    began = told = time.monotonic()
    ends, rounds, done = began + seconds, warm_up + repeats, 0
    found: dict[Any, list[Floats]] = {key: [] for key in probes}
    spent = [reference() for _ in range(3)]
    for number in range(rounds):
        if number > warm_up and time.monotonic() > ends:
            break
        going = [key for key, times in found.items() if not settled(times)]
        rng.shuffle(going)
        for at, key in enumerate(going, 1):
            times = np.asarray(probes[key](), dtype=np.float64)
            spent.append(min(reference() for _ in range(1 if spent[-1] > LONG else 2)))
            if number >= warm_up:
                found[key].append(times / ((spent[-2] + spent[-1]) / 2))
            done, now = done + 1, time.monotonic()
            here, later = len(going) - at, len(going) * (rounds - number - 1)
            if now - told > TOLD and here + later:
                each, told = (now - began) / done, now
                least = each * len(going) * max(0, warm_up - number)  # rounds that no limit stops
                more = each * here + min(each * later, max(least, ends - now))
                say(f"round {number + 1} of {rounds}, {at} of {len(going)}: at most {duration(more)} more")
    usual = float(np.median(spent[3:]))
    return Turns({key: np.stack(times) * usual for key, times in found.items()}, usual)


def duration(seconds: float) -> str:
    """A time to wait, in the unit that people would use."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def settled(times: list[Floats]) -> bool:
    """Whether the median of these repetitions is known well enough."""
    if len(times) < FEWEST:
        return False
    sums = np.array([one.sum() for one in times])
    low, middle, high = np.percentile(sums, [25, 50, 75])
    error = 0.93 * (high - low) / np.sqrt(len(sums))  # of a median, where the spread is normal
    return bool(error <= SETTLED * middle)
