"""A model on a task, without an experiment: the benchmark's numbers, and the protocol that they were had by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from vispco.config import Study, first_problem
from vispco.errors import ConfigError
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.pixels import pixel_limits
from vispco.evaluation.prepared import unread
from vispco.models.loading import weights_hash
from vispco.problem import Problem
from vispco.provenance import versions
from vispco.pruning.methods.base import make_method
from vispco.pruning.published import named_schedule
from vispco.pruning.schedules import keep_all
from vispco.tasks.aggregation import MEAN, parts
from vispco.tasks.base import Sample, Task, make_task
from vispco.tasks.rendering import render_prompt

SPLIT = "held_out"
TOGETHER = 512  # samples whose visual features are held at a time


@dataclass(frozen=True)
class PlainEvaluation:
    """Numbers of one model on one task.

    ``metrics``: as published, by their usual names and on their usual scales. ``accuracy``: the one number in [0, 1]
    that searches use, with its standard error over groups of samples (None if it cannot be known). ``rule``: by which
    scores add up to it, None if it is the task's own.
    ``pruning``: None, or schedule, method, realised keep ratio per layer. ``protocol``: all that must be the same
    before two numbers may be compared. ``answers``, ``scores``: of each sample.
    """

    model: str
    task: str
    metrics: Mapping[str, float]
    accuracy: float
    standard_error: float | None
    pruning: Mapping[str, Any] | None
    costs: Mapping[str, float]
    protocol: Mapping[str, Any]
    samples: Sequence[Sample]
    answers: Sequence[str]
    scores: NDArray[np.float64]
    rule: str | None = MEAN

    def record(self) -> dict[str, Any]:
        """Plain data, without the samples."""
        names = ("model", "task", "metrics", "accuracy", "standard_error", "pruning", "costs", "protocol")
        return {name: getattr(self, name) for name in names}


class Part(Task):
    """Some samples of a task; what they add up to is the whole task's business."""

    name = "part"

    def __init__(self, whole: Task, samples: Sequence[Sample]) -> None:
        super().__init__({SPLIT: len(samples)})
        self.whole, self.part = whole, list(samples)
        self.name = whole.name  # type: ignore[misc]
        self.scorer, self.answer_by = whole.scorer, whole.answer_by
        self.max_new_tokens, self.pixels, self.show = whole.max_new_tokens, whole.pixels, whole.show

    def dataset(self, split: str) -> Iterable[Mapping[str, Any]]:
        return self.whole.dataset(split)

    def sample(self, row: Mapping[str, Any]) -> Sample:
        return self.whole.sample(row)

    def score(self, sample: Sample, answer: str) -> float:
        return self.whole.score(sample, answer)

    def samples(self, split: str) -> list[Sample]:
        return self.part

    def fingerprint(self) -> dict[str, Any]:
        return self.whole.fingerprint()


def plain_task(name: str, options: Mapping[str, Any], samples: int | None = None) -> Task:
    """A task with one split: ``samples`` of its data, drawn as a study would, or all.

    Raises:
        ConfigError: a task that makes its data, without a number of samples.
    """
    task = make_task(name, {SPLIT: samples or 1}, options)
    if samples is None:
        there = task.available(SPLIT)
        if there is None:
            raise ConfigError(f"task {name!r} makes as many samples as are asked for; say how many: --samples 500")
        task.sizes[SPLIT] = max(1, there)
    return task


