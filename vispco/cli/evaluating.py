"""``vispco eval``: one schedule of a study, or a model on a task without any study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vispco.cli.output import print_json
from vispco.errors import ConfigError, shortened
from vispco.outputs import JSON_LINES, check_output, write_output
from vispco.yaml_text import NO_CHARACTER, read_yaml

if TYPE_CHECKING:
    from vispco.evaluation.plain import PlainEvaluation

INSTEAD = {
    "--device": "--set model.device=cuda",
    "--dtype": "--set model.dtype=bfloat16",
    "--attention": "--set model.attention=eager",
    "--adapter": "--set model.adapter=FOLDER",
    "--quantization": "--set 'model.quantization={quant_method: quanto, weights: int8}'",
    "--batch-size": "--set batch_size=8",
    "--option": "--set tasks.0.options.path=FOLDER",
    "--samples": "--set tasks.0.splits.held_out=100",
    "--limit": "--set tasks.0.options.limit=100",
    "--split": "--option split=NAME, a split of the data",
    "--set": "--option key=value, an option of the task",
}


PATHS = ("path", "image_root")  # names of files need not be UTF-8


def only_of(given: str, other: str, options: Mapping[str, Any]) -> None:
    """Refuse options that belong to the other form of the command."""
    for name, value in options.items():
        if value is not None:
            way = f"write {INSTEAD[name]}" if name in INSTEAD else "give one of the two"
            raise ConfigError(f"{name} belongs to {other}, and {given} was given; {way}")


def evaluate_study(
    study: Path, schedule: str | None, method: str | None, split: str | None, overrides: list[str] | None, as_json: bool
) -> None:
    """Measure one schedule, or the plain model, on a split of a study."""
    from vispco.cli.progress import TerminalProgress
    from vispco.experiment.run import evaluate_once
    from vispco.problem import Problem
    from vispco.registry import suggest

    splits, split = ["search", "held_out"], split or "held_out"
    if split not in splits:
        raise ConfigError(f"unknown split {split!r}; {suggest(split, splits)}")
    needs_schedule(schedule, method)
    problem, say = Problem.from_yaml(study, overrides), TerminalProgress().say
    evaluation = evaluate_once(problem, schedule, split, method, say)
    row = {
        "schedule": evaluation.schedule,
        "method": evaluation.method,
        "split": evaluation.split,
        "accuracy": evaluation.accuracy,
        "flops_ratio": evaluation.flops_ratio,
        "flops": evaluation.flops,
        "kv_bytes": evaluation.kv_bytes,
    }
    if as_json:
        print_json({**row, "keep_ratio": evaluation.keep_ratio, "tasks": evaluation.tasks})
    else:
        for key, value in row.items():
            print(f"{key:12s} {value:.4f}" if isinstance(value, float) else f"{key:12s} {value}")


def needs_schedule(schedule: str | None, method: str | None) -> None:
    if method is not None and schedule is None:
        raise ConfigError(f"--method {method} says which tokens to drop, not how many; add --schedule")


def evaluate_model(
    model: Mapping[str, Any],
    task: str,
    options: Sequence[str],
    *,
    samples: int | None,
    limit: str | None,
    schedule: str | None,
    method: str | None,
    batch_size: int,
    log: Path | None,
    as_json: bool,
) -> None:
    """Measure a model on a task, with the protocol beside the numbers."""
    from vispco.cli.progress import TerminalProgress
    from vispco.evaluation.plain import evaluate_plain, plain_task

    needs_schedule(schedule, method)
    said = task_options(options)
    if limit is not None:
        if "limit" in said:
            raise ConfigError("--limit and --option limit=... say the same; give one of the two")
        said["limit"] = _value(limit)
    chosen = plain_task(task, said, samples)
    if log is not None:
        check_output(log, JSON_LINES, option="--log-samples")
    progress = TerminalProgress()
    with progress.track(task) as advance:
        evaluation = evaluate_plain(
            model,
            chosen,
            schedule=schedule,
            method=method,
            batch_size=batch_size,
            watch=lambda done, total: advance(done, total, "samples"),
            say=progress.say,
        )
    if log is not None:
        write_samples(evaluation, log)
    if as_json:
        print_json(evaluation.record())
    else:
        print_plain(evaluation)


def quantization_given(text: str | None) -> dict[str, Any] | None:
    """What ``--quantization`` says, as a study's ``model: {quantization: ...}``.

    Raises:
        ConfigError: it is no mapping.
    """
    settings = None if text is None else read_yaml(text, "--quantization")
    if settings is None or isinstance(settings, dict):
        return settings
    raise ConfigError(f"--quantization {text!r} is no mapping, such as '{{quant_method: quanto, weights: int8}}'")


def task_options(items: Sequence[str]) -> dict[str, Any]:
    """``key=value`` items as a task's options; ``columns.question=query`` is a key within a mapping.

    Raises:
        ConfigError: an item is no such thing.
    """
    options: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"--option {item!r} is not key=value, for example --option path=data.jsonl")
        *parents, last = key.split(".")
        target = options
        for part in parents:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--option {key}: {part!r} has a value already; give one of the two")
        if last in target:
            raise ConfigError(f"--option {key} is given twice; give it once")
        if last not in PATHS and NO_CHARACTER.search(item):
            raise ConfigError(f"--option {shortened(item)} is no UTF-8 text; correct it")
        target[last] = _value(value)
    return options


def _value(text: str) -> Any:
    """YAML; nothing is the empty text."""
    try:
        return read_yaml(text, "the value") if text else text
    except ConfigError:
        return text


def write_samples(evaluation: PlainEvaluation, path: Path) -> None:
    """One line for each sample: what it was asked, what was answered, what that is worth.

    Raises:
        ConfigError: the file cannot be written.
    """
    rows = [
        {
            "id": sample.id,
            "group": sample.group_id,
            "category": sample.category,
            "prompt": sample.prompt or sample.question,
            "answers": list(sample.answers),
            "answer": answer,
            "score": float(score),
        }
        for sample, answer, score in zip(evaluation.samples, evaluation.answers, evaluation.scores, strict=True)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_output(path, text, JSON_LINES, option="--log-samples")


def print_plain(evaluation: PlainEvaluation) -> None:
    """The published numbers, then the protocol."""
    from vispco.tasks.aggregation import MEAN

    protocol = dict(evaluation.protocol)
    score = "mean score" if evaluation.rule == MEAN else f"accuracy ({evaluation.rule})"
    wide = max(map(len, (*evaluation.metrics, *protocol, score)))

    def line(name: str, value: Any) -> None:
        print(f"{name:{wide}s}  {_shown(value)}")

    line("model", evaluation.model)
    line("task", evaluation.task)
    for name, value in evaluation.metrics.items():
        line(name, value)
    if evaluation.standard_error is not None:
        line(score, f"{evaluation.accuracy:.4f} +/- {evaluation.standard_error:.4f} (standard error)")
    line("samples", protocol.pop("samples"))
    if evaluation.pruning is not None:
        line("schedule", evaluation.pruning["schedule"])
        line("method", evaluation.pruning["method"])
        line("flops_ratio", evaluation.costs["flops_ratio"])
    print()
    del protocol["task"]
    for name, value in protocol.items():
        line(name, value)


def _shown(value: Any) -> str:
    if value in (None, ""):
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {inside}" for key, inside in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    text = str(value)
    # Texts of prompts: line ends must be seen, and nothing may reach the terminal as a command.
    return json.dumps(text, ensure_ascii=False) if not text.isprintable() else text
