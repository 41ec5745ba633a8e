"""Scores as bootstraps draw them: every sample's part in its benchmark's number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vispco.analysis.statistics import Scores
from vispco.evaluation.records import Evaluation
from vispco.tasks.aggregation import MEAN, parts

TOLERANCE = 1e-4  # stored scores are float32


class Parts:
    """Evaluations of one split, as parts whose mean is a task's accuracy and whose groups can be drawn.

    ``groups``: of each sample, per task. A task whose number follows no known rule cannot be drawn: its samples are one
    group, of which nothing can be told, and each has the accuracy itself as its part.
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
        for evaluation in known:
            for task in evaluation.scores.keys() & self._rules.keys():
                if not self._follows(evaluation, task):
                    self._rules[task] = None
        self.groups = dict(self._names)
        for task, rule in self._rules.items():
            if rule is None:
                self.groups[task] = ["all"] * len(self._names[task])

    def _follows(self, evaluation: Evaluation, task: str) -> bool:
        rule, scores = self._rules[task], evaluation.scores[task]
        if rule is None:
            return False
        return abs(float(parts(rule, scores, self._names[task]).mean()) - _accuracy(evaluation, task)) <= TOLERANCE

    def of(self, evaluation: Evaluation) -> Scores:
        """task -> parts [S]."""
        found = {}
        for task, scores in evaluation.scores.items():
            rule = self._rules.get(task, MEAN)
            if rule is None:
                found[task] = np.full(len(scores), _accuracy(evaluation, task))
            else:
                found[task] = parts(rule, scores, self._names[task])
        return found


def _accuracy(evaluation: Evaluation, task: str) -> float:
    return float(evaluation.tasks[task]["accuracy"])
