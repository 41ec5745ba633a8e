"""Units of work: some policies on one batch of one task. What an executor hands out, and how one is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vispco.costs import layer_flops, unpruned_flops
from vispco.errors import MeasurementError, UserError
from vispco.evaluation.agreement import agreed, likelihood
from vispco.evaluation.board import Board, Worker, describe
from vispco.evaluation.decoding import answer_length, generated, needs_generate, stop_tokens
from vispco.evaluation.letters import likeliest_letters
from vispco.evaluation.prepared import Batch, PreparedSplit, make_batch, prepare_split
from vispco.pruning.forward.shared import SharedPrefill
from vispco.pruning.methods.base import Method
from vispco.pruning.prune import prune
from vispco.pruning.schedules import Counts
from vispco.tasks.rendering import render_prompt

if TYPE_CHECKING:
    from vispco.problem import Problem


@dataclass(frozen=True, eq=False)
class Unit:
    """Policies ``names`` [P] with ``counts`` int [P, B, L] on batch number ``batch`` of task number ``task``.

    ``resolution``: of the pictures; None: the study's own.
    """

    split: str
    task: int
    batch: int
    method: Method
    names: tuple[str, ...]
    counts: Counts
    resolution: float | None = None


@dataclass(frozen=True, eq=False)
class UnitResult:
    """``scores`` float32 [P, B]; rows of policies in ``errors`` (number -> why) are NaN.

    ``recomputed_flops``: what a memory limit cost.
    """

    scores: NDArray[np.float32]
    errors: Mapping[int, str]
    recomputed_flops: int = 0


class Executor(Protocol):
    """Runs units somewhere; the process that asks stays the only one that writes.

    ``board`` is shown who works on what while units run.
    """

    board: Board

    def attach(self, runner: UnitRunner) -> None:
        """Told which runner of the asking process has the splits prepared."""

    def workers(self) -> list[Worker]:
        """Who works on what."""

    def run(self, units: Iterable[tuple[int, Unit]]) -> Iterator[tuple[int, UnitResult]]:
        """Numbered units in, their results out, in any order, each once. ``units`` is read as work gets done."""

    def close(self) -> None:
        """Give back what it holds."""


class UnitRunner:
    """Runs units with a model of its own; splits are prepared when first needed.

    ``memory_limit``: bytes of hidden states that the shared prefill may put aside; None: no limit. ``answers``: the
    last text that each sample was scored by, by (split, task, number of the sample).
    """

    def __init__(self, problem: Problem, memory_limit: int | None = None) -> None:
        self.problem = problem
        self.memory_limit = memory_limit
        self._prepared: dict[str, list[PreparedSplit]] = {}
        self.answers: dict[tuple[str, str, int], str] = {}
        self._texts: dict[tuple[int, ...], str] = {}
        self._scores: dict[tuple[str, str, int, str], float] = {}
        self._plain: dict[tuple[str, str, tuple[int, ...]], Tensor] = {}
        self._most_rows: int | None = None
        self._smaller: dict[float, UnitRunner] = {}

    def at(self, resolution: float | None) -> UnitRunner:
        """The runner of units at ``resolution``, with the same model."""
        if resolution is None or resolution == self.problem.study.model.resolution:
            return self
        if resolution not in self._smaller:
            runner = UnitRunner(self.problem.at_resolution(resolution), self.memory_limit)
            runner.answers = self.answers
            self._smaller[resolution] = runner
        return self._smaller[resolution]

    def prepared(self, split: str) -> list[PreparedSplit]:
        """The tasks' samples of ``split``, ready to run."""
        if split not in self._prepared:
            self._prepared[split] = prepare_split(self.problem, split)
        return self._prepared[split]

    def run(self, unit: Unit) -> UnitResult:
        """Scores of the unit's policies; those that cannot be measured are named in the result's errors.

        What runs out of memory is run again in halves, down to single samples.
        """
        if (other := self.at(unit.resolution)) is not self:
            return other.run(unit)
        part = self.prepared(unit.split)[unit.task]
        return self._run(unit, part, part.batches[unit.batch], unit.counts)

    def _run(self, unit: Unit, part: PreparedSplit, batch: Batch, counts: Counts) -> UnitResult:
        if self._most_rows is not None and len(batch.rows) > self._most_rows:
            return self._in_halves(unit, part, batch, counts)
        try:
            return self._together(unit, part, batch, counts)
        except UserError as error:
            if len(batch.rows) > 1:
                self._in_halves(unit, part, batch, counts)  # raises with the name of the sample
            elif (where := _where(part, batch)) not in str(error):
                error.args = (f"{where}: {' '.join(str(error).split())}",)
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                return self._without_broken(unit, part, batch, counts, error)
            reason = f"out of memory with one sample: {_one_line(error)}"
        # Outside the except block, so that the failed attempt's tensors are gone.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch.rows) == 1:
            return _failed(counts, reason)
        self._most_rows = len(batch.rows) // 2
        return self._in_halves(unit, part, batch, counts)

    def _without_broken(
        self, unit: Unit, part: PreparedSplit, batch: Batch, counts: Counts, error: Exception
    ) -> UnitResult:
        """What the model cannot run ends the policies that asked for it, with the name of the first such sample."""
        if len(batch.rows) > 1:
            return self._in_halves(unit, part, batch, counts)
        if len(counts) > 1:  # any one of them may have broken the tree of all
            return _side_by_side([self._run(unit, part, batch, one[None]) for one in counts])
        reason = f"{type(error).__name__}: {_one_line(error)}"
        return _failed(counts, f"{_where(part, batch)} cannot be measured: {reason}")

    def _in_halves(self, unit: Unit, part: PreparedSplit, batch: Batch, counts: Counts) -> UnitResult:
        prompts = [render_prompt(self.problem.processor, sample) for sample in part.samples]
        middle = (len(batch.rows) + 1) // 2
        halves = []
        for where in (slice(0, middle), slice(middle, None)):
            rows = make_batch(self.problem, part.task, part.samples, prompts, batch.rows[where].tolist())
            halves.append(self._run(unit, part, rows, counts[:, where]))
            if len(halves[0].errors) == len(counts):  # nobody needs the rest
                return UnitResult(np.full(counts.shape[:2], np.nan, dtype=np.float32), halves[0].errors)
        return UnitResult(
            np.concatenate([half.scores for half in halves], axis=1),
            {**halves[1].errors, **halves[0].errors},
            sum(half.recomputed_flops for half in halves),
        )

    def _together(self, unit: Unit, part: PreparedSplit, batch: Batch, counts: Counts) -> UnitResult:
        """All policies in one tree; if the tree breaks, each alone, so that only the broken ones fail."""
        if part.task.answer_by == "generate" and needs_generate(self.problem.model.generation_config):
            return self._generated(unit, part, batch, counts)
        try:
            return self._tree(unit, part, batch, counts)
        except MeasurementError as error:
            if len(counts) == 1:
                return _failed(counts, _one_line(error))
        return _side_by_side([self._together(unit, part, batch, one[None]) for one in counts])

    def _tree(self, unit: Unit, part: PreparedSplit, batch: Batch, counts: Counts) -> UnitResult:
        inputs = self.problem.adapter.with_features(batch.inputs, batch.features)
        scores, errors = np.full(counts.shape[:2], np.nan, dtype=np.float32), {}
        shared = SharedPrefill(self.problem.adapter, unit.method, counts, self.memory_limit)
        shared.vision = batch.vision_for(unit.method)
        stop, pad = stop_tokens(self.problem.model.generation_config)
        score, paid = self.problem.study.score, 0
        if score != "task":
            plain, paid = self._plain_answers(unit, part, batch)
        for members, logits in shared.logits(inputs, batch.keys, cached=part.task.max_new_tokens > 1):
            if not bool(torch.isfinite(logits).all()):
                errors.update(dict.fromkeys(members, _not_finite(part)))
                continue
            if score == "likelihood":
                rest = [shared.given(plain[:, :-1])] if plain.shape[1] > 1 else []
                scores[members] = likelihood(torch.cat([logits[:, None], *rest], dim=1), plain, stop)
                continue
            if score == "agreement":
                scores[members] = agreed(shared.greedy(logits, part.task.max_new_tokens, stop, pad), plain, stop)
                continue
            if part.task.answer_by == "likelihood":
                options = [len(part.samples[row].options) for row in batch.rows]
                answers = likeliest_letters(logits, options, self.problem.processor.tokenizer)
            else:
                answers = self._read(shared.greedy(logits, part.task.max_new_tokens, stop, pad))
            scores[members] = self._score(unit.split, part, batch, answers)
        return UnitResult(scores, errors, recomputed_flops(shared) + paid)

    def _plain_answers(self, unit: Unit, part: PreparedSplit, batch: Batch) -> tuple[Tensor, int]:
        """The plain model's answers to a batch, tokens [B, m], and the FLOPs of their prefill the first time."""
        key = (unit.split, part.task.name, tuple(batch.rows.tolist()))
        if key in self._plain:
            return self._plain[key], 0
        adapter, shape = self.problem.adapter, self.problem.shape
        visual, text = part.n_visual[batch.rows], part.n_text[batch.rows]
        everything = np.repeat(visual[:, None], shape.layers, axis=1)[None]
        shared = SharedPrefill(adapter, unit.method, everything, self.memory_limit)
        inputs, most = adapter.with_features(batch.inputs, batch.features), part.task.max_new_tokens
        stop, pad = stop_tokens(self.problem.model.generation_config)
        for _, logits in shared.logits(inputs, batch.keys, cached=most > 1):
            self._plain[key] = shared.greedy(logits, most, stop, pad).clone()
        return self._plain[key], int(unpruned_flops(shape, visual, text).sum())

    @torch.inference_mode()
    def _generated(self, unit: Unit, part: PreparedSplit, batch: Batch, counts: Counts) -> UnitResult:
        """Each policy alone, by the model's own ``generate``: its settings change tokens in ways of their own."""
        model, errors = self.problem.model, {}
        scores = np.full(counts.shape[:2], np.nan, dtype=np.float32)
        beams = model.generation_config.num_beams or 1
        for number, given in enumerate(counts):
            try:
                with prune(model, method=unit.method, schedule=GivenCounts(given)) as session:
                    session.sample_keys = batch.keys
                    session.vision = batch.vision_for(unit.method) if beams == 1 else None
                    found = generated(self.problem, batch, part.task.max_new_tokens)
            except MeasurementError as error:
                errors[number] = _one_line(error)
            else:
                scores[number] = self._score(unit.split, part, batch, self._read(found))
        return UnitResult(scores, errors)

    def _read(self, tokens: Tensor) -> list[str]:
        """Texts [B] of tokens [B, m]; equal ones are read once."""
        found = []
        for ids in map(tuple, tokens.tolist()):
            if ids not in self._texts:
                tokenizer = self.problem.processor.tokenizer
                length = answer_length(self.problem.model.generation_config, tokenizer, ids)
                self._texts[ids] = tokenizer.decode(list(ids[:length]), skip_special_tokens=True)
            found.append(self._texts[ids])
        return found

    def _score(self, split: str, part: PreparedSplit, batch: Batch, answers: Sequence[str]) -> NDArray[np.float32]:
        """Scores [B] of the answers [B]; equal answers to one question are scored once."""
        found = np.zeros(len(batch.rows), dtype=np.float32)
        for place, (row, answer) in enumerate(zip(batch.rows.tolist(), answers, strict=True)):
            key = (split, part.task.name, row, answer)
            if key not in self._scores:
                self._scores[key] = part.task.score(part.samples[row], answer)
            self.answers[key[:-1]] = answer
            found[place] = self._scores[key]
        return found


