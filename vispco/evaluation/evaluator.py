"""The shared evaluator: the only code that measures. Every search asks it; nothing else runs the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vispco.config import content_hash
from vispco.costs import kv_cache_bytes, prefill_flops, unpruned_flops
from vispco.errors import MeasurementError
from vispco.evaluation.prepared import Batch, PreparedSplit, prepare
from vispco.evaluation.records import Evaluation as Evaluation
from vispco.models.loading import weights_hash
from vispco.pruning.methods.base import Method
from vispco.pruning.runtime import prune
from vispco.pruning.schedules import Counts, Policy, Ratios, Schedule, keep_all

if TYPE_CHECKING:
    from vispco.problem import Problem

EVALUATOR_VERSION = 1


class EvaluationStore(Protocol):
    """Where evaluations are kept between runs."""

    def get_evaluation(self, evaluation_id: str) -> Evaluation | None: ...

    def put_evaluation(self, evaluation: Evaluation, groups: Mapping[str, Sequence[str]]) -> None: ...


class Evaluator:
    """Measures policies on the splits of a problem.

    Prompts and visual features are prepared once per split. Results are cached by content, in memory and in
    ``store`` if one is given: equal context and equal realised counts are never measured twice.
    """

    def __init__(self, problem: Problem, store: EvaluationStore | None = None) -> None:
        self.problem = problem
        self.store = store
        self._memory: dict[str, Evaluation] = {}
        self._prepared: dict[str, list[PreparedSplit]] = {}

    # --- measuring -------------------------------------------------------------------------------

    def evaluate(
        self, policies: Sequence[Policy], split: str = "search", method: Method | None = None
    ) -> list[Evaluation]:
        """Measure each policy on ``split``, in order.

        Args:
            policies: schedules, or any policy.
            method: defaults to the problem's.

        Raises:
            ScheduleError: a policy does not fit the model or the method.
            MeasurementError: the model gave logits that are not finite.
        """
        method = method or self.problem.default_method
        return [self._evaluate_one(policy, split, method) for policy in policies]

    def _evaluate_one(self, policy: Policy, split: str, method: Method) -> Evaluation:
        counts = self.counts(policy, split)
        evaluation_id = content_hash(
            {
                "context": self.context(split, method),
                "counts": [content_hash([part.shape, part.tolist()]) for part in counts],
            }
        )
        known = self._memory.get(evaluation_id)
        if known is None and self.store is not None:
            known = self.store.get_evaluation(evaluation_id)
        if known is not None:
            self._memory[evaluation_id] = known
            return replace(known, spent_flops=0, schedule=_text(policy))
        evaluation = self._measure(evaluation_id, policy, counts, split, method)
        self._memory[evaluation_id] = evaluation
        if self.store is not None:
            self.store.put_evaluation(evaluation, {p.task.name: p.groups for p in self.prepared(split)})
        return evaluation

    def _measure(
        self, evaluation_id: str, policy: Policy, counts: list[Counts], split: str, method: Method
    ) -> Evaluation:
        shape, scores, tasks = self.problem.shape, {}, {}
        flops, kept, kv_bytes = 0, [], []
        for part, part_counts in zip(self.prepared(split), counts, strict=True):
            right = np.zeros(len(part.samples))
            for batch in part.batches:
                given = GivenCounts(part_counts[batch.rows], policy)
                for row, answer in zip(batch.rows, self._answers(part, batch, given, method), strict=True):
                    right[row] = part.task.score(part.samples[row], answer)
            pruned, ratio = self._cost(part, part_counts, method)
            scores[part.task.name] = right
            tasks[part.task.name] = {
                "accuracy": part.task.aggregate(right, part.groups),
                "flops_ratio": float(ratio.mean()),
            }
            flops += int(pruned.sum())
            kept.append(part_counts[part.n_visual > 0] / part.n_visual[part.n_visual > 0, None])
            width = torch.finfo(self.problem.adapter.dtype()).bits // 8
            kv_bytes.append(kv_cache_bytes(shape, part_counts, part.n_text, width))
        seen = np.concatenate(kept)
        return Evaluation(
            id=evaluation_id,
            split=split,
            method=method.name,
            schedule=_text(policy),
            keep_ratio=tuple(float(r) for r in seen.mean(axis=0)) if len(seen) else (1.0,) * shape.layers,
            accuracy=float(np.mean([task["accuracy"] for task in tasks.values()])),
            flops_ratio=float(np.mean([task["flops_ratio"] for task in tasks.values()])),
            flops=flops,
            spent_flops=flops,
            kv_bytes=float(np.concatenate(kv_bytes).mean()),
            tasks=tasks,
            scores=scores,
        )

    @torch.inference_mode()
    def _answers(self, part: PreparedSplit, batch: Batch, policy: Policy, method: Method) -> list[str]:
        model, tokenizer = self.problem.model, self.problem.processor.tokenizer
        inputs = self.problem.adapter.with_features(batch.inputs, batch.features)
        with prune(model, method=method, schedule=policy) as session:
            session.sample_keys = batch.keys
            if part.task.max_new_tokens == 1:
                logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
                if not bool(torch.isfinite(logits).all()):
                    raise MeasurementError(
                        f"{_text(policy)} with {method.name} gave logits that are not finite on task "
                        f"{part.task.name!r}; check the model's weights and dtype"
                    )
                tokens = logits.argmax(dim=-1, keepdim=True)
            else:
                prompt = inputs["input_ids"].shape[1]
                tokens = model.generate(**inputs, max_new_tokens=part.task.max_new_tokens, do_sample=False)[:, prompt:]
        texts: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts

    # --- what measuring needs, and searches may ask -------------------------------------------------

    def prepared(self, split: str) -> list[PreparedSplit]:
        """The tasks' samples of ``split``, ready to run."""
        if split not in self._prepared:
            self._prepared[split] = [prepare(self.problem, task, split) for task in self.problem.tasks]
        return self._prepared[split]

    def counts(self, policy: Policy, split: str) -> list[Counts]:
        """Realised counts of each task's samples, int [S, L]. Schedules need lengths only, other policies prompts."""
        layers = self.problem.shape.layers
        if isinstance(policy, Schedule):
            return [np.asarray(policy.counts(part.n_visual, layers)) for part in self.prepared(split)]
        found = []
        for part in self.prepared(split):
            counts = np.zeros((len(part.samples), layers), dtype=np.int64)
            for batch in part.batches:
                with torch.inference_mode():
                    prompt = batch.prompt(self.problem.adapter)
                counts[batch.rows] = policy.counts(part.n_visual[batch.rows], layers, prompt)
            found.append(counts)
        return found

    def flops_ratio(self, policy: Policy, split: str = "search", method: Method | None = None) -> float:
        """``flops_ratio`` without measuring: sample lengths are enough. Equals the evaluation's to the last bit."""
        method = method or self.problem.default_method
        parts = zip(self.prepared(split), self.counts(policy, split), strict=True)
        return float(np.mean([float(self._cost(part, counts, method)[1].mean()) for part, counts in parts]))

    def price(self, policy: Policy, split: str = "search", method: Method | None = None) -> int:
        """FLOPs of measuring ``policy`` with nothing cached; equals the evaluation's ``flops``."""
        method = method or self.problem.default_method
        parts = zip(self.prepared(split), self.counts(policy, split), strict=True)
        return sum(int(self._cost(part, counts, method)[0].sum()) for part, counts in parts)

    def _cost(
        self, part: PreparedSplit, counts: Counts, method: Method
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """FLOPs and flops_ratio of each sample, [S]."""
        shape = self.problem.shape
        pruned = prefill_flops(shape, counts, part.n_visual, part.n_text, method)
        return pruned, pruned / unpruned_flops(shape, part.n_visual, part.n_text)

    def unpruned(self, split: str) -> Evaluation:
        """The plain model."""
        return self.evaluate([keep_all()], split)[0]

    def no_image(self, split: str) -> Evaluation:
        """The model without visual tokens: what the question alone is worth."""
        return self.evaluate([Ratios([0.0] * self.problem.shape.layers)], split)[0]

    @cached_property
    def _model_identity(self) -> dict[str, Any]:
        model = self.problem.model
        return {
            "weights": weights_hash(model),
            "dtype": str(self.problem.adapter.dtype()),
            "attention": self.problem.adapter.attention(),
        }

    def context(self, split: str, method: Method) -> dict[str, Any]:
        """Everything a result depends on, beside the counts."""
        return {
            "model": self._model_identity,
            "method": {"name": method.name, **method.parameters()},
            "positions": "original",
            "tasks": [task.fingerprint() for task in self.problem.tasks],
            "split": {"name": split, "samples": [part.digest for part in self.prepared(split)]},
            "batch_size": self.problem.study.batch_size,
            "decoding": "greedy",
            "evaluator": EVALUATOR_VERSION,
        }


@dataclass(frozen=True)
class GivenCounts:
    """Counts [B, L] that a policy has given for one batch, so that what is run is what was counted."""

    given: Counts
    policy: Policy

    def counts(self, n_visual: Counts, layers: int, context: Any = None) -> Counts:
        return self.given

    def __repr__(self) -> str:
        return _text(self.policy)


def _text(policy: Policy) -> str:
    return policy.text() if isinstance(policy, Schedule) else repr(policy)
