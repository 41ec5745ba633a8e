"""Everything that a measurement depends on; its hash is the identity under which results are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vispco.config import content_hash
from vispco.evaluation.content import Content
from vispco.evaluation.decoding import changed_logits
from vispco.evaluation.pixels import pixel_limits
from vispco.models.loading import weights_hash
from vispco.plugin_files import code_of
from vispco.pruning.methods.base import Method

if TYPE_CHECKING:
    from vispco.problem import Problem

EVALUATOR_VERSION = 3


def model_identity(problem: Problem, content: Content) -> dict[str, Any]:
    """Of the model: its weights, how they are held, and what turns pictures and text into its inputs."""
    model = problem.model
    limits = pixel_limits(problem.processor)
    return {
        "weights": weights_hash(model),
        "dtype": str(problem.adapter.dtype()),
        "attention": problem.adapter.attention(),
        **({"pixels": list(limits)} if limits else {}),
        "content": content_hash(content),
        **({"resolution": share} if (share := problem.study.model.resolution) != 1 else {}),
    }


def measurement_context(
    problem: Problem,
    method: Method,
    split: str,
    digests: Sequence[str],
    model: Mapping[str, Any],
    relative_to: float | None,
) -> dict[str, Any]:
    """Everything a result depends on, beside the counts.

    Args:
        digests: of the samples of each task.
        model: its :func:`model_identity`.
        relative_to: the resolution of the pictures that costs are shares of, where it is another one.
    """
    changed = changed_logits(problem.model.generation_config)
    most = [task.max_new_tokens for task in problem.tasks if task.answer_by == "generate"]
    return {
        "model": model,
        "method": {"name": method.name, **method.parameters()},
        "positions": "original",
        "tasks": [task.fingerprint() for task in problem.tasks],
        "split": {"name": split, "samples": list(digests)},
        "batch_size": problem.study.batch_size,
        # Before, samples of several tasks that had one id got the same draw, or the same curve.
        **({"sample_keys": "task"} if len(problem.tasks) > 1 else {}),
        "decoding": changed or "greedy",
        # Before, answers of one token were the most probable one whatever the settings.
        **({"first_token": "settings"} if changed and 1 in most else {}),
        "evaluator": EVALUATOR_VERSION,
        **({"score": problem.study.score} if problem.study.score != "task" else {}),
        # With the same pictures and counts, flops_ratio is another than in a study of small pictures alone.
        **({"relative_to": relative_to} if relative_to is not None else {}),
        # Before, methods rated tokens by products in the model's own precision.
        **({} if problem.adapter.dtype() == torch.float32 else {"products": "float32"}),
        **({"code": code} if (code := _plugin_code(problem, method)) else {}),
    }


def measuring_rules(problem: Problem) -> Content:
    """What all of an experiment's results depend on that is neither its model nor its data: versions of the rules, and
    the code of tasks, scorers and adapter where it is the user's."""
    versions = {f"task {task.name}": content_hash(task.fingerprint()) for task in problem.tasks}
    return {"rules": {"evaluator": str(EVALUATOR_VERSION), **versions}, "plug-ins": code_of(**_measuring(problem))}


def _plugin_code(problem: Problem, method: Method) -> dict[str, str]:
    """Of what comes from files of the user's."""
    return code_of(method=method, **_measuring(problem))


def _measuring(problem: Problem) -> dict[str, Any]:
    """What turns outputs into scores."""
    rules = {task.name: getattr(task, "scorers", {}).get(task.scorer) for task in problem.tasks}
    tasks = {f"task {task.name}": task for task in problem.tasks}
    scorers = {f"scorer of {name}": rule for name, rule in rules.items() if rule is not None}
    return {"model": problem.adapter, **tasks, **scorers}
