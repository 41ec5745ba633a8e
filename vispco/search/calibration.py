"""Calibration samples with the teacher's answers: what the gradient search minimises.

The teacher is the same frozen model, unpruned. Its greedy answer and the logits that gave it are computed
once; the student is pulled towards them at the same positions. The calibration split's gold answers are
never looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vispco.costs import layer_flops, prefill_flops
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.prepared import Batch, prepare
from vispco.pruning.methods.base import Method
from vispco.pruning.relaxed import relaxed
from vispco.pruning.runtime import prune
from vispco.pruning.schedules import Schedule

BACKWARD_OVER_FORWARD = 2


@dataclass(frozen=True)
class MiniBatch:
    """Prompts with the teacher's ``answer`` tokens [B, m], its log-probabilities [B, m, V], and ``weight`` [B, m]."""

    batch: Batch
    answer: Tensor
    log_probabilities: Tensor
    weight: Tensor
    n_visual: NDArray[np.int64]
    n_text: NDArray[np.int64]
    plain_flops: int
    scoring_flops: int


class Calibration:
    """Fixed random mini-batches of the calibration split. ``charged`` counts every FLOP from here on.

    A backward pass is charged at twice its forward, although weights get no gradient.
    """

    def __init__(self, evaluator: Evaluator, method: Method, batch_size: int, seed: int) -> None:
        self.problem, self.adapter, self.method = evaluator.problem, evaluator.problem.adapter, method
        self.charged = 0
        self.batches: list[MiniBatch] = []
        for task in self.problem.tasks:
            part = prepare(self.problem, task, "calibration", batch_size=batch_size, shuffle=seed)
            tokens = part.n_visual + part.n_text
            shape = self.problem.shape
            for batch in part.batches:
                plain = int(layer_flops(shape, tokens[batch.rows]).sum()) * shape.layers
                visual, text = part.n_visual[batch.rows], part.n_text[batch.rows]
                scoring = int(method.scoring_flops(shape, visual, text).sum()) * (shape.layers - 1)
                scoring += int(method.begin_flops(shape, visual, text).sum())
                answer, weight = self._greedy_answer(batch, task.max_new_tokens)
                log_probabilities = self._logits(batch, answer).log_softmax(dim=-1)
                self.charged += plain
                self.batches.append(MiniBatch(batch, answer, log_probabilities, weight, visual, text, plain, scoring))

    @torch.no_grad()
    def _greedy_answer(self, batch: Batch, max_new_tokens: int) -> tuple[Tensor, Tensor]:
        model = self.problem.model
        inputs = self.adapter.with_features(batch.inputs, batch.features)
        if max_new_tokens == 1:
            answer = model(**inputs, use_cache=False, logits_to_keep=1).logits.argmax(dim=-1)
            return answer, torch.ones_like(answer, dtype=torch.float32)
        prompt = inputs["input_ids"].shape[1]
        answer = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)[:, prompt:]
        stop = model.generation_config.eos_token_id
        stops = torch.tensor(stop if isinstance(stop, list) else [stop], device=answer.device)
        ended = torch.isin(answer, stops).long().cumsum(dim=1)
        return answer, ((ended == 0) | (ended.diff(dim=1, prepend=ended[:, :1] * 0) > 0)).float()

    @torch.no_grad()
    def _logits(self, batch: Batch, answer: Tensor) -> Tensor:
        """float32 [B, m, V] that predict ``answer``: one prefill of the prompt, then the answer on its cache."""
        model = self.problem.model
        inputs = self.adapter.with_features(batch.inputs, batch.features)
        more = answer.shape[1] > 1
        out = model(**inputs, use_cache=more, logits_to_keep=1)
        if not more:
            return out.logits.float()  # type: ignore[no-any-return]
        fed = answer[:, :-1]
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(fed)], dim=1)
        more_inputs = self.adapter.decoding_inputs(mask, fed.shape[1])
        rest = model(input_ids=fed, attention_mask=mask, past_key_values=out.past_key_values, **more_inputs).logits
        return torch.cat([out.logits, rest], dim=1).float()

    def _relaxed_logits(self, mini: MiniBatch, ratios: Tensor, temperature: float) -> Tensor:
        inputs: dict[str, Any] = dict(mini.batch.inputs)
        m = mini.answer.shape[1]
        fed = mini.answer[:, :-1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], fed], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(fed)], dim=1)
        inputs = self.adapter.with_features(inputs, mini.batch.features)
        with relaxed(
            self.adapter,
            self.method,
            ratios,
            temperature=temperature,
            trailing=m - 1,
            sample_keys=mini.batch.keys,
        ):
            return self.problem.model(**inputs, use_cache=False, logits_to_keep=m).logits.float()  # type: ignore[no-any-return]

    def loss(self, number: int, ratios: Tensor, temperature: float) -> Tensor:
        """KL(teacher || relaxed student) per answer token on mini-batch ``number``; charges forward and backward."""
        mini = self.batches[number % len(self.batches)]
        self.charged += (mini.plain_flops + mini.scoring_flops) * (1 + BACKWARD_OVER_FORWARD)
        return _kl(mini, self._relaxed_logits(mini, ratios, temperature))

    def pruned_loss(self, schedule: Schedule, batches: int) -> float:
        """The same KL for the physically pruned model, mean over the first ``batches``; charges what it runs."""
        total = 0.0
        shape = self.problem.shape
        chosen = self.batches[:batches]
        for mini in chosen:
            with prune(self.problem.model, method=self.method, schedule=schedule) as session:
                session.sample_keys = mini.batch.keys
                total += float(_kl(mini, self._logits(mini.batch, mini.answer)))
            counts = schedule.counts(mini.n_visual, shape.layers)
            self.charged += int(prefill_flops(shape, counts, mini.n_visual, mini.n_text, self.method).sum())
        return total / len(chosen)


def _kl(mini: MiniBatch, logits: Tensor) -> Tensor:
    student = logits.log_softmax(dim=-1)
    each = (mini.log_probabilities.exp() * (mini.log_probabilities - student)).sum(dim=-1)
    return (each * mini.weight).sum() / mini.weight.sum()
