"""Calibration samples with the teacher's answers: what the gradient search minimises.

The teacher is the same frozen model, unpruned. Its greedy answer and the logits that gave it are computed
once; the student is pulled towards them at the same positions. The calibration split's gold answers are
never looked at.

A mini-batch is cut into micro-batches of a stated size, and what these give is added up in their order in float64.
So it does not matter which process computed which, and several processes find what one finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from vispco.search.distributed import Alone, Team

BACKWARD_OVER_FORWARD = 2


@dataclass(frozen=True)
class Teacher:
    """Its ``answer`` tokens [B, m], its log-probabilities [B, m, V], and ``weight`` [B, m]."""

    answer: Tensor
    log_probabilities: Tensor
    weight: Tensor


@dataclass(frozen=True)
class MicroBatch:
    """Prompts, and what the teacher says to them where this process computes them."""

    batch: Batch
    teacher: Teacher | None
    n_visual: NDArray[np.int64]
    n_text: NDArray[np.int64]
    plain_flops: int
    scoring_flops: int


class Calibration:
    """Fixed random mini-batches of the calibration split. ``charged`` counts every FLOP from here on.

    A backward pass is charged at twice its forward, although weights get no gradient. Who computes it is no matter.

    Args:
        batch_size: samples per mini-batch.
        micro: samples per micro-batch, a divisor of ``batch_size``; 0: the whole mini-batch.
        team: the processes that share the work; this one's share is every ``size``-th micro-batch.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        method: Method,
        batch_size: int,
        seed: int,
        *,
        micro: int = 0,
        team: Team | None = None,
    ) -> None:
        self.problem, self.adapter, self.method = evaluator.problem, evaluator.problem.adapter, method
        self.team: Team = team or Alone()
        self.charged = 0
        self.micros: list[MicroBatch] = []
        self.batches: list[list[int]] = []
        if self.team.rank == 0:
            self.team.command(
                {
                    "do": "calibrate",
                    "study": self.problem.portable_text,
                    "method": method.name,
                    "parameters": method.parameters(),
                    "batch": batch_size,
                    "seed": seed,
                    "micro": micro,
                }
            )
        for task in self.problem.calibration_tasks:
            part = prepare(self.problem, task, "calibration", batch_size=micro or batch_size, shuffle=seed)
            together = batch_size // (micro or batch_size)
            numbers = list(range(len(self.micros), len(self.micros) + len(part.batches)))
            self.batches += [numbers[start : start + together] for start in range(0, len(numbers), together)]
            tokens = part.n_visual + part.n_text
            shape = self.problem.shape
            for batch in part.batches:
                plain = int(layer_flops(shape, tokens[batch.rows]).sum()) * shape.layers
                visual, text = part.n_visual[batch.rows], part.n_text[batch.rows]
                scoring = int(method.scoring_flops(shape, visual, text).sum()) * (shape.layers - 1)
                scoring += int(method.begin_flops(shape, visual, text).sum())
                teacher = self._teacher(batch, task.max_new_tokens) if self._is_mine(len(self.micros)) else None
                self.charged += plain
                self.micros.append(MicroBatch(batch, teacher, visual, text, plain, scoring))
        weights = self._shared(range(len(self.micros)), 1, lambda micro, teacher: [float(teacher.weight.sum())])
        self._weights = [weight for (weight,) in weights]

    def _is_mine(self, number: int) -> bool:
        return number % self.team.size == self.team.rank

    def _teacher(self, batch: Batch, max_new_tokens: int) -> Teacher:
        answer, weight = self._greedy_answer(batch, max_new_tokens)
        return Teacher(answer, self._logits(batch, answer).log_softmax(dim=-1), weight)

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

    def _relaxed_logits(self, micro: MicroBatch, teacher: Teacher, ratios: Tensor, temperature: float) -> Tensor:
        inputs: dict[str, Any] = dict(micro.batch.inputs)
        m = teacher.answer.shape[1]
        fed = teacher.answer[:, :-1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], fed], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(fed)], dim=1)
        inputs = self.adapter.with_features(inputs, micro.batch.features)
        with relaxed(
            self.adapter,
            self.method,
            ratios,
            temperature=temperature,
            trailing=m - 1,
            sample_keys=micro.batch.keys,
        ):
            return self.problem.model(**inputs, use_cache=False, logits_to_keep=m).logits.float()  # type: ignore[no-any-return]

    def loss(self, number: int, ratios: Tensor, temperature: float) -> Tensor:
        """KL(teacher || relaxed student) per answer token on mini-batch ``number``; charges forward and backward.

        float64; differentiable in ``ratios`` [L], once.
        """
        numbers = self.batches[number % len(self.batches)]
        flops = sum(self.micros[n].plain_flops + self.micros[n].scoring_flops for n in numbers)
        self.charged += flops * (1 + BACKWARD_OVER_FORWARD)
        fed = ratios.detach().float()
        self.team.command({"do": "loss", "micros": numbers, "ratios": fed.tolist(), "temperature": temperature})
        total, *gradient = self._weighted(numbers, self.share_of_loss(numbers, fed, temperature))
        slope = torch.tensor(gradient, dtype=torch.float64, device=ratios.device)
        return total + ((ratios - ratios.detach()).double() * slope).sum()

    def share_of_loss(self, numbers: Sequence[int], ratios: Tensor, temperature: float) -> list[list[float]]:
        """Loss and gradient [1 + L] of micro-batches, complete on rank 0."""

        def one(micro: MicroBatch, teacher: Teacher) -> list[float]:
            free = ratios.clone().requires_grad_(True)
            loss = _kl(teacher, self._relaxed_logits(micro, teacher, free, temperature))
            (gradient,) = torch.autograd.grad(loss, [free])
            return [loss.item(), *gradient.double().tolist()]

        return self._shared(numbers, 1 + self.problem.shape.layers, one)

    def pruned_loss(self, schedule: Schedule, batches: int) -> float:
        """The same KL for the physically pruned model, mean over the first ``batches``; charges what it runs."""
        chosen = self.batches[:batches]
        numbers = [number for batch in chosen for number in batch]
        self.team.command({"do": "pruned", "micros": numbers, "schedule": schedule.text()})
        found = dict(zip(numbers, self.share_of_pruned(numbers, schedule), strict=True))
        shape = self.problem.shape
        for number in numbers:
            micro = self.micros[number]
            counts = schedule.counts(micro.n_visual, shape.layers)
            self.charged += int(prefill_flops(shape, counts, micro.n_visual, micro.n_text, self.method).sum())
        return sum(self._weighted(batch, [found[n] for n in batch])[0] for batch in chosen) / len(chosen)

    def share_of_pruned(self, numbers: Sequence[int], schedule: Schedule) -> list[list[float]]:
        """Loss [1] of micro-batches under the physically pruned model, complete on rank 0."""

        def one(micro: MicroBatch, teacher: Teacher) -> list[float]:
            with prune(self.problem.model, method=self.method, schedule=schedule) as session:
                session.sample_keys = micro.batch.keys
                return [_kl(teacher, self._logits(micro.batch, teacher.answer)).item()]

        return self._shared(numbers, 1, one)

    # --- sharing -----------------------------------------------------------------------------------

    def _shared(
        self, numbers: Sequence[int], width: int, one: Callable[[MicroBatch, Teacher], list[float]]
    ) -> list[list[float]]:
        """``width`` numbers per micro-batch, computed by the process that has its teacher; all of them on rank 0."""
        rows: list[list[float] | None] = []
        for number in numbers:
            micro = self.micros[number]
            rows.append(None if micro.teacher is None else one(micro, micro.teacher))
        return self.team.collect(rows, width)

    def _weighted(self, numbers: Sequence[int], rows: Sequence[Sequence[float]]) -> list[float]:
        """Rows of micro-batches added up in their order, each by its share of the answer tokens."""
        whole = sum(self._weights[number] for number in numbers)
        total = [0.0] * len(rows[0])
        for number, row in zip(numbers, rows, strict=True):
            share = self._weights[number] / whole
            total = [so_far + share * value for so_far, value in zip(total, row, strict=True)]
        return total


def _kl(teacher: Teacher, logits: Tensor) -> Tensor:
    student = logits.log_softmax(dim=-1)
    each = (teacher.log_probabilities.exp() * (teacher.log_probabilities - student)).sum(dim=-1)
    return (each * teacher.weight).sum() / teacher.weight.sum()
