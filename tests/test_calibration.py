"""The teacher and the loss of the gradient search, for one-token and for longer answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from conftest import SMALL, fresh
from vispco.costs import layer_flops, prefill_flops, relaxed_backward_flops
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.prepared import prepare
from vispco.problem import Problem
from vispco.pruning.forward.relaxed import relaxed
from vispco.pruning.methods import make_method
from vispco.pruning.prune import prune
from vispco.pruning.schedules import MultiStep, Schedule, Step, keep_all
from vispco.search.gradient.distillation import Calibration, _kl, whole_rounds
from vispco.search.gradient.refine import nearest_of_each
from vispco.tasks.mosaic_vqa import MosaicVQA


class Longer(MosaicVQA):
    max_new_tokens = 3


@pytest.fixture(params=[1, 3], ids=["one-token", "longer"])
def evaluator(request: pytest.FixtureRequest, problem: Problem) -> Evaluator:
    own = fresh(problem, SMALL)
    if request.param == 3:
        own.__dict__["tasks"] = [Longer(problem.tasks[0].sizes)]
    return Evaluator(own)


def test_teacher_is_greedy_generation(evaluator: Evaluator) -> None:
    calibration = Calibration(evaluator, make_method("fastv"), 8, seed=0)
    model, m = evaluator.problem.model, evaluator.problem.tasks[0].max_new_tokens
    assert sum(len(micro.batch.rows) for micro in calibration.micros) == 16
    for micro in calibration.micros:
        mini = micro.teacher
        assert mini is not None
        inputs = evaluator.problem.adapter.with_features(micro.batch.inputs, micro.batch.features)
        out = model.generate(
            **inputs, max_new_tokens=m, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
        assert mini.answer.tolist() == tokens.tolist()
        eos = model.generation_config.eos_token_id
        for row, (answer, weight) in enumerate(zip(mini.answer.tolist(), mini.weight.tolist(), strict=True)):
            length = answer.index(eos) + 1 if eos in answer else len(answer)
            assert weight == [1.0] * length + [0.0] * (len(answer) - length)
            for step in range(length):
                expected = out.logits[step][row].log_softmax(-1)
                assert (mini.log_probabilities[row, step] - expected).abs().max() <= 1e-3


@pytest.mark.parametrize("pad", ["its own", "the end token", "the end token, of several", "nothing ends"])
def test_padding_behind_an_answer_has_no_weight(
    evaluator: Evaluator, pad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what fills up behind an answer is what ends one, as in Qwen's models."""
    config = evaluator.problem.model.generation_config
    ends = {"its own": [7], "the end token": [7], "the end token, of several": [5, 7], "nothing ends": None}[pad]
    fill = 0 if pad == "its own" else 7
    said = torch.tensor([[9, 7, fill, fill], [7, fill, fill, fill], [9, 9, 9, 7], [9, 6, 9, 9]])
    monkeypatch.setattr(config, "eos_token_id", ends)
    calibration = Calibration(evaluator, make_method("fastv"), 8, seed=0)
    batch = calibration.micros[0].batch
    said = said.repeat(len(batch.names) // 4, 1)
    asked = batch.inputs["input_ids"]

    def generate(**inputs: Any) -> Tensor:
        return torch.cat([asked, said], dim=1)

    monkeypatch.setattr(evaluator.problem.model, "generate", generate)
    answer, weight = calibration._greedy_answer(batch, 4)
    assert answer.tolist() == said.tolist()
    expected = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert weight[:4].tolist() == (expected if ends else [[1.0] * 4] * 4)


def test_a_part_of_the_mini_batches_holds_all_tasks(problem: Problem) -> None:
    class Other(MosaicVQA):
        name = "other"

    own = fresh(problem, SMALL)
    own.__dict__["tasks"] = [MosaicVQA(problem.tasks[0].sizes), Other({**problem.tasks[0].sizes, "calibration": 32})]
    calibration = Calibration(Evaluator(own), make_method("fastv"), 8, seed=0, micro=4)
    firsts = [batch[0] for batch in calibration.batches]
    assert sorted(n for batch in calibration.batches for n in batch) == list(range(4 + 8))
    assert firsts == [0, 4, 2, 6, 8, 10], "one of each task, while they last"
    _, weights = calibration.pruned_losses([keep_all()], 0, 5)
    first, second = weights[[*range(8), *range(16, 24)]], weights[[*range(8, 16), *range(24, 40)]]
    assert first.sum().item() == pytest.approx(second.sum().item())
    assert torch.equal(calibration.even_weights(0, 5), weights)
    drawn = Counter(calibration.drawn(Random(f"x/{step}")) for step in range(3000))
    assert sorted(drawn) == list(range(6))
    assert drawn[0] + drawn[2] == pytest.approx(1500, rel=0.1)
    assert all(drawn[number] == pytest.approx(375, rel=0.25) for number in (1, 3, 4, 5))
    alone = Calibration(Evaluator(problem), make_method("fastv"), 8, seed=0, micro=4)
    assert alone.batches == [[0, 1], [2, 3]]
    assert all(alone.drawn(Random(step)) == Random(step).randrange(2) for step in range(20))


def test_a_short_comparison_leaves_no_small_task_out(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller task alone tells two schedules apart, and its one mini-batch comes among the first."""

    class Other(MosaicVQA):
        name = "other"

    own = fresh(problem, SMALL)
    own.__dict__["tasks"] = [MosaicVQA(problem.tasks[0].sizes), Other({**problem.tasks[0].sizes, "calibration": 64})]
    calibration = Calibration(Evaluator(own), make_method("fastv"), 16, seed=0)
    small, near, far = calibration._micros_of_tasks[0], Step(2, 0.5), Step(3, 0.5)

    def losses(self: Calibration, numbers: Sequence[int], schedules: Sequence[Schedule]) -> list[list[float]]:
        table = {far: {True: 1.0, False: 0.1}, near: {True: 0.1, False: 0.3}}
        return [
            [table[schedule][number in small] for schedule in schedules for _ in range(len(self.micros[number]))]
            for number in numbers
        ]

    monkeypatch.setattr(Calibration, "share_of_pruned", losses)
    rounds = whole_rounds(own, 1)
    assert nearest_of_each(calibration, [[far, near]], rounds, rounds)[0][0] == near
    assert nearest_of_each(calibration, [[far, near]], rounds, len(calibration.batches))[0][0] == near


def test_tasks_weigh_the_same_where_schedules_are_compared(problem: Problem) -> None:
    class Long(Longer):
        name = "long"

    own = Problem(problem.study, SMALL, model=problem.model, processor=problem.processor)
    own.__dict__["tasks"] = [MosaicVQA(problem.tasks[0].sizes), Long(problem.tasks[0].sizes)]
    calibration = Calibration(Evaluator(own), make_method("fastv"), 8, seed=0)
    _, weights = calibration.pruned_losses([keep_all()], 0, 4)
    first, second = weights.view(2, 2, 8).sum(dim=(0, 2)).tolist()
    assert first == pytest.approx(second)
    assert [whole_rounds(own, batches) for batches in (1, 2, 3)] == [2, 2, 4]
    alone = Calibration(Evaluator(problem), make_method("fastv"), 8, seed=0)
    assert alone.pruned_losses([keep_all()], 0, 2)[1].tolist() == [1.0] * 16
    assert whole_rounds(problem, 3) == 3


def test_no_pruning_has_no_loss_and_pruning_has_some(evaluator: Evaluator) -> None:
    calibration = Calibration(evaluator, make_method("fastv"), 8, seed=0)
    layers = evaluator.problem.shape.layers
    assert calibration.pruned_loss(keep_all(), 2) == pytest.approx(0.0, abs=1e-5)
    assert calibration.loss(0, torch.ones(layers), 0.1).item() == pytest.approx(0.0, abs=1e-5)
    hard = calibration.pruned_loss(Step(1, 0.0), 2)
    assert hard > 0.01


def test_schedules_checked_together_give_what_each_gives_alone(evaluator: Evaluator) -> None:
    """And what each gives with the model physically pruned, without the tree; what they share is spent once."""
    method, shape = make_method("fastv"), evaluator.problem.shape
    calibration = Calibration(evaluator, method, 8, seed=0)
    schedules = [Step(2, 0.5), MultiStep((2, 4), (0.5, 0.1)), keep_all(), Step(1, 0.0)]
    calibration.charged = calibration.spent = 0
    together, weights = calibration.pruned_losses(schedules, 0, 2)
    charged, spent = calibration.charged, calibration.spent
    calibration.charged = calibration.spent = 0
    for schedule, row in zip(schedules, together, strict=True):
        alone, same = calibration.pruned_losses([schedule], 0, 2)
        torch.testing.assert_close(alone[0], row, rtol=1e-3, atol=1e-5)
        assert torch.equal(same, weights)
        slow = []
        for micro in calibration.micros:
            assert micro.teacher is not None
            with torch.no_grad(), prune(evaluator.problem.model, method=method, schedule=schedule) as session:
                session.sample_keys, session.vision = micro.batch.keys, micro.batch.vision_for(method)
                slow.append(_kl(micro.teacher, calibration._logits(micro.batch, micro.teacher.answer)).double())
        torch.testing.assert_close(torch.cat(slow), row, rtol=1e-3, atol=1e-5)
    assert calibration.charged == calibration.spent == charged
    assert 0 < spent < charged - shape.hidden


def test_relaxed_loss_is_the_pruned_loss_at_a_hard_schedule(evaluator: Evaluator) -> None:
    calibration = Calibration(evaluator, make_method("fastv"), 16, seed=0)
    schedule = Step(3, 0.25)
    relaxed = calibration.loss(0, torch.tensor(schedule.keep_ratio(8)), 0.1)
    assert relaxed.item() == pytest.approx(calibration.pruned_loss(schedule, 1), rel=1e-3, abs=1e-5)


def test_every_flop_is_charged(evaluator: Evaluator) -> None:
    method = make_method("fastv")
    calibration = Calibration(evaluator, method, 16, seed=0)
    (part,) = calibration.micros
    ids, mask = part.batch.inputs["input_ids"], part.batch.inputs["attention_mask"]
    visual = (ids == evaluator.problem.model.config.image_token_id).sum(1).numpy()
    text = mask.sum(1).numpy() - visual
    shape = evaluator.problem.shape
    full = keep_all().counts(visual, shape.layers)
    plain = int(prefill_flops(shape, full, visual, text).sum())
    # Longer answers are found first and asked for their logits then, so there are two prefills.
    longer = evaluator.problem.tasks[0].max_new_tokens > 1
    assert calibration.charged == plain * (2 if longer else 1)
    calibration.charged = 0
    calibration.loss(0, torch.ones(shape.layers), 0.1)
    scoring = 7 * int(method.scoring_flops(shape, visual, text).sum())
    assert calibration.charged == plain + scoring + int(relaxed_backward_flops(shape, visual + text).sum())
    again = Calibration(evaluator, method, 16, seed=0, recompute=True)
    before, again.charged = calibration.charged, 0
    again.loss(0, torch.ones(shape.layers), 0.1)
    assert again.charged == before + plain // shape.layers * (shape.layers - 1)
    calibration.charged = 0
    schedule = Step(2, 0.5)
    calibration.pruned_loss(schedule, 1)
    counts: Any = schedule.counts(visual, shape.layers)
    assert calibration.charged == int(prefill_flops(shape, counts, visual, text, method).sum())


def test_relaxed_flops_are_torchs(problem: Problem) -> None:
    """Forward and backward of the relaxed model, counted by torch, without scoring, pictures and head."""
    method, adapter, shape = make_method("fastv"), problem.adapter, problem.shape
    part = prepare(problem, problem.tasks[0], "calibration", batch_size=1)
    batch = part.batches[0]
    inputs = adapter.with_features(batch.inputs, batch.features)
    n = int(part.n_visual[batch.rows][0] + part.n_text[batch.rows][0])
    ratios = torch.full((shape.layers,), 0.5, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        with relaxed(adapter, method, ratios):
            logits = problem.model(**inputs, use_cache=False, logits_to_keep=1).logits
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
        torch.autograd.grad(logits.sum(), [ratios])
    head = 2 * shape.hidden * logits.shape[-1]
    scoring = (shape.layers - 1) * int(
        method.scoring_flops(shape, part.n_visual[batch.rows], part.n_text[batch.rows])[0]
    )
    assert forward.get_total_flops() == shape.layers * layer_flops(shape, n) + scoring + head
    assert backward.get_total_flops() == relaxed_backward_flops(shape, n) + head
    with relaxed(adapter, method, ratios, recompute=True):
        logits = problem.model(**inputs, use_cache=False, logits_to_keep=1).logits
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
        torch.autograd.grad(logits.sum(), [ratios])
    again = (shape.layers - 1) * layer_flops(shape, n)
    assert backward.get_total_flops() <= relaxed_backward_flops(shape, n) + head + again
    assert backward.get_total_flops() > relaxed_backward_flops(shape, n) + head + 0.8 * again, "stops at what it needs"


def test_every_sample_has_its_own_ratios(evaluator: Evaluator) -> None:
    """Losses and gradients of a mini-batch with a row of ratios per sample are those of each row for all."""
    calibration = Calibration(evaluator, make_method("fastv"), 8, seed=0, micro=4)
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(8, 8, generator=generator, dtype=torch.float64).sort(dim=1, descending=True).values
    rows[:, 0] = 1.0
    free = rows.clone().requires_grad_(True)
    losses, weights = calibration.losses(0, free, 0.1)
    (gradient,) = torch.autograd.grad(losses.sum(), [free])
    assert float(weights.sum()) == pytest.approx(1.0)
    for row in range(8):
        one = rows[row].clone().requires_grad_(True)
        alone = calibration.losses(0, one, 0.1)[0][row]
        (slope,) = torch.autograd.grad(alone, [one])
        assert alone.item() == pytest.approx(losses[row].item(), rel=1e-4, abs=1e-6)
        assert torch.allclose(slope, gradient[row], rtol=1e-3, atol=1e-5)
