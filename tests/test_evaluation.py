"""The shared evaluator: right numbers, cached by content, independent of what else was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch

import vispco
from conftest import SMALL
from vispco.costs import prefill_flops, shared_flops
from vispco.errors import ConfigError, MeasurementError, ScheduleError
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.prepared import block_ends, prepare
from vispco.evaluation.records import Evaluation, Failed
from vispco.evaluation.units import Unit, UnitResult, UnitRunner
from vispco.problem import Problem
from vispco.pruning.methods import make_method
from vispco.pruning.methods.base import Method
from vispco.pruning.methods.fastv import FastV
from vispco.pruning.schedules import Ratios, Step
from vispco.storage.store import Store
from vispco.tasks.mosaic_vqa import MosaicVQA


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


@pytest.mark.parametrize("jobs", [1, 3])
def test_objective_drives_a_users_own_study(problem: Problem, jobs: int) -> None:
    study: Any = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(vispco.objective(problem), n_trials=3, n_jobs=jobs)
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


# --- many policies together ------------------------------------------------------------------------

MANY = [Step(layer, keep) for layer in (1, 3, 5, 7) for keep in (0.0, 0.25, 0.5)] + [
    Step(1, 1.0),
    Ratios([1, 1, 0.8, 0.8, 0.3, 0.3, 0.0, 0.0]),
    Step(3, 0.251),  # the counts of step(layer=3, keep=0.25)
]


def same(a: Evaluation, b: Evaluation) -> bool:
    """Equal in everything but what it cost."""
    hidden = {"spent_flops": 0, "seconds": 0.0, "scores": {}}
    scores = all(a.scores[task].tolist() == b.scores[task].tolist() for task in a.scores)
    return scores and replace(a, **hidden) == replace(b, **hidden)


@pytest.mark.parametrize("method", ["fastv", "sparsevlm", "random", "pool"])
def test_together_as_one_by_one(problem: Problem, method: str) -> None:
    chosen = make_method(method)
    together = Evaluator(problem).evaluate(MANY, method=chosen)
    evaluator = Evaluator(problem)
    for found, schedule in zip(together, MANY, strict=True):
        assert same(found, evaluator.evaluate([schedule], method=chosen)[0])
    part = evaluator.prepared("search")[0]
    batches = [batch.rows for batch in part.batches]
    expected = sum(
        int(
            shared_flops(
                problem.shape,
                [schedule.counts(part.n_visual[rows], 8) for schedule in MANY],
                part.n_visual[rows],
                part.n_text[rows],
                chosen,
            ).sum()
        )
        for rows in batches
    )
    assert sum(found.spent_flops for found in together) == expected
    assert expected < sum(found.flops for found in together)
    assert together[-1].spent_flops == 0
    assert together[-1].schedule == "step(layer=3, keep=0.251)"


def test_a_memory_limit_changes_cost_only(problem: Problem) -> None:
    tight = Problem.from_text(SMALL + "memory_mib: 0\n")
    free, limited = Evaluator(problem).evaluate(MANY), Evaluator(tight).evaluate(MANY)
    assert all(same(a, b) for a, b in zip(free, limited, strict=True))
    assert sum(e.spent_flops for e in limited) > sum(e.spent_flops for e in free)


def test_an_interrupted_measurement_goes_on_where_it_was(problem: Problem, tmp_path: Path) -> None:
    whole = Evaluator(problem).evaluate(MANY)
    store = Store(f"sqlite:///{tmp_path}/a.db")
    first = Evaluator(problem, store)
    run, done = first.runner.run, []

    def stop_after_one(unit: Unit) -> UnitResult:
        if done:
            raise KeyboardInterrupt
        done.append((unit.batch, unit.names))
        return run(unit)

    first.runner.run = stop_after_one  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.evaluate(MANY)
    assert store.get_evaluations([e.id for e in whole]) == {}
    second = Evaluator(problem, store)
    run_again, again = second.runner.run, []

    def note(unit: Unit) -> UnitResult:
        again.append((unit.batch, unit.names))
        return run_again(unit)

    second.runner.run = note  # type: ignore[method-assign]
    found = second.evaluate(MANY)
    assert not set(done) & set(again)
    assert all(same(a, b) for a, b in zip(whole, found, strict=True))
    assert store.load_blocks([e.id for e in whole]) == {}


@dataclass(frozen=True)
class Poisoned(Method):
    """FastV that breaks where it sees few tokens."""

    name = "poisoned"
    needs = frozenset({"attention"})
    tokens: int = 40

    def score(self, context: Any) -> torch.Tensor:
        scores = FastV().score(context)
        if int(context.visual.sum(dim=1).max()) < self.tokens:
            return scores * torch.nan
        return scores


def test_a_schedule_that_fails_hurts_no_other(problem: Problem) -> None:
    healthy = [Step(2, 0.3), Ratios([1, 1, 0.8, 0.7, 0.7, 0.3, 0.3, 0.3])]
    broken = Ratios([1, 1, 0.8, 0.5, 0.2, 0.2, 0.2, 0.2])
    evaluator = Evaluator(problem)
    outcomes = list(evaluator.outcomes([healthy[0], broken, healthy[1]], method=Poisoned()))
    assert isinstance(outcomes[1], Failed)
    assert "scores that are not finite before layer 4" in outcomes[1].error
    assert outcomes[1].schedule == broken.text()
    for schedule, outcome in zip(healthy, outcomes[::2], strict=True):
        alone = Evaluator(problem).evaluate([schedule], method=Poisoned())[0]
        assert isinstance(outcome, Evaluation)
        assert same(outcome, alone)
    with pytest.raises(MeasurementError, match=r"ratios\(1\.0, .* with poisoned: .*not finite"):
        evaluator.evaluate([broken], method=Poisoned())


def test_a_schedule_that_the_model_cannot_run_hurts_no_other(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad, whole = [Step(2, 0.3), Step(3, 0.5)], Step(2, 0.25), UnitRunner._tree

    def tree(self: UnitRunner, unit: Unit, part: Any, batch: Any, counts: Any) -> Any:
        few = bad.counts(part.n_visual[batch.rows], counts.shape[2])
        if any(np.array_equal(one, few) for one in counts):
            raise RuntimeError("no kernel for this shape")
        return whole(self, unit, part, batch, counts)

    expected = Evaluator(problem).evaluate(good)
    monkeypatch.setattr(UnitRunner, "_tree", tree)
    first, failed, last = Evaluator(problem).outcomes([good[0], bad, good[1]])
    assert isinstance(failed, Failed)
    assert "cannot be measured: RuntimeError: no kernel for this shape" in failed.error
    for found, alone in zip((first, last), expected, strict=True):
        assert isinstance(found, Evaluation)
        assert same(found, alone)


def test_out_of_memory_is_measured_in_halves(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that holds three samples gives what a large one gives."""
    whole = Evaluator(problem).evaluate(MANY)
    tried: list[int] = []
    forward = type(problem.model).forward

    def small_device(self: Any, *arguments: Any, **inputs: Any) -> Any:
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > 3:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 1 GiB")
        return forward(self, *arguments, **inputs)

    monkeypatch.setattr(type(problem.model), "forward", small_device)
    found = Evaluator(problem).evaluate(MANY)
    assert [e.scores["mosaic-vqa"].tolist() for e in found] == [e.scores["mosaic-vqa"].tolist() for e in whole]
    assert [e.id for e in found] == [e.id for e in whole]
    assert sorted({n for n in tried if n > 3}) == [4, 8]
    assert tried.count(8) == 1, "what did not fit once is not tried again"

    def no_device(self: Any, *arguments: Any, **inputs: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(type(problem.model), "forward", no_device)
    outcome = next(Evaluator(problem).outcomes([Step(2, 0.5)]))
    assert isinstance(outcome, Failed)
    assert "out of memory with one sample" in outcome.error


def test_batches_hold_samples_of_one_random_block(problem: Problem) -> None:
    assert block_ends(4096)[:6] == [128, 256, 384, 512, 768, 1024]
    assert block_ends(4096)[-1] == 4096
    assert block_ends(128) == [128]
    large = Problem.from_text(SMALL.replace("search: 12", "search: 300"))
    part = Evaluator(large).prepared("search")[0]
    assert sorted(part.place.tolist()) == list(range(300))
    rows = [batch.rows for batch in part.batches]
    assert sorted(np.concatenate(rows).tolist()) == list(range(300))
    start = 0
    for first, end in zip([0, 128, 256], [128, 256, 300], strict=True):
        stop = part.looks[[128, 256, 300].index(end)]
        inside = np.concatenate(rows[start:stop])
        assert sorted(part.place[inside].tolist()) == list(range(first, end))
        lengths = part.n_text[inside].tolist()
        assert lengths == sorted(lengths), "batches are of similar length"
        start = stop
    # The order does not follow the samples' own; it follows from their names alone.
    assert 100 < np.mean(np.flatnonzero(part.place < 128)) < 200
    smaller = Evaluator(Problem.from_text(SMALL.replace("search: 12", "search: 200"))).prepared("search")[0]
    assert (part.place[:200].argsort() == smaller.place.argsort()).all()


def test_answers_of_several_tokens_share_too(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together, one by one, and by the model's own generate, which is asked as soon as its settings are not plain."""
    monkeypatch.setattr(MosaicVQA, "max_new_tokens", 3)
    monkeypatch.setattr(MosaicVQA, "score", lambda self, sample, answer: (sum(answer.encode()) % 97) / 97)
    together = Evaluator(problem).evaluate(MANY)
    assert len({e.accuracy for e in together}) > 5
    assert sum(e.spent_flops for e in together) < sum(e.flops for e in together)
    one = Evaluator(problem)
    assert all(same(found, one.evaluate([schedule])[0]) for found, schedule in zip(together, MANY, strict=True))
    calls: list[int] = []
    generate = type(problem.model).generate
    monkeypatch.setattr(
        type(problem.model), "generate", lambda self, **inputs: calls.append(1) or generate(self, **inputs)
    )
    monkeypatch.setattr(problem.model.generation_config, "no_repeat_ngram_size", 50)
    generated = Evaluator(problem).evaluate(MANY[:5])
    assert len(calls) == 5 * len(Evaluator(problem).prepared("search")[0].batches)
    for own, shared in zip(generated, together, strict=False):
        assert own.scores["mosaic-vqa"].tolist() == shared.scores["mosaic-vqa"].tolist()
        assert own.id != shared.id, "another way of decoding is another measurement"


def test_what_is_read_is_part_of_a_splits_identity(problem: Problem) -> None:
    """Another tokenizer or template gives other tokens for the same question; padding is not read."""
    part = Evaluator(problem).prepared("search")[0]
    first, *others = part.batches
    ids, read = first.inputs["input_ids"], first.inputs["attention_mask"].bool()

    def digest(values: torch.Tensor, mask: torch.Tensor) -> str:
        changed = replace(first, inputs={**first.inputs, "input_ids": values, "attention_mask": mask.long()})
        return replace(part, batches=[changed, *others]).digest

    other = ids.clone()
    other[0, -1] += 1
    assert digest(ids, read) == part.digest
    assert digest(other, read) != part.digest
    hidden, padding = torch.cat([ids[:, :1], ids], dim=1), torch.cat([read[:, :1] & False, read], dim=1)
    assert digest(hidden, padding) == part.digest
