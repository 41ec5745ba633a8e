"""Calibration samples with the teacher's answers: what the gradient search minimises.

The teacher is the same frozen model, unpruned. Its greedy answer and the logits that gave it are computed
once; the student is pulled towards them at the same positions. The calibration split's gold answers are
never looked at.

A mini-batch is cut into micro-batches of a stated size, and what these give is added up in their order in float64.
So it does not matter which process computed which, and several processes find what one finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import zip_longest
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vispco.costs import layer_flops, plain_flops, prefill_flops, read_at, relaxed_backward_flops, shared_flops
from vispco.errors import MeasurementError
from vispco.evaluation.decoding import answer_length, generated, stop_tokens
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.prepared import Batch, prepare
from vispco.models.shapes import ModelShape
from vispco.plugin_files import loaded_sources
from vispco.pruning.forward.counts import checked_counts
from vispco.pruning.forward.relaxed import relaxed
from vispco.pruning.forward.shared import SharedPrefill
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import Schedule
from vispco.search.gradient.predictor import prompt_features
from vispco.search.gradient.team import Alone, Team

if TYPE_CHECKING:
    from vispco.problem import Problem


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
    relaxed_flops: int

    def __len__(self) -> int:
        return len(self.batch.rows)


class Calibration:
    """Fixed random mini-batches of the calibration split.

    ``charged`` counts every FLOP from here on as if nothing were shared, ``spent`` those that were run.

    It does not matter who computes them.

    Args:
        batch_size: samples per mini-batch.
        samples: at most this many random ones, shared evenly by the tasks; 0: all of the split.
        micro: samples per micro-batch, a divisor of ``batch_size``; 0: the whole mini-batch.
        recompute: as in :func:`~vispco.pruning.forward.relaxed.relaxed`; the additional forward passes are charged.
        team: the processes that share the work; this one's share is every ``size``-th micro-batch.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        method: Method,
        batch_size: int,
        seed: int,
        *,
        samples: int = 0,
        micro: int = 0,
        recompute: bool = False,
        team: Team | None = None,
    ) -> None:
        self.problem, self.adapter, self.method = evaluator.problem, evaluator.problem.adapter, method
        self.team: Team = team or Alone()
        self.recompute = recompute
        self.charged = self.spent = 0
        self.micros: list[MicroBatch] = []
        if self.team.rank == 0:
            self.team.command(
                {
                    "do": "calibrate",
                    "study": self.problem.portable_text,
                    "plugins": loaded_sources(),
                    "method": method.name,
                    "parameters": method.parameters(),
                    "batch": batch_size,
                    "seed": seed,
                    "samples": samples,
                    "micro": micro,
                    "recompute": recompute,
                }
            )
        self._micros_of_tasks: list[list[int]] = []
        by_task: list[list[list[int]]] = []
        tasks = self.problem.calibration_tasks
        each = -(-samples // len(tasks))
        for task in tasks:
            size = micro or batch_size
            part = prepare(self.problem, task, "calibration", batch_size=size, shuffle=seed, most=each)
            together = batch_size // (micro or batch_size)
            numbers = list(range(len(self.micros), len(self.micros) + len(part.batches)))
            by_task.append([numbers[start : start + together] for start in range(0, len(numbers), together)])
            self._micros_of_tasks.append(numbers)
            tokens = part.n_visual + part.n_text
            shape = self.problem.shape
            for batch in part.batches:
                plain = int(plain_flops(shape, tokens[batch.rows]).sum())
                visual, text = part.n_visual[batch.rows], part.n_text[batch.rows]
                teacher = self._teacher(batch, task.max_new_tokens) if self._is_mine(len(self.micros)) else None
                self._pay(plain if task.max_new_tokens == 1 else 2 * plain)
                self.micros.append(MicroBatch(batch, teacher, visual, text, plain, self._relaxing(visual, text)))
        self.batches = _in_turn(by_task)
        task_of = {n: task for task, numbers in enumerate(self._micros_of_tasks) for n in numbers}
        self._task_of = [task_of[batch[0]] for batch in self.batches]
        self._features: dict[int, Tensor] = {}
        self._widest = max((len(micro) for micro in self.micros), default=0)
        weights = self._shared(range(len(self.micros)), lambda _, teacher: teacher.weight.sum(dim=1).tolist())
        self._weights = [torch.tensor(row, dtype=torch.float64) for row in weights]

    def with_method(self, method: Method) -> Calibration:
        """The same samples and teacher under another method, in one process; its compute is counted from 0."""
        other = copy(self)
        other.method, other.charged, other.spent = method, 0, 0
        other.micros = [
            replace(micro, relaxed_flops=other._relaxing(micro.n_visual, micro.n_text)) for micro in self.micros
        ]
        return other

    def _relaxing(self, visual: NDArray[np.int64], text: NDArray[np.int64]) -> int:
        return relaxing_flops(self.problem.shape, self.method, visual, text, self.recompute)

    def _pay(self, charged: int, spent: int | None = None) -> None:
        self.charged += charged
        self.spent += charged if spent is None else spent

    def _is_mine(self, number: int) -> bool:
        return number % self.team.size == self.team.rank

    def _teacher(self, batch: Batch, max_new_tokens: int) -> Teacher:
        if max_new_tokens == 1:
            logits = self._logits(batch, None)
            answer = logits.argmax(dim=-1)
            return Teacher(answer, logits.log_softmax(dim=-1), torch.ones_like(answer, dtype=torch.float32))
        answer, weight = self._greedy_answer(batch, max_new_tokens)
        return Teacher(answer, self._logits(batch, answer).log_softmax(dim=-1), weight)

    @torch.no_grad()
    def _greedy_answer(self, batch: Batch, max_new_tokens: int) -> tuple[Tensor, Tensor]:
        """Tokens [B, m], and 1 for those up to and with the first that ends the answer."""
        model = self.problem.model
        answer = generated(self.problem, batch, max_new_tokens)
        self._check(batch, answer)
        stops, _ = stop_tokens(model.generation_config)
        ends = torch.isin(answer, torch.tensor(stops, dtype=answer.dtype, device=answer.device)).long()
        weight = (ends.cumsum(dim=1) - ends == 0).float()
        for tokens, row in zip(answer.tolist(), weight, strict=True):
            row[answer_length(model.generation_config, self.problem.processor.tokenizer, tokens) :] = 0
        return answer, weight

    def _check(self, batch: Batch, answer: Tensor) -> None:
        """Refuse answers that cannot be read back: a visual token among them has no picture.

        Raises:
            MeasurementError: names the sample.
        """
        visual = torch.tensor(list(self.adapter.visual_token_ids()), device=answer.device)
        for name, tokens in zip(batch.names, answer, strict=True):
            found = tokens[torch.isin(tokens, visual)].tolist()
            if found:
                raise MeasurementError(
                    f"sample {name!r}: the unpruned model's own answer holds the visual token {found[0]}, so no "
                    "gradients can be taken on it; remove the sample from calibration, or use a trained model"
                )

    @torch.no_grad()
    def _logits(self, batch: Batch, answer: Tensor | None) -> Tensor:
        """float32 [B, m, V] that predict ``answer``: one prefill of the prompt, then the answer on its cache.

        None: any one token.
        """
        model = self.problem.model
        inputs = self.adapter.with_features(batch.inputs, batch.features)
        more = answer is not None and answer.shape[1] > 1
        out = model(**inputs, use_cache=more, logits_to_keep=1)
        if answer is None or not more:
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
        inputs = self.adapter.with_features(self.adapter.with_text(inputs, fed), micro.batch.features)
        with relaxed(
            self.adapter,
            self.method,
            ratios,
            temperature=temperature,
            trailing=m - 1,
            sample_keys=micro.batch.keys,
            vision=micro.batch.vision_for(self.method),
            recompute=self.recompute,
        ):
            return self.problem.model(**inputs, use_cache=False, logits_to_keep=m).logits.float()  # type: ignore[no-any-return]

    def drawn(self, chance: Random) -> int:
        """Number of a mini-batch, by chance: of all tasks equally often, however many mini-batches they have."""
        of_tasks: dict[int, list[int]] = {}
        for number, task in enumerate(self._task_of):
            of_tasks.setdefault(task, []).append(number)
        if len({len(numbers) for numbers in of_tasks.values()}) == 1:
            return chance.randrange(len(self.batches))
        return chance.choice(of_tasks[chance.choice(sorted(of_tasks))])

    def size(self, number: int) -> int:
        """Samples of mini-batch ``number``."""
        return sum(len(self.micros[n]) for n in self.batches[number])

    def features(self, number: int) -> Tensor:
        """What a predictor reads of mini-batch ``number``, [B, F]."""
        if number not in self._features:
            with torch.no_grad():
                prompts = [self.micros[n].batch.prompt(self.adapter) for n in self.batches[number]]
                self._features[number] = torch.cat([prompt_features(prompt) for prompt in prompts])
        return self._features[number]

    def losses(self, number: int, ratios: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """KL(teacher || relaxed student) per answer token of each sample of mini-batch ``number``, and its weight.

        Charges forward and backward. float64 [B] each; weights, the samples' answer tokens, add up to 1. The losses
        are differentiable, once, in ``ratios``, [L] or one row per sample [B, L].
        """
        numbers = self.batches[number % len(self.batches)]
        micros = [self.micros[n] for n in numbers]
        self._pay(sum(micro.relaxed_flops for micro in micros))
        rows = ratios.expand(sum(len(micro) for micro in micros), -1)
        fed = rows.detach().float()
        self.team.command({"do": "loss", "micros": numbers, "ratios": fed.tolist(), "temperature": temperature})
        found = self.share_of_losses(numbers, fed, temperature)
        pairs = list(zip(micros, found, strict=True))
        values = torch.tensor([x for micro, row in pairs for x in row[: len(micro)]], dtype=torch.float64)
        slopes = torch.tensor([x for micro, row in pairs for x in row[len(micro) :]], dtype=torch.float64)
        slopes = slopes.view(len(values), -1)
        weights = torch.cat([self._weights[n] for n in numbers])
        changed = ((rows - rows.detach()).double() * slopes.to(rows.device)).sum(dim=1)
        return values.to(rows.device) + changed, (weights / weights.sum()).to(rows.device)

    def loss(self, number: int, ratios: Tensor, temperature: float) -> Tensor:
        """Weighted mean of :meth:`losses`."""
        values, weights = self.losses(number, ratios, temperature)
        return (values * weights).sum()

    def share_of_losses(self, numbers: Sequence[int], ratios: Tensor, temperature: float) -> list[list[float]]:
        """Losses [b] and gradients [b, L] of micro-batches, complete on rank 0; ``ratios`` are those of all samples."""
        parts, start = {}, 0
        for number in numbers:
            parts[number] = ratios[start : start + len(self.micros[number])]
            start += len(self.micros[number])

        def one(number: int, teacher: Teacher) -> list[float]:
            free = parts[number].clone().requires_grad_(True)
            losses = _kl(teacher, self._relaxed_logits(self.micros[number], teacher, free, temperature))
            (gradient,) = torch.autograd.grad(losses.sum(), [free])
            return [*losses.double().tolist(), *gradient.double().flatten().tolist()]

        return self._shared(numbers, one, 1 + self.problem.shape.layers)

    def pruned_losses(self, schedules: Sequence[Schedule], first: int, last: int) -> tuple[Tensor, Tensor]:
        """The same KL for the physically pruned model on mini-batches ``first`` to ``last - 1``; charges what it runs.

        The schedules run as a tree: what they have in common is run once. Float64 [P, n], and the samples'
        :meth:`even_weights` [n].
        """
        numbers = [number for batch in self.batches[first:last] for number in batch]
        texts = [schedule.text() for schedule in schedules]
        self.team.command({"do": "pruned", "micros": numbers, "schedules": texts})
        found = self.share_of_pruned(numbers, schedules)
        shape = self.problem.shape
        for number in numbers:
            micro = self.micros[number]
            lengths = micro.n_visual, micro.n_text
            counts = self._counts(micro, schedules)
            charged = sum(int(prefill_flops(shape, one, *lengths, self.method).sum()) for one in counts)
            self._pay(charged, int(shared_flops(shape, list(counts), *lengths, self.method).sum()))
        values = [torch.tensor(row, dtype=torch.float64).view(len(schedules), -1) for row in found]
        return torch.cat(values, dim=1), self.even_weights(first, last)

    def even_weights(self, first: int, last: int) -> Tensor:
        """Weights [n] of the samples of mini-batches ``first`` to ``last - 1``: their answer tokens, scaled so that
        tasks weigh the same over just these."""
        own = [torch.cat([self._weights[n] for n in batch]) for batch in self.batches[first:last]]
        tasks = self._task_of[first:last]
        parts = {task: [one for one, its in zip(own, tasks, strict=True) if its == task] for task in tasks}
        totals = {task: torch.cat(part).sum() for task, part in parts.items()}
        mean = torch.stack(list(totals.values())).mean()
        return torch.cat([weights * (mean / totals[task]) for weights, task in zip(own, tasks, strict=True)])

    def pruned_loss(self, schedule: Schedule, batches: int) -> float:
        """Weighted mean of :meth:`pruned_losses` on the first ``batches``."""
        values, weights = self.pruned_losses([schedule], 0, batches)
        return float((values[0] * weights).sum() / weights.sum())

    def share_of_pruned(self, numbers: Sequence[int], schedules: Sequence[Schedule]) -> list[list[float]]:
        """Losses [P * b], policy by policy, of micro-batches under the physically pruned model; complete on rank 0."""

        def one(number: int, teacher: Teacher) -> list[float]:
            micro = self.micros[number]
            losses = torch.zeros(len(schedules), len(micro), dtype=torch.float64)
            limit = self.problem.study.memory_limit
            shared = SharedPrefill(self.adapter, self.method, self._counts(micro, schedules), limit)
            shared.vision = micro.batch.vision_for(self.method)
            inputs = self.adapter.with_features(micro.batch.inputs, micro.batch.features)
            fed = teacher.answer[:, :-1]
            for members, logits in shared.logits(inputs, micro.batch.keys, cached=fed.shape[1] > 0):
                student = logits[:, None].float()
                if fed.shape[1]:
                    student = torch.cat([student, shared.given(fed).float()], dim=1)
                losses[members] = _kl(teacher, student).double().cpu()
            return losses.flatten().tolist()

        return self._shared(numbers, one, len(schedules))

    def _counts(self, micro: MicroBatch, schedules: Sequence[Schedule]) -> NDArray[np.int64]:
        """[P, b, L]."""
        layers = self.problem.shape.layers
        given = [schedule.counts(micro.n_visual, layers) for schedule in schedules]
        return np.stack([checked_counts(one, micro.n_visual, layers, self.method) for one in given])

    def _shared(
        self, numbers: Sequence[int], one: Callable[[int, Teacher], list[float]], each: int = 1
    ) -> list[list[float]]:
        """``each`` numbers per sample of micro-batches, computed where their teachers are; all of them on rank 0."""
        rows: list[list[float] | None] = []
        for number in numbers:
            teacher = self.micros[number].teacher
            row = None if teacher is None else one(number, teacher)
            rows.append(None if row is None else row + [0.0] * (self._widest * each - len(row)))
        found = self.team.collect(rows, self._widest * each)
        return [row[: len(self.micros[number]) * each] for number, row in zip(numbers, found, strict=bool(found))]


def relaxing_flops(
    shape: ModelShape, method: Method, visual: NDArray[np.int64], text: NDArray[np.int64], recompute: bool = False
) -> int:
    """FLOPs of a relaxed forward and backward of prompts with these tokens, [B]."""
    plain = int(plain_flops(shape, visual + text).sum())
    relaxing = plain + int(relaxed_backward_flops(shape, visual + text).sum())
    for layer in range(1, shape.layers):
        relaxing += int(method.scoring_flops(read_at(shape, layer, method), visual, text).sum())
    relaxing += int(method.begin_flops(shape, visual, text).sum())
    return relaxing + recompute * (plain - int(layer_flops(shape, visual + text, 0).sum()))


def whole_rounds(problem: Problem, batches: int) -> int:
    """At least so many mini-batches, each of one task, that every task has as many of them, or all that it has."""
    tasks = len(problem.calibration_tasks)
    return -(-batches // tasks) * tasks


def _in_turn(by_task: Sequence[list[list[int]]]) -> list[list[int]]:
    """The tasks' mini-batches in one order: one of each, another of each, ... while they last."""
    rounds = zip_longest(*by_task)
    return [batch for one_of_each in rounds for batch in one_of_each if batch is not None]


def _kl(teacher: Teacher, logits: Tensor) -> Tensor:
    """[B], mean over the sample's answer tokens."""
    student = logits.log_softmax(dim=-1)
    each = (teacher.log_probabilities.exp() * (teacher.log_probabilities - student)).sum(dim=-1)
    return (each * teacher.weight).sum(dim=1) / teacher.weight.sum(dim=1)
