"""Costs of batches of 1, 4 and 16 prompts of unequal length: what runs, what is cached, how long a profile says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import vispco
from vispco.costs import Setting, make_cost
from vispco.costs.checking import check_profile
from vispco.costs.measuring import Effort
from vispco.costs.prompter import Prompter
from vispco.costs.ragged import padded
from vispco.errors import ConfigError
from vispco.models.families import adapter_for
from vispco.models.loading import load_model
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import MultiStep, Schedule, Step, parse_schedule
from vispco.testing.costs import SHAPE, WINDOWS, planted_profile
from vispco.testing.tiny import TINY

SCHEDULES: list[Schedule] = [Step(1, 0.5), MultiStep([1, 2, 3], [0.75, 0.4, 0.0])]


def ragged_batch(rows: int) -> dict[str, Any]:
    """Rows of one or two pictures of 16 tokens and of 2 to 13 words."""
    rng = np.random.default_rng(rows)
    return TINY["llava"].batch([(int(rng.integers(1, 9)), 1 + n % 2, int(rng.integers(1, 5))) for n in range(rows)])


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_layers_run_as_many_tokens_as_the_longest_row_has(rows: int, schedule: Schedule) -> None:
    """At every layer; so the batch's cache has the bytes of as many rows of the padded prompt."""
    model, batch = TINY["llava"].model(), ragged_batch(rows)
    adapter = adapter_for(model)
    visual = adapter.visual_mask(batch["input_ids"], None).sum(dim=1).numpy()
    text = batch["attention_mask"].sum(dim=1).numpy() - visual
    layers = list(adapter.layers())
    counts, all_visual, all_text = padded(schedule.counts(visual, len(layers)), visual, text)
    entered: list[int] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, args, kwargs: entered.append(args[0].shape[1]), with_kwargs=True)
        for layer in layers
    ]
    try:
        with torch.no_grad(), vispco.prune(model, method="random", schedule=schedule):
            out = model(**batch, use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    # A hook that stands before the one that drops sees what the layer before had.
    cached = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    assert cached == (counts[0] + all_text[0]).tolist()
    assert len(entered) == len(layers)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers)
    setting = Setting.of(adapter)
    assert rows * make_cost("kv_bytes").of(setting, counts, all_visual, all_text)[0] == held
    alone = make_cost("kv_bytes").of(setting, schedule.counts(visual, len(layers)), visual, text)
    assert (alone.sum() == held) == (rows == 1)


@pytest.mark.parametrize("cost", ["prefill_ms", "latency_ms", "peak_bytes"])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_a_batch_takes_at_least_what_each_of_its_rows_would(cost: str, batch: int) -> None:
    """By a planted profile whose times differ by batch; equal rows take what one of them says."""
    made = planted_profile()
    one = made.batches[1]
    faster = one.model_copy(update={"decode": one.decode.model_copy(update={"start": float(batch)})})
    profile = made.model_copy(update={"batches": {batch: faster}})
    setting = Setting(SHAPE, WINDOWS, batch=batch, profile=profile, answer_tokens=4)
    rng, model = np.random.default_rng(batch), make_cost(cost)
    for _ in range(20):
        visual, text = rng.integers(1, 90, batch), rng.integers(1, 60, batch)
        counts = Step(int(rng.integers(1, SHAPE.layers)), float(rng.random())).counts(visual, SHAPE.layers)
        rows = model.of(setting, counts, visual, text)
        alike = (value[:1].repeat(batch, axis=0) for value in (counts, visual, text))
        equal = model.of(setting, *padded(*alike))
        assert equal[0] == pytest.approx(rows[0], rel=1e-12)
        if cost == "peak_bytes":  # of times the tower's is by visual tokens, which these rows do not share
            assert model.of(setting, *padded(counts, visual, text))[0] >= rows.max() - 1e-9
        same = np.full(batch, visual.max())
        counts = Step(2, 0.3).counts(same, SHAPE.layers)
        together = model.of(setting, *padded(counts, same, text))[0]
        assert together == pytest.approx(model.of(setting, counts, same, text).max(), rel=1e-12)


def test_a_batch_without_times_is_refused() -> None:
    setting = Setting(SHAPE, WINDOWS, batch=4, profile=planted_profile())
    counts, visual, text = padded(np.array([[5] * 6]), np.array([5]), np.array([5]))
    with pytest.raises(ConfigError, match="has batch 1, not 4; measure it: --batch 4"):
        make_cost("prefill_ms").of(setting, counts, visual, text)


def test_prompts_may_be_ragged_and_a_check_predicts_their_longest_row() -> None:
    """No time is asserted: predictions follow from a planted profile, whatever this machine takes."""
    model, processor = load_model("demo")
    made = Prompter(model, processor).make(1, [2, 12, 5, 12], 4)
    assert made.texts[1] == made.texts[3] == made.text == max(made.texts)
    assert made.texts[1] - made.texts[0] == 10
    assert made.inputs["input_ids"].shape == (4, made.length)
    assert made.inputs["attention_mask"][0, 0] == 0  # filled on the left
    assert Prompter(model, processor).make(1, 5, 4).texts == ()
    shape = adapter_for(model).shape()
    planted = planted_profile(shape, (), "demo")
    profile = planted.model_copy(update={"device": "cpu", "batches": {4: planted.batches[1]}})
    effort = Effort(repeats=2)
    checks = check_profile(model, processor, profile, batch=4, schedules=3, answer_tokens=2, effort=effort, ragged=True)
    assert len(checks) == 6
    for check in checks:
        schedule = parse_schedule(check.schedule)
        visual, text = np.array([check.visual]), np.array([check.text])
        setting = Setting.of(adapter_for(model), batch=4, profile=profile, answer_tokens=2, method=make_method("fastv"))
        counts = schedule.counts(visual, shape.layers)
        assert check.predicted == pytest.approx(make_cost(check.cost).of(setting, counts, visual, text)[0], rel=1e-12)
