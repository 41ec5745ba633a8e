"""A task: a data set turned into samples with prompts, and the benchmark's own scorer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.errors import ConfigError, DataError
from vispco.registry import Registry, suggest

if TYPE_CHECKING:
    from datasets import Dataset

TASKS = Registry("task", "tasks")
SPLITS = ("calibration", "search", "held_out")


@dataclass(frozen=True)
class Sample:
    """One question in canonical form.

    ``group_id``: samples of one group (several questions about one picture) are resampled together.
    """

    id: str
    group_id: str
    images: Sequence[Any]
    question: str
    answers: tuple[str, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


class Task(ABC):
    """Data, prompt and scorer of one benchmark.

    ``version`` changes whenever a prompt, a scorer or the data change, so that old results are not reused.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    max_new_tokens: ClassVar[int] = 16

    def __init__(self, sizes: Mapping[str, int], options: Mapping[str, Any] | None = None) -> None:
        self.sizes = dict(sizes)
        if options:
            raise ConfigError(f"task {self.name!r} has no option {next(iter(options))!r}; remove it")

    @abstractmethod
    def dataset(self, split: str) -> Dataset:
        """The rows of ``split``."""

    @abstractmethod
    def sample(self, row: Mapping[str, Any]) -> Sample:
        """A row in canonical form."""

    @abstractmethod
    def score(self, sample: Sample, answer: str) -> float:
        """The benchmark's score of one answer, in [0, 1]."""

    def aggregate(self, scores: NDArray[np.float64], groups: Sequence[str]) -> float:
        """The benchmark's number from scores [S] and their groups [S]; the mean unless the benchmark differs."""
        return float(np.mean(scores))

    def samples(self, split: str) -> list[Sample]:
        """All samples of ``split``.

        Raises:
            DataError: the split is empty.
        """
        samples = [self.sample(row) for row in self.dataset(split)]
        if not samples:
            raise DataError(f"task {self.name!r} has no rows in split {split!r}; give it a size above 0")
        return samples

    def fingerprint(self) -> dict[str, Any]:
        """What a cached result depends on, beside the split."""
        return {"task": self.name, "version": self.version, "max_new_tokens": self.max_new_tokens}


def make_task(name: str, sizes: Mapping[str, int], options: Mapping[str, Any] | None = None) -> Task:
    """Build a registered task.

    Raises:
        ConfigError: unknown task, unknown split or option, or a size that is not positive.
    """
    import vispco.tasks.llava_instruct
    import vispco.tasks.mosaic_vqa  # noqa: F401  (both register)

    for split, size in sizes.items():
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}; {suggest(split, list(SPLITS))}")
        if size < 1:
            raise ConfigError(f"split {split!r} has size {size}; it needs at least 1 sample")
    task: Task = TASKS[name](sizes, options)
    return task
