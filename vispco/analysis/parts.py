"""Scores as bootstraps draw them: every sample's part in its benchmark's number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vispco.analysis.bootstrap import Scores
from vispco.evaluation.records import Evaluation
from vispco.tasks.aggregation import MEAN, parts

TOLERANCE = 1e-4  # stored scores are float32


class Parts:
    """Evaluations of one split, as parts whose mean is a task's accuracy and whose groups can be drawn.

    ``groups``: of each sample, per task. A task whose number follows no known rule cannot be drawn: its samples are one
    group, of which nothing can be known, and each has the accuracy itself as its part.
    """

    def __init__(
        self, groups: Mapping[str, Sequence[str]], rules: Mapping[str, str | None], known: Iterable[Evaluation]
    ) -> None:
        """
        Args:
            groups: as the database has them.
            rules: those of tasks that are no means over samples, by task, as an experiment's facts have them.
            known: evaluations by which to tell what an older experiment does not say.
        """
        self._names = {task: list(names) for task, names in groups.items()}
        self._rules = {task: rules.get(task, MEAN) for task in groups}
        self._found: dict[str, Scores] = {}
        for evaluation in known:
            for task in evaluation.scores.keys() & self._rules.keys() - rules.keys():
                if abs(float(evaluation.scores[task].mean()) - _accuracy(evaluation, task)) > TOLERANCE:
                    self._rules[task] = None
        self.groups = dict(self._names)
        for task, rule in self._rules.items():
            if rule is None:
                self.groups[task] = ["all"] * len(self._names[task])

    def of(self, evaluation: Evaluation) -> Scores:
        """task -> parts [S]; made once for each evaluation, since searches choose the same ones again and again."""
        if evaluation.id not in self._found:
            self._found[evaluation.id] = {task: self._of_task(evaluation, task) for task in evaluation.scores}
        return self._found[evaluation.id]

    def _of_task(self, evaluation: Evaluation, task: str) -> NDArray[np.float64]:
        scores, rule = evaluation.scores[task], self._rules.get(task, MEAN)
        if rule is None:
            return np.full(len(scores), _accuracy(evaluation, task))
        return parts(rule, scores, self._names[task])


def _accuracy(evaluation: Evaluation, task: str) -> float:
    return float(evaluation.tasks[task]["accuracy"])
