"""Edges of a staircase: the numbers of tokens after which a layer's time jumps, found with few measurements.

Time also grows without any step, in proportion to the tokens where arithmetic bounds it. A gap between two measured
numbers is therefore searched only where the time rises by more than it does beside the gap, and by more than noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

JUMP = 0.15  # of the time before it: what is an edge
NEAR = 1.6  # between numbers of tokens so near, as a ratio
NOISY = 3.0  # times the spread of the repetitions, which a jump must exceed
MOST_EDGES = 12

Measure = Callable[[Sequence[int]], Mapping[int, float]]
Gap = tuple[int, int]


def token_grid(most: int) -> list[int]:
    """Numbers of tokens up to ``most``: multiples of 64 up to 256, of 128 up to 1024, then of 512 and of 2048; both
    sides of powers of two, where kernels often step."""
    steps = [64, 128, 192, 256, *range(384, 1025, 128), *range(1536, 8193, 512), *range(10240, most + 1, 2048)]
    beyond = [n + 1 for n in steps if n & (n - 1) == 0]
    grid = {1, 8, 16, 32, 48, *steps, *beyond, most}
    return sorted(n for n in grid if n <= most)


def search_edges(
    times: dict[int, float],
    measure: Measure,
    noise: Mapping[int, float] | None = None,
    ended: Callable[[], bool] = lambda: False,
) -> list[Gap]:
    """Find, by bisection, where the time jumps between near numbers of tokens; ``times`` gets the new points.

    Both ends of a jump are measured again with its first middle, so that a slow moment is not taken for an edge.

    Args:
        measure: times of numbers of tokens, in milliseconds.
        noise: spread of each number's repetitions, which ``measure`` may fill.
        ended: whether no more may be measured.

    Returns:
        The gaps that have a jump and were not searched to its edge, because of ``ended`` or of ``MOST_EDGES``.
    """
    spread: Mapping[int, float] = {} if noise is None else noise
    seen: set[Gap] = set()
    for _ in range(MOST_EDGES):
        jumps = [gap for gap in _jumps(times, spread) if gap not in seen]
        if not jumps or ended():
            return jumps
        gap = max(jumps, key=lambda gap: _excess(times, gap, _slope(times, gap)))
        seen.add(gap)
        if not _bisect(times, measure, spread, gap, ended):
            return [gap, *(one for one in _jumps(times, spread) if one not in seen)]
    return [gap for gap in _jumps(times, spread) if gap not in seen]


def _bisect(
    times: dict[int, float], measure: Measure, noise: Mapping[int, float], gap: Gap, ended: Callable[[], bool]
) -> bool:
    """Halve a gap as long as one of the halves has the jump; False where that had to end before."""
    (low, high), slope, first = gap, _slope(times, gap), True
    while high > low + 1:
        if ended():
            return False
        middle = (low + high) // 2
        times.update(measure([low, middle, high] if first else [middle]))
        first = False
        low, high = max(((low, middle), (middle, high)), key=lambda half: _excess(times, half, slope))
        if not _is_jump(times, noise, (low, high), slope):
            break  # it was a slow moment, or the rise is spread over the gap
    return True


def _jumps(times: Mapping[int, float], noise: Mapping[int, float]) -> list[Gap]:
    return [(a, b) for a, b in _gaps(times) if b <= NEAR * a and _is_jump(times, noise, (a, b), _slope(times, (a, b)))]


def _gaps(times: Mapping[int, float]) -> Iterator[Gap]:
    """Neighbours that have numbers between them."""
    return ((a, b) for a, b in itertools.pairwise(sorted(times)) if b > a + 1)


def _slope(times: Mapping[int, float], gap: Gap) -> float:
    """Milliseconds per token beside a gap: the lesser of its neighbours', as one of them may have an edge too."""
    gaps = list(_gaps(times))
    place = gaps.index(gap)
    beside = gaps[max(0, place - 1) : place] + gaps[place + 1 : place + 2]
    return max(0.0, min(((times[b] - times[a]) / (b - a) for a, b in beside), default=0.0))


def _excess(times: Mapping[int, float], gap: Gap, slope: float) -> float:
    """Milliseconds by which the time rises over a gap beyond ``slope``."""
    low, high = gap
    return times[high] - times[low] - slope * (high - low)


def _is_jump(times: Mapping[int, float], noise: Mapping[int, float], gap: Gap, slope: float) -> bool:
    least = max(JUMP * times[gap[0]], NOISY * max(noise.get(n, 0.0) for n in gap))
    return _excess(times, gap, slope) > least
