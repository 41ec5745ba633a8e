"""What every task and every scorer must pass. Tasks are read, not measured: no model runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest

from vispco.errors import ConfigError
from vispco.evaluation.content import picture_key, sample_rows
from vispco.tasks.base import SPLITS, Sample, Task, make_task
from vispco.tasks.vqa_json import SCORERS

ODD = ("", " ", "no", "A", "7", "-0.5", "no such answer, at all", "\u00e9\n\t?")  # what models answer


class TaskConformance:
    """Set ``task``, its name, and ``options``, as its block in a study has them.

    ``size``: samples of each split. ``gold_is_right``: False where the first of a sample's answers need not score 1.
    """

    task: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    size: ClassVar[int] = 6
    gold_is_right: ClassVar[bool] = True

    def made(self) -> Task:
        return make_task(self.task, dict.fromkeys(SPLITS, self.size), self.options)

    @cache  # noqa: B019  (one instance for the life of a test run)
    def _samples(self) -> dict[str, list[Sample]]:
        task = self.made()
        return {split: task.samples(split) for split in SPLITS}

    def test_samples_are_complete(self) -> None:
        for split, samples in self._samples().items():
            assert 0 < len(samples) <= self.size, split
            assert len({sample.id for sample in samples}) == len(samples), "ids repeat"
            for sample in samples:
                assert sample.question or sample.prompt
                assert sample.images, "no picture, so there is nothing to prune"
                assert sample.answers
                assert all(isinstance(answer, str) for answer in sample.answers)

    def test_the_same_samples_every_time(self) -> None:
        again = self.made()
        for split, samples in self._samples().items():
            found = again.samples(split)
            assert sample_rows(found) == sample_rows(samples)
            assert pictures(found) == pictures(samples)

    def test_splits_share_no_picture_and_no_group(self) -> None:
        for one, other in itertools.combinations(self._samples().values(), 2):
            assert not {s.group_id for s in one} & {s.group_id for s in other}
            assert not set(pictures(one)) & set(pictures(other))

    def test_scores_are_shares(self) -> None:
        task = self.made()
        for sample in self._samples()["search"]:
            for answer in (*ODD, *sample.answers):
                score = task.score(sample, answer)
                assert 0 <= score <= 1, (answer, score)
                assert score == task.score(sample, answer)
            if self.gold_is_right:
                assert task.score(sample, sample.answers[0]) == 1

    def test_the_number_lies_between_all_wrong_and_all_right(self) -> None:
        task, groups = self.made(), [sample.group_id for sample in self._samples()["search"]]
        wrong, right = (task.aggregate(np.full(len(groups), value), groups) for value in (0.0, 1.0))
        assert wrong == 0
        assert right == 1
        half = np.arange(len(groups)) % 2
        assert 0 <= task.aggregate(half.astype(float), groups) <= 1

    def test_identity_and_protocol_are_plain(self) -> None:
        task = self.made()
        assert json.loads(json.dumps(task.fingerprint()))["task"] == task.name
        assert json.loads(json.dumps(task.protocol()))["scorer"] == task.scorer

    def test_unknown_options_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="no-such-option"):
            make_task(self.task, {"search": 1}, {**self.options, "no-such-option": 1})


def pictures(samples: Sequence[Sample]) -> list[str]:
    return [picture_key(picture) for sample in samples for picture in sample.images]


class ScorerConformance:
    """Set ``scorer``, its name, and ``samples``, each with answers the first of which is worth 1."""

    scorer: ClassVar[str]
    samples: ClassVar[Sequence[Sample]]

    def test_scores_are_shares(self) -> None:
        rule = SCORERS[self.scorer]
        for sample in self.samples:
            for answer in (*ODD, *sample.answers):
                score = rule(sample, answer)
                assert isinstance(score, float)
                assert 0 <= score <= 1, (answer, score)
                assert score == rule(sample, answer)

    def test_right_is_better_than_nothing(self) -> None:
        for sample in self.samples:
            assert SCORERS[self.scorer](sample, sample.answers[0]) == 1
            assert SCORERS[self.scorer](sample, "") < 1
