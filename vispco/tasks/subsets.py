"""Cut rows into disjoint parts: seeded, by unit (usually the picture), proportional to strata."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence


def cut(
    units: Sequence[str],
    strata: Sequence[str],
    sizes: Mapping[str, int],
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> dict[str, list[int]]:
    """Row numbers of each part, ascending; a part may fall short of its size where units are large or rows few.

    Units are dealt to the parts in proportion to their sizes, the largest first; each part then takes rows at random
    from its units, so that many units are seen even where one of them would fill a part.

    Args:
        units: of each row [R]; the rows of one unit go to one part only.
        strata: of each row [R]; every part holds them in about the proportions of the whole.
        groups: of each row [R], if rows of one group are to be taken all or none.
    """
    members = _members(units)
    first = {unit: strata[rows[0]] for unit, rows in members.items()}
    order = sorted(stratified(members, first, f"{seed}/unit"), key=lambda unit: -len(members[unit]))
    wanted = {part: len(units) * size / sum(sizes.values()) for part, size in sizes.items()}
    pools: dict[str, list[int]] = {part: [] for part in sizes}
    for unit in order:
        neediest = max(sizes, key=lambda part: (wanted[part] - len(pools[part])) / wanted[part])
        pools[neediest] += members[unit]
    return {part: sorted(_take(pools[part], strata, size, f"{seed}/row", groups)) for part, size in sizes.items()}


def _take(pool: Sequence[int], strata: Sequence[str], size: int, seed: str, groups: Sequence[str] | None) -> list[int]:
    keys = [str(row) if groups is None else groups[row] for row in pool]
    members = {key: [pool[i] for i in rows] for key, rows in _members(keys).items()}
    taken: list[int] = []
    for key in stratified(members, {key: strata[rows[0]] for key, rows in members.items()}, seed):
        if len(taken) + len(members[key]) <= size:
            taken += members[key]
    return taken


def stratified(keys: Iterable[str], stratum: Mapping[str, str], seed: str) -> list[str]:
    """``keys`` in a random order of which every beginning holds the strata in proportion, to about one key each.

    The order follows from the seed and the keys' names.
    """
    inside: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for key in keys:
        inside[stratum[key]].append((uniform(f"{seed}/{key}"), key))
    placed = []
    for name, drawn in inside.items():
        offset = uniform(f"{seed}/stratum/{name}")
        placed += [((rank + offset) / len(drawn), key) for rank, (_, key) in enumerate(sorted(drawn))]
    return [key for _, key in sorted(placed)]


def uniform(text: str) -> float:
    """A number in [0, 1) that follows from ``text`` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / (1 << 56)


def joined(*keys: Sequence[str]) -> list[str]:
    """Units of rows such that two rows with any key in common, directly or through others, are in one unit.

    >>> joined(["a", "a", "b", "c"], ["1", "2", "2", "3"])
    ['0/b', '0/b', '0/b', '0/c']
    """
    rows = [[f"{place}/{key}" for place, key in enumerate(row)] for row in zip(*keys, strict=True)]
    root = _roots(rows)
    return [root(first) for first, *_ in rows]


def connected(shown: Sequence[Sequence[str]]) -> list[str]:
    """Units of rows by the pictures that each shows: rows with any picture in common, directly or through others, are
    one unit.

    >>> connected([["a"], ["a"], ["b", "c"], ["c", "d"], ["e", "f"]])
    ['a', 'a', 'b+c', 'b+c', 'e+f']
    """
    names = ["+".join(pictures) for pictures in shown]
    root = _roots(shown)
    least: dict[str, str] = {}
    for (first, *_), name in zip(shown, names, strict=True):
        least[root(first)] = min(name, least.get(root(first), name))
    return [least[root(first)] for first, *_ in shown]


def _roots(rows: Sequence[Sequence[str]]) -> Callable[[str], str]:
    """Key -> one key that stands for all that rows connect with it."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = parent[above]
            key = above
        return key

    for first, *others in rows:
        for other in others:
            parent[root(other)] = root(first)
    return root


def _members(keys: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        found[key].append(row)
    return dict(found)
