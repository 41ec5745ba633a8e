"""Measuring policies side by side, block by block, without those that a race stops."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vispco.evaluation.job import Order
from vispco.evaluation.measurement import Measurement, Watch


class RaceProtocol(Protocol):
    """What measuring needs of a race; see :class:`vispco.search.racing.Race`."""

    @property
    def order(self) -> Order: ...

    @property
    def stopped_at(self) -> NDArray[np.int64]: ...

    @property
    def unwitnessed(self) -> NDArray[np.bool_]: ...

    def look(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]: ...


def run_race(measurement: Measurement, race: RaceProtocol, watch: Watch) -> None:
    """Measure a job's policies as far as ``race`` lets them; those that it stops have ``stopped_at`` set."""
    job = measurement.job
    runners = list(job.pending)
    with measurement.saving():
        measurement.restore()
        blocks = range(len(job.parts[0].looks))
        for block in blocks:
            measurement.run(job.block(block), watch)
            race.look(job.ordered(race.order, block))
            for waiting, at in zip(runners, race.stopped_at, strict=True):
                waiting.stopped_at = int(at)
        for number in np.flatnonzero(race.unwitnessed):
            runners[number].stopped_at = 0
        measurement.run([place for block in blocks for place in job.block(block)], watch)
        measurement.save()
