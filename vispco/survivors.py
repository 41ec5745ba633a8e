"""Which patches of a sample's pictures enter each layer at which tokens are dropped."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vispco.errors import ConfigError, ModelError
from vispco.evaluation.pixels import limited
from vispco.evaluation.prepared import sample_key
from vispco.evaluation.showing import check_shown, video_arguments
from vispco.models.resolution import rescaled
from vispco.pruning.prune import prune
from vispco.pruning.schedules import Ratios, resolution_of
from vispco.tasks.rendering import render_prompt

if TYPE_CHECKING:
    from PIL.Image import Image

    from vispco.models.grids import Grid
    from vispco.problem import Problem
    from vispco.pruning.methods.base import Method
    from vispco.pruning.schedules import Schedule
    from vispco.tasks.base import Sample, Task


@dataclass(frozen=True)
class Survivors:
    """``pictures`` as the model saw them; ``kept[layer][picture]``: bool [rows, columns], patches that enter it.

    A picture that the model saw as several views (a thumbnail, tiles) is several pictures here, and so are the frames
    of a video; where a model joins frames, the first of them is shown. Layers are 0 and those that fewer tokens enter
    than the layer before.
    """

    pictures: list[Image]
    kept: dict[int, list[NDArray[np.bool_]]]
    answer: str


def survivors(problem: Problem, sample: Sample, method: Method, schedule: Schedule) -> Survivors:
    """Run one sample and read what was kept.

    Raises:
        ModelError: the sample has no picture.
    """
    import torch

    if not sample.images:
        raise ModelError(f"sample {sample.id!r} has no picture, so there are no tokens to show; choose another one")
    model, processor, adapter = problem.model, problem.processor, problem.adapter
    share = resolution_of(schedule)
    if share is None:
        share = problem.study.model.resolution
    else:
        schedule = Ratios(schedule.keep_ratio(problem.shape.layers))
    task = _task_of(problem, sample)
    shown_as = {**_shown(processor, sample, share), **limited(processor, *task.pixels)}
    inputs = processor(text=[render_prompt(processor, sample)], return_tensors="pt", **shown_as)
    inputs = dict(inputs.to(model.device))
    visual = adapter.visual_mask(inputs["input_ids"], None)
    with torch.inference_mode(), prune(model, method=method, schedule=schedule) as session:
        session.sample_keys = [sample_key(problem, task, sample)]
        answer = model.generate(**inputs, max_new_tokens=task.max_new_tokens, do_sample=False)
    places = adapter.coordinates(inputs, visual)[0].cpu().numpy()
    layers = problem.shape.layers
    shown = [layer for layer in range(layers) if layer == 0 or session.kept(layer) != session.kept(layer - 1)]
    grids = adapter.views(inputs, visual)
    starts = [0, *itertools.accumulate(grid.frames for grid in grids)]
    kept: dict[int, list[NDArray[np.bool_]]] = {}
    for layer in shown:
        kept[layer] = [np.zeros((grid.rows, grid.columns), dtype=bool) for grid in grids for _ in range(grid.frames)]
        for picture, frame, row, column in places[session.kept(layer)[0]]:
            if column < grids[picture].columns and row < grids[picture].rows:
                kept[layer][starts[picture] + frame][row, column] = True
    text = processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    return Survivors(_as_seen(problem, inputs, sample, grids), kept, text)


def _task_of(problem: Problem, sample: Sample) -> Task:
    """An id alone is known in its task only."""
    first, *others = problem.tasks
    wanted = sample.id, sample.question
    for task in (first, *others) if others else ():
        if any((one.id, one.question) == wanted for split in task.sizes for one in task.samples(split)):
            return task
    return first


def _shown(processor: Any, sample: Sample, share: float) -> dict[str, Any]:
    """Arguments of the processor's call that show the sample's pictures, at ``share`` of their tokens, or its video."""
    if sample.show == "pictures":
        images, sizes = rescaled(processor, sample.images, share)
        return {"images": [images], **sizes}
    check_shown(processor, sample.show)
    if share != 1:
        raise ConfigError("a resolution is for pictures and does not go with show: video; leave one of the two")
    return video_arguments([sample], [list(sample.images)])


def _as_seen(problem: Problem, inputs: dict[str, Any], sample: Sample, grids: list[Grid]) -> list[Image]:
    """A picture for each frame of a grid: after the processor's crop, where a grid covers that; else the original."""
    from PIL import Image

    if sample.show == "video":
        frames, seen = list(sample.images), sum(grid.frames for grid in grids)
        return [frames[number * len(frames) // seen] for number in range(seen)]
    pixels, processor = problem.adapter.seen(inputs), problem.processor
    if pixels is None:
        return [sample.images[n - 1] for n in itertools.accumulate(grid.view == 0 for grid in grids)]
    config = processor.image_processor
    mean, std = np.array(config.image_mean), np.array(config.image_std)
    arrays = pixels.permute(0, 2, 3, 1).float().cpu().numpy() * std + mean
    return [Image.fromarray((array.clip(0, 1) * 255).round().astype(np.uint8)) for array in arrays]
