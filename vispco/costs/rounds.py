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
    ``say`` is told after the first round, and then every half a minute, how much longer it may take.
    """
    began = told = time.monotonic()
    ends, rounds = began + seconds, warm_up + repeats
    found: dict[Any, list[Floats]] = {key: [] for key in probes}
    spent = [reference() for _ in range(3)]
    for number in range(rounds):
        if number > warm_up and time.monotonic() > ends:
            break
        going = [key for key, times in found.items() if not settled(times)]
        rng.shuffle(going)
        for key in going:
            times = np.asarray(probes[key](), dtype=np.float64)
            spent.append(min(reference() for _ in range(1 if spent[-1] > LONG else 2)))
            if number >= warm_up:
                found[key].append(times / ((spent[-2] + spent[-1]) / 2))
        now, done = time.monotonic(), number + 1
        if done < rounds and (number == 0 or now - told > TOLD):
            more = min((now - began) / done * (rounds - done), max(ends - now, (now - began) / done))
            say(f"round {done} of {rounds}: at most {duration(more)} more")
            told = now
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