def evaluate_plain(
    model: Mapping[str, Any],
    task: Task,
    *,
    schedule: str | None = None,
    method: str | None = None,
    batch_size: int = 8,
    loaded: tuple[Any, Any] | None = None,
    watch: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> PlainEvaluation:
    """Measure a model on all samples of ``task``; nothing is stored.

    Pictures are encoded for a few hundred samples at a time, so that a benchmark of any size fits into memory.

    Args:
        model: name, device, dtype and attention, as in a study's model block.
        task: of :func:`plain_task`.
        schedule: as in :func:`vispco.pruning.published.named_schedule`; None prunes nothing.
        method: defaults to the schedule's own, or FastV.
        loaded: model and processor, if they are there already.
        watch: gets the numbers of samples done and in all.
        say: gets what a person should know of the prompts.

    Raises:
        UserError: the data, the model or the schedule cannot be used; the message says why.
        MeasurementError: the model gave something that cannot be scored.
    """
    samples = task.samples(SPLIT)
    study = _study(model, task, len(samples), batch_size)
    given = {} if loaded is None else {"model": loaded[0], "processor": loaded[1]}
    whole = Problem(study, tasks=[task], **given)
    if not given:
        given = {"model": whole.model, "processor": whole.processor}
    policy, named = named_schedule(schedule, whole.shape.layers, whole.model.config) if schedule else (keep_all(), None)
    chosen = make_method(method) if method else named or whole.default_method
    scores, answers, found, lengths = np.zeros(len(samples)), [""] * len(samples), [], []
    for start in range(0, len(samples), TOGETHER):
        part = samples[start : start + TOGETHER]
        evaluator = Evaluator(Problem(study, tasks=[Part(task, part)], **given))
        prepared = evaluator.prepared(SPLIT)[0]
        if not start:
            evaluator.counts(policy, SPLIT, chosen)  # a schedule that does not fit is refused first, and alone
            if told := unread(whole, [prepared]):
                say(told)
        evaluation = evaluator.evaluate([policy], SPLIT, chosen)[0]
        scores[start : start + len(part)] = evaluation.scores[task.name]
        for (_, _, number), answer in evaluator.runner.answers.items():
            answers[start + number] = answer
        found.append(evaluation)
        lengths.append((prepared.n_visual, prepared.n_text))
        watch(start + len(part), len(samples))
    sizes = [len(visual) for visual, _ in lengths]
    visual, text = (np.concatenate(each) for each in zip(*lengths, strict=True))
    groups = [sample.group_id for sample in samples]
    pruning = {
        "schedule": policy.text(),
        "method": chosen.name,
        "method_parameters": chosen.parameters(),
        "keep_ratio": np.average([e.keep_ratio for e in found], axis=0, weights=sizes).tolist(),
    }
    return PlainEvaluation(
        model=str(model["name"]),
        task=task.name,
        metrics=task.metrics(samples, scores, answers),
        accuracy=task.aggregate(scores, groups),
        standard_error=_standard_error(task, scores, groups),
        pruning=pruning if schedule else None,
        costs={
            "flops": sum(e.flops for e in found),
            "flops_ratio": float(np.average([e.flops_ratio for e in found], weights=sizes)),
            "kv_bytes": float(np.average([e.kv_bytes for e in found], weights=sizes)),
            "visual_tokens": float(visual.mean()),
            "text_tokens": float(text.mean()),
        },
        protocol=_protocol(whole, task, samples),
        samples=samples,
        answers=answers,
        scores=scores,
        rule=task.rule,
    )


def _study(model: Mapping[str, Any], task: Task, samples: int, batch_size: int) -> Study:
    tasks = [{"name": task.name, "splits": {SPLIT: samples}}]
    rest = {"experiment": "eval", "tasks": tasks, "batch_size": batch_size, "searches": {}}
    try:
        return Study.model_validate({"model": dict(model), **rest})
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from None


def standard_error(scores: NDArray[np.float64], groups: Sequence[str]) -> float | None:
    """Of the mean of scores [S], whose groups [S] are independent of each other; None for a single group."""
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(member, weights=scores - scores.mean())
    count = len(sums)
    return math.sqrt(float((sums**2).sum()) * count / (count - 1)) / len(scores) if count > 1 else None


def _standard_error(task: Task, scores: NDArray[np.float64], groups: Sequence[str]) -> float | None:
    return standard_error(parts(task.rule, scores, groups), groups) if task.rule is not None else None


def _protocol(problem: Problem, task: Task, samples: Sequence[Sample]) -> dict[str, Any]:
    own = pixel_limits(problem.processor)
    limits = [None, None] if own is None else [own[i] if task.pixels[i] is None else task.pixels[i] for i in (0, 1)]
    said, config = task.protocol(), problem.study.model
    from vispco.evaluation.decoding import changed_logits

    return {
        **said,
        "data": said["data"][SPLIT] if "data" in said else f"made by {task.name}, version {task.version}",
        "samples": len(samples),
        "first_prompt": render_prompt(problem.processor, samples[0]),
        "chat_template": bool(getattr(problem.processor, "chat_template", None)),
        "min_pixels": limits[0],
        "max_pixels": limits[1],
        "decoding": changed_logits(problem.model.generation_config) or "greedy",
        "batch_size": problem.study.batch_size,
        "dtype": str(problem.adapter.dtype()).removeprefix("torch."),
        "device": config.device,
        "attention": problem.adapter.attention(),
        "model_hash": weights_hash(problem.model),
        "versions": versions(),
    }
