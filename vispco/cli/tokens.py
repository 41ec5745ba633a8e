"""``vispco tokens``: find the sample, the method and the schedule; run; draw; write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vispco.errors import ConfigError, DataError, shortened
from vispco.outputs import PICTURE, check_output, output_file
from vispco.pruning.methods.base import make_method
from vispco.pruning.published import named_schedule
from vispco.survivors import survivors
from vispco.tasks.base import Sample
from vispco.tasks.pictures import Pictures

if TYPE_CHECKING:
    from vispco.problem import Problem


def write_tokens(
    problem: Problem,
    schedule: str,
    output: Path,
    *,
    sample: int = 0,
    images: list[Path] | None = None,
    question: str = "",
    method: str | None = None,
) -> Path:
    """Draw one sample's survivors into ``output``; returns its full path.

    Raises:
        ConfigError: unknown method, no such sample, or a file that cannot be written.
        DataError: a picture that cannot be read.
        ScheduleError: the schedule cannot be read or does not fit the model.
    """
    from vispco.dashboards.tokens import draw_survivors

    check_output(output, PICTURE)
    shown, named = named_schedule(schedule, problem.shape.layers, problem.model.config)
    used = make_method(method) if method else named or problem.default_method
    asked = _sample(problem, sample, images, question)
    found = survivors(problem, asked, used, shown)
    caption = f"{used.name}, {shown.text()}: {asked.question} {found.answer}"
    picture = draw_survivors(found, caption)
    try:
        with output_file(output, PICTURE) as partial:
            picture.save(partial)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"cannot write {str(output)!r}: {error}; choose another file with -o, ending in .png"
        ) from None
    return output.resolve()


def _sample(problem: Problem, number: int, images: list[Path] | None, question: str) -> Sample:
    if images:
        if missing := [path for path in images if not os.path.exists(path)]:
            raise DataError(f"cannot read picture {shortened(str(missing[0]))}: no such file; correct --image")
        pictures = Pictures(len(images), lambda: images, "--image")
        return Sample(id="own", group_id="own", images=tuple(pictures), question=question, answers=())
    samples = problem.tasks[0].samples("held_out")
    if not 0 <= number < len(samples):
        raise ConfigError(f"no held-out sample {number}; there are {len(samples)}, counted from 0")
    return samples[number]
