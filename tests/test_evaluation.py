"""The shared evaluator: right numbers, cached by content, independent of what else was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vispco
from conftest import SMALL
from vispco.costs import prefill_flops
from vispco.errors import ConfigError, MeasurementError, ScheduleError
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.prepared import prepare
from vispco.problem import Problem
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import Ratios, Step
from vispco.storage.store import Store


def test_equals_a_plain_transformers_loop(problem: Problem) -> None:
    """Accuracy of the unpruned and of a pruned model, sample by sample, with generate and the processor."""
    evaluator = Evaluator(problem)
    model, processor = problem.loaded
    samples = problem.tasks[0].samples("search")
    for schedule in (Step(0, 1.0), Step(2, 0.25)):
        expected = []
        for sample in samples:
            inputs = processor(images=list(sample.images), text=f"<image> {sample.question}", return_tensors="pt")
            with torch.no_grad(), vispco.prune(model, method="fastv", schedule=schedule):
                out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            answer = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1]])
            expected.append(float(answer == sample.answers[0]))
        found = evaluator.evaluate([schedule], "search")[0]
        assert found.scores["mosaic-vqa"].tolist() == expected
        assert found.accuracy == pytest.approx(np.mean(expected))


def test_costs_of_an_evaluation(problem: Problem) -> None:
    evaluator = Evaluator(problem)
    schedule = Step(3, 0.4)
    found = evaluator.evaluate([schedule])[0]
    part = evaluator.prepared("search")[0]
    counts = schedule.counts(part.n_visual, 8)
    assert set(part.n_visual.tolist()) == {64}
    each = prefill_flops(problem.shape, counts, part.n_visual, part.n_text, make_method("fastv"))
    assert found.flops == each.sum() == evaluator.price(schedule)
    assert found.flops_ratio == evaluator.flops_ratio(schedule)
    assert found.keep_ratio == (1.0, 1.0, 1.0, *[26 / 64] * 5)
    assert evaluator.unpruned("search").flops_ratio == 1.0
    assert evaluator.no_image("search").keep_ratio == (0.0,) * 8


def test_results_do_not_depend_on_batches_or_order(problem: Problem) -> None:
    one_by_one = Problem.from_text(SMALL.replace("batch_size: 8", "batch_size: 1"))
    schedules = [Step(1, 0.5), Step(4, 0.1), Ratios([1, 1, 0.8, 0.8, 0.3, 0.3, 0.0, 0.0])]
    first = Evaluator(problem).evaluate(schedules)
    second = Evaluator(one_by_one).evaluate(schedules[::-1])[::-1]
    for a, b in zip(first, second, strict=True):
        assert a.scores["mosaic-vqa"].tolist() == b.scores["mosaic-vqa"].tolist()
        assert a.flops == b.flops


def test_cached_by_content(problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    first = Evaluator(problem, store).evaluate([Step(2, 0.5)])[0]
    assert first.spent_flops == first.flops > 0
    fresh = Evaluator(problem, store)
    monkeypatch.setattr(fresh.runner, "run", lambda unit: pytest.fail("measured again"))
    again, same_counts = fresh.evaluate([Step(2, 0.5), Step(2, 0.501)])
    assert again.spent_flops == same_counts.spent_flops == 0
    assert again.id == same_counts.id == first.id
    assert again.scores["mosaic-vqa"].tolist() == first.scores["mosaic-vqa"].tolist()
    assert same_counts.schedule == "step(layer=2, keep=0.501)"
    assert (again.accuracy, again.flops_ratio, again.tasks) == (first.accuracy, first.flops_ratio, first.tasks)


def test_every_part_of_the_context_changes_the_id(problem: Problem) -> None:
    evaluator = Evaluator(problem)
    base = evaluator.evaluate([Step(2, 0.5)])[0]
    others = {
        "counts": evaluator.evaluate([Step(3, 0.5)])[0],
        "split": evaluator.evaluate([Step(2, 0.5)], "held_out")[0],
        "method": evaluator.evaluate([Step(2, 0.5)], method=make_method("random"))[0],
        "seed": evaluator.evaluate([Step(2, 0.5)], method=make_method("random", {"seed": 1}))[0],
    }
    model = problem.model
    weight = model.lm_head.weight
    saved = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0, 0] += 1.0
        others["weights"] = Evaluator(problem).evaluate([Step(2, 0.5)])[0]
    finally:
        with torch.no_grad():
            weight.copy_(saved)
    ids = [base.id, *(other.id for other in others.values())]
    assert len(set(ids)) == len(ids), others.keys()


def test_bad_models_and_schedules(problem: Problem) -> None:
    evaluator = Evaluator(problem)
    with pytest.raises(ScheduleError, match="layers 0 to 7"):
        evaluator.evaluate([Step(8, 0.5)])
    with pytest.raises(ScheduleError, match="gives 3 keep ratios"):
        evaluator.evaluate([Ratios([1, 1, 0.5])])
    with pytest.raises(ScheduleError, match="none before layer 0"):
        evaluator.evaluate([Step(0, 0.5)])
    norm = problem.model.model.language_model.norm.weight
    saved = norm.detach().clone()
    try:
        with torch.no_grad():
            norm.fill_(float("nan"))
        with pytest.raises(MeasurementError, match="not finite"):
            Evaluator(problem).evaluate([Step(2, 0.5)])
    finally:
        with torch.no_grad():
            norm.copy_(saved)


def test_budgets(problem: Problem) -> None:
    floor = 0.25
    assert problem.budgets(floor) == pytest.approx([0.375, 0.625, 0.875])
    listed = Problem.from_text(SMALL.replace("budgets: 3", "budgets: [0.9, 0.3]"))
    assert listed.budgets(floor) == [0.3, 0.9]
    with pytest.raises(ConfigError, match=r"budget 0\.3 lies outside \[0\.4000, 1\]"):
        listed.budgets(0.4)


def test_shuffled_batches_hold_every_sample_once(problem: Problem) -> None:
    part = prepare(problem, problem.tasks[0], "calibration", batch_size=5, shuffle=3)
    rows = np.concatenate([batch.rows for batch in part.batches])
    assert sorted(rows.tolist()) == list(range(16))
    assert rows.tolist() != sorted(rows.tolist())
    same = prepare(problem, problem.tasks[0], "calibration", batch_size=5, shuffle=3)
    assert [b.rows.tolist() for b in part.batches] == [b.rows.tolist() for b in same.batches]


def test_objective_drives_a_users_own_study(problem: Problem) -> None:
    import optuna

    study: Any = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(vispco.objective(problem), n_trials=3)
    for trial in study.trials:
        schedule = vispco.parse_schedule(trial.user_attrs["schedule"])
        found = Evaluator(problem).evaluate([schedule])[0]
        assert trial.values == [found.accuracy, found.flops_ratio]


class ByLoudness:
    """A policy with a schedule of its own for every sample, from the prompt's embeddings."""

    def counts(self, n_visual: Any, layers: int, context: Any = None) -> Any:
        loud = (context.embeddings.float().norm(dim=-1) * context.visual).sum(dim=1).numpy()
        keep = np.where(np.floor(loud * 100) % 2 == 0, 0.75, 0.25)
        kept = np.floor(n_visual * keep).astype(np.int64)
        return np.stack([n_visual, n_visual, *[kept] * (layers - 2)], axis=1)

    def __repr__(self) -> str:
        return "by-loudness"


def test_a_policy_per_sample_is_measured_as_it_runs(problem: Problem) -> None:
    evaluator, policy = Evaluator(problem), ByLoudness()
    found = evaluator.evaluate([policy], "search")[0]
    counts, part = evaluator.counts(policy, "search")[0], evaluator.prepared("search")[0]
    assert set(counts[:, 2].tolist()) == {16, 48}
    assert found.schedule == "by-loudness"
    assert found.flops_ratio == evaluator.flops_ratio(policy)
    # The decoder receives what the policy was shown.
    batch, seen = part.batches[0], []
    hook = problem.adapter.decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.inference_mode():
        problem.model(**problem.adapter.with_features(batch.inputs, batch.features), logits_to_keep=1)
    hook.remove()
    prompt = batch.prompt(problem.adapter)
    assert torch.equal(seen[0][prompt.valid], prompt.embeddings[prompt.valid])
    # Each sample scores as it does under its own constant schedule.
    for kept, keep in ((16, 0.25), (48, 0.75)):
        constant = evaluator.evaluate([Step(2, keep)], "search")[0]
        rows = counts[:, 2] == kept
        assert found.scores["mosaic-vqa"][rows].tolist() == constant.scores["mosaic-vqa"][rows].tolist()
