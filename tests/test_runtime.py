"""The runtime on a random LLaVA: nothing changes at keep 1, dropping equals masking, caches decode right."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import vispco
from conftest import installed_hooks, make_batch
from vispco.errors import ModelError, ScheduleError
from vispco.pruning.schedules import Ratios, Step

METHODS = ["fastv", "random", "stride"]
SCHEDULES = [Step(1, 0.5), Ratios([1, 0.75, 0.3, 0.3]), Step(2, 0.0), Step(1, 0.02)]
BATCHES = {
    "one": [(3, 1, 5)],
    "ragged": [(3, 1, 5), (1, 1, 9), (2, 2, 3), (6, 0, 2)],
}


@torch.no_grad()
def masked_reference(model: Any, batch: dict[str, Any], layers: list[list[list[int]]]) -> torch.Tensor:
    """Logits of a forward in which, from each layer on, dropped tokens are hidden from all others.

    Independent of the runtime: it only adds a different 4-D mask at each layer of the plain model.
    """
    input_ids, attention = batch["input_ids"], batch["attention_mask"].bool()
    visual = input_ids == model.config.image_token_id
    size, length = input_ids.shape
    handles = []

    def hook(allowed: torch.Tensor) -> Any:
        def pre(module: Any, args: Any, kwargs: Any) -> Any:
            additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
            return args, {**kwargs, "attention_mask": additive}

        return pre

    for number, layer in enumerate(model.model.language_model.layers):
        keys = attention & ~visual
        for row in range(size):
            keys[row, layers[number][row]] = True
        allowed = keys[:, None, :] & torch.ones(length, length).tril().bool()
        allowed |= torch.eye(length, dtype=torch.bool)
        handles.append(layer.register_forward_pre_hook(hook(allowed[:, None]), with_kwargs=True))
    try:
        return model(**batch, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def text_positions(batch: dict[str, Any], image_token: int = 4) -> torch.Tensor:
    return batch["attention_mask"].bool() & (batch["input_ids"] != image_token)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", METHODS)
def test_keep_one_is_the_plain_model(tiny_llava: Any, method: str, side: str, attention: str) -> None:
    tiny_llava.set_attn_implementation(attention)
    batch = make_batch(BATCHES["ragged"], side)
    with torch.no_grad():
        plain = tiny_llava(**batch).logits
        with vispco.prune(tiny_llava, method=method, schedule=Step(1, 1.0)):
            pruned = tiny_llava(**batch).logits
    valid = batch["attention_mask"].bool()
    assert (plain - pruned)[valid].abs().max() <= 1e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_dropping_equals_masking(
    tiny_llava: Any, method: str, schedule: Any, rows: Any, side: str, attention: str
) -> None:
    tiny_llava.set_attn_implementation(attention)
    batch = make_batch(rows, side)
    with torch.no_grad(), vispco.prune(tiny_llava, method=method, schedule=schedule) as session:
        logits = tiny_llava(**batch, use_cache=False).logits
    kept = [session.kept(layer) for layer in range(4)]
    n_visual = (batch["input_ids"] == 4).sum(1)
    expected = schedule.counts(n_visual.numpy(), 4)
    assert [[len(positions) for positions in layer] for layer in kept] == expected.T.tolist()
    assert session.counts is not None
    assert session.counts.tolist() == expected.tolist()
    for layer in kept:
        for row, positions in enumerate(layer):
            assert positions == sorted(set(positions))
            assert (batch["input_ids"][row, positions] == 4).all()
    for earlier, later in itertools.pairwise(kept):
        assert all(set(b) <= set(a) for a, b in zip(earlier, later, strict=True))
    reference = masked_reference(tiny_llava, batch, kept)
    where = text_positions(batch)
    assert (logits - reference)[where].abs().max() <= 1e-4
    assert logits.shape == reference.shape


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", METHODS)
def test_batch_and_padding_do_not_matter(tiny_llava: Any, method: str, side: str) -> None:
    tiny_llava.set_attn_implementation("sdpa")
    batch = make_batch([(3, 1, 5), (1, 1, 9), (6, 0, 2)], side)
    schedule = Ratios([1, 0.75, 0.3, 0.3])
    with torch.no_grad(), vispco.prune(tiny_llava, method=method, schedule=schedule):
        together = tiny_llava(**batch).logits
        for row in range(3):
            where = batch["attention_mask"][row].bool()
            alone = {"input_ids": batch["input_ids"][row : row + 1, where]}
            if (alone["input_ids"] == 4).any():
                alone["pixel_values"] = batch["pixel_values"][row : row + 1]
            logits = tiny_llava(**alone).logits[0]
            text = alone["input_ids"][0] != 4
            assert (logits[text] - together[row, where][text]).abs().max() <= 1e-4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        ("fastv", Step(1, 0.5)),
        ("fastv", Step(3, 0.0)),
        ("random", Ratios([0.5, 0.5, 0.25, 0])),
        ("stride", Step(0, 0.0)),
    ],
)
def test_cached_generation_equals_recomputation(
    tiny_llava: Any, method: str, schedule: Any, rows: Any, attention: str
) -> None:
    """Each generated token equals the argmax of a forward over everything so far, with the prompt's kept set."""
    tiny_llava.set_attn_implementation(attention)
    batch = make_batch(rows, "left")
    steps = 6
    with torch.no_grad(), vispco.prune(tiny_llava, method=method, schedule=schedule) as session:
        out = tiny_llava.generate(
            **batch,
            max_new_tokens=steps,
            min_new_tokens=steps,
            suppress_tokens=[4],
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        kept = [session.kept(layer) for layer in range(4)]
        text = batch["attention_mask"].sum(1) - (batch["input_ids"] == 4).sum(1)
        expected = schedule.counts((batch["input_ids"] == 4).sum(1).numpy(), 4) + text.numpy()[:, None]
        lengths = [layer.keys.shape[-2] for layer in out.past_key_values.layers]
        # A layer that was not cut holds the padded prompt; a cut one holds its longest row.
        full = batch["input_ids"].shape[1]
        visual = (batch["input_ids"] == 4).sum(1).numpy()
        cut = (schedule.counts(visual, 4) < visual[:, None]).any(0)
        assert lengths == [(e.max() if c else full) + steps - 1 for e, c in zip(expected.T, cut, strict=True)]
    for step, logits in enumerate(out.logits):
        new = out.sequences[:, batch["input_ids"].shape[1] :][:, :step]
        longer = {
            **batch,
            "input_ids": torch.cat([batch["input_ids"], new], 1),
            "attention_mask": torch.cat([batch["attention_mask"], torch.ones_like(new)], 1),
        }
        reference = masked_reference(tiny_llava, longer, kept)[:, -1]
        assert (logits - reference).abs().max() <= 1e-4, step


@pytest.mark.parametrize("fail", [False, True])
def test_leaves_no_trace(tiny_llava: Any, fail: bool) -> None:
    tiny_llava.set_attn_implementation("sdpa")
    batch = make_batch(BATCHES["ragged"])
    with torch.no_grad():
        before = tiny_llava(**batch).logits
        attributes = {name: set(vars(module)) for name, module in tiny_llava.named_modules()}
        hooks = installed_hooks(tiny_llava)
        try:
            with vispco.prune(tiny_llava, method="fastv", schedule=Step(1, 0.3)):
                assert installed_hooks(tiny_llava) > hooks
                tiny_llava(**batch)
                if fail:
                    raise KeyError("inside")
        except KeyError:
            assert fail
        after = tiny_llava(**batch).logits
    assert installed_hooks(tiny_llava) == hooks
    assert {name: set(vars(module)) for name, module in tiny_llava.named_modules()} == attributes
    assert torch.equal(before, after)


def test_a_failing_forward_leaves_the_session_usable(tiny_llava: Any) -> None:
    batch = make_batch([(3, 1, 5)])
    with torch.no_grad(), vispco.prune(tiny_llava, method="fastv", schedule=Step(1, 0.3)):
        first = tiny_llava(**batch).logits
        with pytest.raises(Exception, match="do not match"):
            tiny_llava(input_ids=batch["input_ids"][:, 4:], pixel_values=batch["pixel_values"])
        assert torch.equal(first, tiny_llava(**batch).logits)


def test_fastv_keeps_what_the_last_token_attends_to(tiny_llava: Any) -> None:
    """Sign test against the model's own attention weights: the kept tokens are the most attended ones."""
    tiny_llava.set_attn_implementation("eager")
    batch = make_batch([(3, 1, 5)])
    with torch.no_grad():
        attentions = tiny_llava(**batch, output_attentions=True).attentions
        with vispco.prune(tiny_llava, method="fastv", schedule=Step(2, 0.25)) as session:
            tiny_llava(**batch)
    row = attentions[1][0, :, -1].mean(0)
    visual = (batch["input_ids"][0] == 4).nonzero()[:, 0]
    best = visual[row[visual].topk(4).indices].sort().values.tolist()
    assert session.kept(2)[0] == best
    assert session.kept(1)[0] == visual.tolist()


def test_refusals(tiny_llava: Any) -> None:
    with pytest.raises(ScheduleError, match="layers 0 to 3"), vispco.prune(tiny_llava, schedule=Step(4, 0.5)):
        pass
    with pytest.raises(ScheduleError, match="none before layer 0"):
        with vispco.prune(tiny_llava, method="fastv", schedule=Step(0, 0.5)):
            tiny_llava(**make_batch([(3, 1, 5)]))
    with vispco.prune(tiny_llava, schedule=Step(1, 0.5)):
        with pytest.raises(ModelError, match="already inside"), vispco.prune(tiny_llava, schedule=Step(1, 0.5)):
            pass
    with (
        pytest.raises(ModelError, match="known families: llava"),
        vispco.prune(torch.nn.Linear(1, 1), schedule=Step(1, 1)),
    ):
        pass