class InProcess:
    """Runs units in this process, one after another."""

    def __init__(self, runner: UnitRunner) -> None:
        self.runner = runner
        self.board = Board()
        self._worker = Worker("driver")

    def attach(self, runner: UnitRunner) -> None:
        self.runner = runner

    def workers(self) -> list[Worker]:
        return [self._worker]

    def run(self, units: Iterable[tuple[int, Unit]]) -> Iterator[tuple[int, UnitResult]]:
        for number, unit in units:
            self._worker.begin(describe(unit, self.runner))
            self.board.show(self.workers())
            result = self.runner.run(unit)
            self._worker.done += 1
            yield number, result
        self._worker.begin("")

    def close(self) -> None:
        return None


@dataclass(frozen=True, eq=False)
class GivenCounts:
    """The policy of counts [B, L] that are known already; samples may have several rows side by side, as beams do."""

    given: Counts

    def counts(self, n_visual: Counts, layers: int, context: object = None) -> Counts:
        return self.given.repeat(len(n_visual) // len(self.given), axis=0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, on whatever device, or Python ran out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return "can't allocate memory" in text or "out of memory" in text


def _where(part: PreparedSplit, batch: Batch) -> str:
    """The first sample of ``batch``, for messages."""
    sample = part.samples[int(batch.rows[0])]
    return f"{getattr(sample.images, 'where', f'task {part.task.name!r}')}: sample {sample.id!r}"


def _failed(counts: Counts, reason: str) -> UnitResult:
    scores = np.full(counts.shape[:2], np.nan, dtype=np.float32)
    return UnitResult(scores, dict.fromkeys(range(len(counts)), reason))


def _side_by_side(alone: Sequence[UnitResult]) -> UnitResult:
    """The result of policies that ran one by one."""
    return UnitResult(
        np.concatenate([result.scores for result in alone]),
        {number: result.errors[0] for number, result in enumerate(alone) if result.errors},
        sum(result.recomputed_flops for result in alone),
    )


def _not_finite(part: PreparedSplit) -> str:
    return f"logits are not finite on task {part.task.name!r}; check the model's weights and dtype"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def recomputed_flops(shared: SharedPrefill) -> int:
    """FLOPs of the layers that a memory limit made it run again."""
    shape = shared.adapter.shape()
    return sum(int(layer_flops(shape, tokens, layer).sum()) for layer, tokens in shared.recomputed)
