"""A task: a data set turned into samples with prompts, and the benchmark's own scorer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from string import ascii_uppercase
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vispco.errors import ConfigError, DataError
from vispco.registry import Registry, suggest
from vispco.tasks.aggregation import MEAN, aggregate

TASKS = Registry("task", "tasks", "name")
SPLITS = ("calibration", "search", "held_out")
PLACE = "<image>"
Show = Literal["pictures", "video"]

# Modules of the built-in tasks; importing one registers it.
BUILTIN = (
    "llava_instruct",
    *(
        "scene_vqa",
        "scene_moving",
        "mosaic_vqa",
        "a_okvqa",
        "vizwiz",
        "seed_bench",
        "mmbench",
        "mme",
        "chartqa",
        "ocrbench",
        "textvqa",
    ),
    *("scienceqa", "mmmu", "pope", "gqa", "ai2d", "video_mme", "mvbench", "mlvu", "vqa_json"),
)
# What lmms-eval calls them.
ALIASES = {
    "vizwiz_vqa_val": "vizwiz",
    "seedbench": "seed-bench",
    "mmbench_en_dev": "mmbench-en",
    "mmbench_en_dev_static": "mmbench-en",
    "mmbench_cn_dev": "mmbench-cn",
    "mmbench_cn_cc": "ccbench",
    "textvqa_val": "textvqa",
    "scienceqa_img": "scienceqa",
    "mmmu_val": "mmmu",
    "videomme": "video-mme",
    "mlvu_dev": "mlvu",
}


@dataclass(frozen=True)
class FrameTimes:
    """Which frames of a video the pictures of a sample are: their ``numbers``, at ``rate`` a second.

    ``total``: frames of the video, or of the part of it that is shown.
    """

    rate: float
    numbers: tuple[int, ...]
    total: int


@dataclass(frozen=True)
class Sample:
    """One question in canonical form.

    ``group_id``: samples of one group (several questions about one picture) are resampled together.
    ``options``: texts of A, B, ...; ``answers`` is then the right letter. ``prompt``: what the model reads, if that is
    not the question alone; pictures stand at its marks :data:`PLACE`, or before the text if there is none.
    ``show``: ``pictures``, or ``video``, where ``images`` are the frames of one video and the model gets them as that,
    before the text.
    """

    id: str
    group_id: str
    images: Sequence[Any]
    question: str
    answers: tuple[str, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    category: str = ""
    prompt: str = ""
    show: Show = "pictures"

    @classmethod
    def of(cls, row: Mapping[str, Any], images: Sequence[Any], **more: Any) -> Sample:
        """Of a row with ``id``, ``group_id``, ``question`` and ``answer``."""
        return cls(row["id"], row["group_id"], images, row["question"], (row["answer"],), **more)

    @property
    def frame_times(self) -> FrameTimes:
        """When the pictures are seen in their video; one a second if they do not know."""
        times: Callable[[], FrameTimes] | None = getattr(self.images, "times", None)
        count = len(self.images)
        return times() if times is not None else FrameTimes(1.0, tuple(range(count)), count)

    @property
    def lettered(self) -> dict[str, str]:
        """Options by letter."""
        return dict(zip(ascii_uppercase, self.options, strict=False))


class Task(ABC):
    """Data, prompt and scorer of one benchmark.

    ``version`` changes whenever a prompt, a scorer or the data change, so that old results are not reused.
    ``scorer`` names the rule that :meth:`score` applies. ``answer_by``: ``generate``, or ``likelihood``, where the
    answer is the option letter that the model would most probably begin with. ``pixels``: limits (least, most) that
    the task asks of the processor, None for the processor's own. ``show``: as what the samples are shown.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    max_new_tokens: int = 16
    scorer: str = "standard"
    answer_by: str = "generate"
    pixels: tuple[int | None, int | None] = (None, None)
    show: Show = "pictures"

    def __init__(self, sizes: Mapping[str, int], options: Mapping[str, Any] | None = None) -> None:
        self.sizes = dict(sizes)
        if options:
            raise ConfigError(f"task {self.name!r} has no option {next(iter(options))!r}; remove it")

    @abstractmethod
    def dataset(self, split: str) -> Iterable[Mapping[str, Any]]:
        """The rows of ``split``: a list, or a data set of the library ``datasets``."""

    @abstractmethod
    def sample(self, row: Mapping[str, Any]) -> Sample:
        """A row in canonical form."""

    @abstractmethod
    def score(self, sample: Sample, answer: str) -> float:
        """The benchmark's score of one answer, in [0, 1]."""

    @property
    def aggregation(self) -> str:
        """How scores become the benchmark's number: ``mean``, or a rule of :mod:`vispco.tasks.aggregation`."""
        return MEAN

    def aggregate(self, scores: NDArray[np.float64], groups: Sequence[str]) -> float:
        """The benchmark's number from scores [S] and their groups [S].

        A task whose number follows no rule may override this; it then has no intervals, and cannot be raced.
        """
        return aggregate(self.aggregation, scores, groups)

    @property
    def rule(self) -> str | None:
        """The rule that :meth:`aggregate` follows; None if it is the task's own."""
        return self.aggregation if type(self).aggregate is Task.aggregate else None

    def metrics(
        self, samples: Sequence[Sample], scores: NDArray[np.float64], answers: Sequence[str] | None = None
    ) -> dict[str, float]:
        """The numbers that are published for this benchmark, by their usual names and on their usual scales.

        Args:
            scores: of each sample, [S].
            answers: the texts themselves; a few numbers need them.
        """
        return {"accuracy": self.aggregate(scores, [sample.group_id for sample in samples])}

    def available(self, split: str) -> int | None:
        """How many samples there are to cut ``split`` from; None: as many as are asked for."""
        return None

    def check(self) -> None:  # noqa: B027  (most tasks make their data)
        """Look at the data of every split that has a size, as far as that is quick. Default: nothing is looked at.

        Raises:
            DataError: a row or a picture cannot be used.
        """

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
        found = {"task": self.name, "version": self.version, "max_new_tokens": self.max_new_tokens}
        # Results from before there was a choice keep their identity.
        chosen = {"answer_by": (self.answer_by, "generate"), "show": (self.show, "pictures")}
        return {**found, **{key: value for key, (value, usual) in chosen.items() if value != usual}}

    def protocol(self) -> dict[str, Any]:
        """What must be known to set a number of this task beside another's."""
        return {
            "task": self.name,
            "samples": dict(self.sizes),
            "scorer": self.scorer,
            "answer_by": self.answer_by,
            "max_new_tokens": self.max_new_tokens,
            "min_pixels": self.pixels[0],
            "max_pixels": self.pixels[1],
            **({} if self.show == "pictures" else {"show": self.show}),
        }


def register_builtin() -> None:
    """Import the tasks that are part of this package."""
    for module in BUILTIN:
        import_module(f"vispco.tasks.{module}")


def make_task(name: str, sizes: Mapping[str, int], options: Mapping[str, Any] | None = None) -> Task:
    """Build a registered task; lmms-eval's names of the same data are known too.

    Raises:
        ConfigError: unknown task, unknown split or option, or a size that is not positive.
    """
    register_builtin()
    for split, size in sizes.items():
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}; {suggest(split, list(SPLITS))}")
        if size < 1:
            raise ConfigError(f"split {split!r} has size {size}; it needs at least 1 sample")
    task: Task = TASKS[ALIASES.get(name, name)](sizes, options)
    return task
