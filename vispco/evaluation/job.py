"""Policies on their way to being measured together: what is known, what is still to run, what it ends in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vispco.costs import shared_flops, unpruned_flops
from vispco.evaluation.prepared import PreparedSplit
from vispco.evaluation.units import Unit, UnitResult
from vispco.models.shapes import ModelShape
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import Counts

CHUNK = 16.0  # largest cost of policies that run together, in unpruned prefills of their samples
Place = tuple[int, int]  # number of the task, number of the batch


class Order(Protocol):
    """Samples in a random order: position s is sample ``row[s]`` of task number ``task[s]``."""

    @property
    def task(self) -> NDArray[np.int64]: ...

    @property
    def row(self) -> NDArray[np.int64]: ...


@dataclass(eq=False)
class Pending:
    """One policy: ``counts`` per task [S, L], ``scores`` per task float32 [S], NaN where not measured."""

    id: str
    name: str
    counts: list[Counts]
    scores: list[NDArray[np.float32]]
    done: set[Place] = field(default_factory=set)
    saved: set[Place] = field(default_factory=set)
    spent_flops: int = 0
    error: str | None = None
    stopped_at: int = 0  # samples, if a race stopped it

    @property
    def alive(self) -> bool:
        return self.error is None and not self.stopped_at


class Job:
    """Some policies under one method on one split, cut into units.

    ``resolution``: of the pictures in ``parts``; None: the study's own.
    """

    def __init__(
        self,
        parts: Sequence[PreparedSplit],
        shape: ModelShape,
        split: str,
        method: Method,
        pending: Sequence[Pending],
        resolution: float | None = None,
    ) -> None:
        self.resolution = resolution
        self.parts, self.shape, self.split, self.method = parts, shape, split, method
        self.pending = list(pending)
        self._running: dict[int, tuple[Place, list[Pending]]] = {}
        self._started = 0

    def chunks(self) -> list[list[Pending]]:
        """Policies with much in common side by side, as many together as cost ``CHUNK`` unpruned prefills.

        Ordered by the tokens that enter layer 0, then layer 1, and so on, fewest first. What runs together follows
        from the policies alone, not from who runs it.
        """
        part = self.parts[0]
        row = int(np.argmax(part.n_visual))
        lengths = part.n_visual[row : row + 1], part.n_text[row : row + 1]
        ordered = sorted(self.pending, key=lambda pending: tuple(pending.counts[0][row].tolist()))
        counts = [pending.counts[0][row : row + 1] for pending in ordered]
        unpruned = int(unpruned_flops(self.shape, *lengths)[0])
        chunks: list[list[Pending]] = [[]]
        cost = 0
        for pending, more in zip(ordered, shared_flops(self.shape, counts, *lengths, self.method), strict=True):
            cost += int(more)
            if cost > CHUNK * unpruned and chunks[-1]:
                chunks.append([])
                cost = int(more)
            chunks[-1].append(pending)
        return [chunk for chunk in chunks if chunk]

    def units(self, places: Sequence[Place], chunks: Sequence[Sequence[Pending]]) -> Iterator[tuple[int, Unit]]:
        """What is still to run at ``places``, numbered; made as it is asked for, so that the failed are left out."""
        for chunk in chunks:
            for place in places:
                asked = [p for p in chunk if p.alive and place not in p.done]
                if asked:
                    yield self._unit(place, asked)

    def _unit(self, place: Place, asked: list[Pending]) -> tuple[int, Unit]:
        task, number = place
        rows = self.parts[task].batches[number].rows
        counts = np.stack([pending.counts[task][rows] for pending in asked])
        self._started += 1
        self._running[self._started] = place, asked
        names = tuple(pending.name for pending in asked)
        return self._started, Unit(self.split, task, number, self.method, names, counts, self.resolution)

    def absorb(self, number: int, result: UnitResult) -> list[Pending]:
        """Note a unit's result; returns the policies that were in it."""
        place, asked = self._running.pop(number)
        part = self.parts[place[0]]
        rows = part.batches[place[1]].rows
        counts = [pending.counts[place[0]][rows] for pending in asked]
        spent = shared_flops(self.shape, counts, part.n_visual[rows], part.n_text[rows], self.method)
        spent[0] += result.recomputed_flops
        for i, pending in enumerate(asked):
            pending.spent_flops += int(spent[i])
            if i in result.errors:
                pending.error = pending.error or result.errors[i]
            else:
                pending.scores[place[0]][rows] = result.scores[i]
                pending.done.add(place)
        return asked

    def unsaved(self) -> list[tuple[str, str, int, NDArray[np.float32]]]:
        """(evaluation id, task, batch, scores) of what is measured and was not told before."""
        rows = []
        for pending in self.pending:
            for task, number in sorted(pending.done - pending.saved):
                batch = self.parts[task].batches[number]
                rows.append((pending.id, self.parts[task].task.name, number, pending.scores[task][batch.rows]))
                pending.saved.add((task, number))
        return rows

    def block(self, number: int) -> list[Place]:
        """Batches of block ``number`` of the random order."""
        places = []
        for task, part in enumerate(self.parts):
            start = part.looks[number - 1] if number else 0
            places += [(task, batch) for batch in range(start, part.looks[number])]
        return places

    def ordered(self, order: Order, block: int) -> NDArray[np.float64]:
        """Scores [P, n] of the samples up to the end of ``block``, in ``order``; NaN where not measured."""
        samples = sum(len(b.rows) for part in self.parts for b in part.batches[: part.looks[block]])
        task, row = order.task[:samples], order.row[:samples]
        by_policy = np.empty((len(self.pending), samples))
        for number, pending in enumerate(self.pending):
            for t, scores in enumerate(pending.scores):
                by_policy[number, task == t] = scores[row[task == t]]
        return by_policy

    def know(self, pending: Pending, scores: Mapping[str, NDArray[np.float64]]) -> None:
        """Take over all scores of a policy that was measured before."""
        for task, part in enumerate(self.parts):
            pending.scores[task][:] = scores[part.task.name]
            places = {(task, number) for number in range(len(part.batches))}
            pending.done |= places
            pending.saved |= places

    def restore(self, pending: Pending, blocks: dict[tuple[str, int], NDArray[np.float64]]) -> None:
        """Take over what an earlier run has measured of ``pending``."""
        for task, part in enumerate(self.parts):
            for number, batch in enumerate(part.batches):
                known = blocks.get((part.task.name, number))
                if known is not None and len(known) == len(batch.rows):
                    pending.scores[task][batch.rows] = known
                    pending.done.add((task, number))
                    pending.saved.add((task, number))
