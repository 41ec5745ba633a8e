"""A job on its way through an executor; what it measures is stored as it comes, whatever stops the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vispco.errors import VispcoError
from vispco.evaluation.job import Job, Pending, Place
from vispco.evaluation.outcomes import failure_of
from vispco.evaluation.records import Evaluation, Failed
from vispco.evaluation.units import Executor

SAVE_SECONDS = 10.0

Watch = Callable[[int], None]


class EvaluationStore(Protocol):
    """Where evaluations are kept between runs, finished ones and parts of others."""

    def get_evaluations(self, ids: Sequence[str]) -> dict[str, Evaluation]: ...

    def put_evaluations(self, evaluations: Sequence[Evaluation], groups: Mapping[str, Sequence[str]]) -> None: ...

    def load_blocks(self, ids: Sequence[str]) -> dict[str, dict[tuple[str, int], NDArray[np.float64]]]: ...

    def save_blocks(self, rows: Sequence[tuple[str, str, int, NDArray[np.float32]]]) -> None: ...


class Measurement:
    """Runs the units of one job.

    Args:
        store: where blocks and evaluations are kept, if anywhere.
        record: the evaluation of a policy that is measured, and the seconds it took.
    """

    def __init__(
        self,
        job: Job,
        executor: Executor,
        store: EvaluationStore | None,
        record: Callable[[Pending, float], Evaluation],
    ) -> None:
        self.job, self.executor, self.store, self._record = job, executor, store, record

    def finish(self, watch: Watch) -> Iterator[Evaluation | Failed]:
        """Run all units; evaluations are stored chunk by chunk, unfinished ones now and then."""
        job = self.job
        if not job.pending:
            return
        places = [(task, number) for task, part in enumerate(job.parts) for number in range(len(part.batches))]
        chunks = job.chunks()
        waiting = [list(chunk) for chunk in chunks]
        self._landed = time.monotonic()
        with self.saving():
            self.restore()
            yield from self._complete(waiting, len(places))
            for done in self._units(places, chunks):
                watch(done)
                yield from self._complete(waiting, len(places))

    def run(self, places: Sequence[Place], watch: Watch) -> None:
        """Run what is left at ``places``."""
        for done in self._units(places, self.job.chunks()):
            watch(done)

    def _units(self, places: Sequence[Place], chunks: Sequence[Sequence[Pending]]) -> Iterator[int]:
        """Run what is left at ``places``; the number of units done, after each."""
        saved = time.monotonic()
        for done, (number, result) in enumerate(self.executor.run(self.job.units(places, chunks)), start=1):
            self.job.absorb(number, result)
            yield done
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Whatever stops the work, also Ctrl-C: what is measured is kept."""
        try:
            yield
        except BaseException:
            # A second error must not hide the first.
            with suppress(VispcoError, OSError):
                self.save()
            raise

    def restore(self) -> None:
        """Take over what an earlier run has stored of these policies."""
        if self.store is not None:
            blocks = self.store.load_blocks([pending.id for pending in self.job.pending])
            for pending in self.job.pending:
                self.job.restore(pending, blocks.get(pending.id, {}))

    def save(self) -> None:
        """Store the blocks that are measured and not stored yet."""
        if self.store is not None and (rows := self.job.unsaved()):
            self.store.save_blocks(rows)

    def _complete(self, waiting: list[list[Pending]], places: int) -> Iterator[Evaluation | Failed]:
        """Hand over chunks, in order, whose policies have all ended."""
        while waiting and all(not p.alive or len(p.done) == places for p in waiting[0]):
            ended = waiting.pop(0)
            seconds, self._landed = time.monotonic() - self._landed, time.monotonic()
            share = seconds / max(1, sum(p.spent_flops for p in ended))
            made = {p.id: self._record(p, share * p.spent_flops) for p in ended if p.error is None}
            self.keep(list(made.values()))
            for pending in ended:
                self.job.pending.remove(pending)
                if pending.error is None:
                    yield made[pending.id]
                else:
                    yield failure_of(self.job, pending)

    def keep(self, finished: Sequence[Evaluation]) -> None:
        """Store evaluations, and forget their blocks."""
        if self.store is not None and finished:
            self.store.put_evaluations(finished, {part.task.name: part.groups for part in self.job.parts})
