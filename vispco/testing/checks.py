"""The invariants of the pruning runtime as functions that raise AssertionError."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from vispco.models.families import adapter_for
from vispco.models.vision import VisionExtras
from vispco.pruning.forward.relaxed import relaxed
from vispco.pruning.forward.shared import SharedPrefill
from vispco.pruning.methods.base import Method
from vispco.pruning.prune import prune
from vispco.pruning.schedules import Policy, Ratios, Schedule, Step, keep_all
from vispco.pruning.session import PruningSession
from vispco.testing.tiny import LAYERS, TinyFamily

TOLERANCE = 1e-4
# Linear attention sums in another order in a batch than alone, so that the plain model's own logits differ more.
RECURRENT_TOLERANCE = 3e-4
Batch = dict[str, Tensor]
Kept = list[list[list[int]]]

# (text before, pictures, text after) per row
ONE = [(3, 1, 5)]
RAGGED = [(3, 1, 5), (1, 1, 9), (2, 2, 3), (6, 0, 2)]
# Schedules with much in common: the same twice, ends that differ, all tokens, none.
MANY: tuple[Schedule, ...] = (
    keep_all(),
    *(Ratios([1, a, b, c]) for a in (1, 0.75, 0.3) for b in (0.75, 0.3) for c in (0.3, 0.1, 0.0) if a >= b),
    Step(1, 0.3),
    Step(1, 0.3),
    Step(1, 0.0),
)


def counts_of(policy: Policy, visual: Tensor) -> Tensor:
    """int [B, L]: what the policy asks for ``visual`` bool [B, T]."""
    return torch.as_tensor(policy.counts(visual.sum(dim=1).numpy(), LAYERS, None))


@contextmanager
def hidden_from(model: Any, batch: Batch, kept: Kept) -> Iterator[None]:
    """From each layer on, visual tokens outside ``kept[layer][row]`` are hidden from all others.

    The model stays whole: only the mask that each layer receives is changed. Independent of the runtime.
    """
    visual = adapter_for(model).visual_mask(batch["input_ids"], None)
    valid = batch["attention_mask"].bool()
    length = valid.shape[1]
    diagonal = torch.eye(length, dtype=torch.bool)

    def hook(seen: Tensor) -> Callable[..., Any]:
        def pre(module: Any, args: Any, kwargs: Any) -> Any:
            given = kwargs.get("attention_mask")
            if given is None:
                allowed = torch.ones(length, length).tril().bool() & valid[:, None, None, :]
            else:
                allowed = given if given.dtype == torch.bool else given > -1e30
            allowed = (allowed & seen[:, None, None, :]) | diagonal
            additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
            return args, {**kwargs, "attention_mask": additive}

        return pre

    handles = []
    for number, layer in enumerate(adapter_for(model).layers()):
        seen = valid & ~visual
        for row in range(len(seen)):
            seen[row, kept[number][row]] = True
        if adapter_for(model).recurrent(number):
            handles += taken_out(layer.linear_attn, seen)  # type: ignore[arg-type]
        else:
            handles.append(layer.register_forward_pre_hook(hook(seen), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def taken_out(mixer: torch.nn.Module, seen: Tensor) -> list[Any]:
    """Hooks with which linear attention works on the tokens where ``seen`` [B, T] only, and gives 0 for the others."""

    def before(module: Any, args: Any, kwargs: Any) -> Any:
        hidden, length = kwargs["hidden_states"], int(seen.sum(dim=1).max())
        rows = [torch.nn.functional.pad(row[at], (0, 0, length - int(at.sum()), 0)) for row, at in zip(hidden, seen)]  # noqa: B905
        mask = torch.stack([torch.arange(length) >= length - int(at.sum()) for at in seen])
        return args, {**kwargs, "hidden_states": torch.stack(rows), "attention_mask": mask}

    def after(module: Any, args: Any, output: Tensor) -> Tensor:
        full = output.new_zeros(*seen.shape, output.shape[-1])
        for row, at in enumerate(seen):
            full[row, at] = output[row, output.shape[1] - int(at.sum()) :]
        return full

    return [mixer.register_forward_pre_hook(before, with_kwargs=True), mixer.register_forward_hook(after)]


def tolerance(model: Any) -> float:
    """Largest difference of logits that is rounding."""
    recurrent = any(layer.chunk for layer in adapter_for(model).shape().each)
    return RECURRENT_TOLERANCE if recurrent else TOLERANCE


def text_places(model: Any, batch: Batch) -> Tensor:
    """bool [B, T]: tokens that are never dropped."""
    return batch["attention_mask"].bool() & ~adapter_for(model).visual_mask(batch["input_ids"], None)


def check_keep_one(model: Any, batch: Batch, method: Method) -> None:
    """Keep 1 is the plain model, also when every layer's input really goes through the gather."""
    from vispco.pruning.schedules import keep_all

    valid = batch["attention_mask"].bool()
    with torch.no_grad():
        plain = model(**batch).logits
        for always in (False, True):
            with prune(model, method=method, schedule=keep_all(), gather_always=always):
                pruned = model(**batch).logits
            difference = float((plain - pruned)[valid].abs().max())
            assert difference <= tolerance(model), f"keep 1 changes logits by {difference:.3g} (gather_always={always})"


def check_kept(model: Any, batch: Batch, policy: Policy, session: PruningSession) -> Kept:
    """Counts as scheduled; ascending, unique, visual places only; text untouched; sets nested over layers."""
    visual = adapter_for(model).visual_mask(batch["input_ids"], None) & batch["attention_mask"].bool()
    text = text_places(model, batch).sum(dim=1)
    kept = [session.kept(layer) for layer in range(LAYERS)]
    expected = counts_of(policy, visual)
    assert [[len(places) for places in layer] for layer in kept] == expected.T.tolist()
    assert session.counts is not None
    assert session.counts.tolist() == expected.tolist()
    for number, layer in enumerate(kept):
        assert session.tokens_entering(number) == (expected[:, number] + text).tolist()
        for row, places in enumerate(layer):
            assert places == sorted(set(places))
            assert bool(visual[row, places].all())
    for earlier, later in itertools.pairwise(kept):
        assert all(set(b) <= set(a) for a, b in zip(earlier, later, strict=True))
    return kept


def check_dropping(model: Any, batch: Batch, method: Method, policy: Policy, *, equals_masking: bool = True) -> None:
    """What is dropped is as scheduled, and physical dropping equals hiding."""
    with torch.no_grad(), prune(model, method=method, schedule=policy) as session:
        logits = model(**batch, use_cache=False).logits
    kept = check_kept(model, batch, policy, session)
    assert logits.shape[:2] == batch["input_ids"].shape
    where = text_places(model, batch)
    assert bool(torch.isfinite(logits[where]).all())
    if equals_masking:
        with torch.no_grad(), hidden_from(model, batch, kept):
            reference = model(**batch, use_cache=False).logits
        difference = float((logits - reference)[where].abs().max())
        assert difference <= tolerance(model), f"dropping differs from hiding by {difference:.3g}"


def check_rows_alone(tiny: TinyFamily, batch: Batch, method: Method, policy: Policy) -> None:
    """A sample gives the same logits alone and in a padded batch."""
    model = tiny.model()
    with torch.no_grad(), prune(model, method=method, schedule=policy):
        together = model(**batch).logits
        for row in range(len(together)):
            alone = tiny.row(batch, row)
            logits = model(**alone).logits[0]
            where = batch["attention_mask"][row].bool()
            text = text_places(model, alone)[0]
            difference = float((logits[text] - together[row, where][text]).abs().max())
            assert difference <= tolerance(model), f"row {row} differs from itself alone by {difference:.3g}"


def check_generation(
    tiny: TinyFamily, batch: Batch, method: Method, policy: Policy, steps: int = 5, *, equals_masking: bool = True
) -> None:
    """Cached decoding equals recomputation with the prompt's kept set; caches are as long as scheduled."""
    model = tiny.model()
    prompt = batch["input_ids"].shape[1]
    with torch.no_grad(), prune(model, method=method, schedule=policy) as session:
        out = model.generate(
            **batch,
            max_new_tokens=steps,
            min_new_tokens=steps,
            suppress_tokens=[4, 5],
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    kept = check_kept(model, batch, policy, session)
    check_cache_lengths(model, batch, policy, out.past_key_values, steps - 1)
    if not equals_masking:
        assert all(bool(torch.isfinite(logits).all()) for logits in out.logits)
        return
    # Attention is causal, so one pass over all new tokens shows what each step would have given.
    longer = tiny.extend(batch, out.sequences[:, prompt:-1])
    with torch.no_grad(), hidden_from(model, longer, kept):
        reference = model(**longer, use_cache=False).logits[:, prompt - 1 :]
    for step, logits in enumerate(out.logits):
        difference = float((logits - reference[:, step]).abs().max())
        assert difference <= tolerance(model), f"decoding step {step} differs from recomputation by {difference:.3g}"


def check_cache_lengths(model: Any, batch: Batch, policy: Policy, cache: Any, new: int) -> None:
    """A layer that was not cut holds the padded prompt, a cut one its longest row, a sliding one a window of it."""
    adapter = adapter_for(model)
    visual = adapter.visual_mask(batch["input_ids"], None)
    counts, full = counts_of(policy, visual), batch["input_ids"].shape[1]
    entering = counts + text_places(model, batch).sum(dim=1, keepdim=True)
    was_cut = (counts < visual.sum(dim=1, keepdim=True)).any(dim=0)
    for number, layer in enumerate(cache.layers):
        if adapter.recurrent(number):
            continue  # one state, whatever the length
        length = (int(entering[:, number].max()) if bool(was_cut[number]) else full) + new
        window = adapter.sliding_window(number)
        expected = length if window is None else min(length, window - 1)
        assert layer.keys.shape[-2] == expected, f"layer {number} holds {layer.keys.shape[-2]}, not {expected}"


def has_relaxed(model: Any, method: Method) -> bool:
    return method.differentiable and not any(map(adapter_for(model).recurrent, range(LAYERS)))


def check_relaxed(model: Any, batch: Batch, method: Method, schedule: Schedule) -> None:
    """With a hard mask the relaxed model is the pruned one."""
    with torch.no_grad():
        with prune(model, method=method, schedule=schedule):
            pruned = model(**batch, use_cache=False).logits[:, -1]
        with relaxed(adapter_for(model), method, torch.tensor(schedule.keep_ratio(LAYERS))):
            soft = model(**batch, use_cache=False).logits[:, -1]
    difference = float((pruned - soft).abs().max())
    assert difference <= tolerance(model), f"the relaxed model differs from the pruned one by {difference:.3g}"


def check_gradient(model: Any, batch: Batch, method: Method) -> None:
    """Every ratio after the first layer moves the loss of its own sample, and of no other, if that has pictures."""
    pictures = adapter_for(model).visual_mask(batch["input_ids"], None).any(dim=1)
    ratios = torch.tensor([1.0, 0.75, 0.4, 0.2]).repeat(len(pictures), 1).requires_grad_()
    for row, sees in enumerate(pictures.tolist()):
        with relaxed(adapter_for(model), method, ratios) as session:
            logits = model(**batch, use_cache=False).logits[row, -1]
        moved = torch.zeros_like(ratios, dtype=torch.bool)
        moved[row, 1:] = sees
        # Through the logits, and through the mask of the last layer: what is dropped stays so.
        for value in (logits.log_softmax(-1)[10], session.mask[row].sum()):
            (gradient,) = torch.autograd.grad(value, [ratios], retain_graph=True)
            assert bool(torch.isfinite(gradient).all())
            assert torch.equal(gradient != 0, moved), f"row {row}: {gradient.tolist()}"


def check_recompute(model: Any, batch: Batch, method: Method) -> None:
    """Layers that run again in the backward pass give the same logits and the same gradients, and are put back."""
    found = []
    for recompute in (False, True):
        ratios = torch.tensor([1.0, 0.75, 0.4, 0.2], requires_grad=True)
        with relaxed(adapter_for(model), method, ratios, recompute=recompute):
            logits = model(**batch, use_cache=False).logits[:, -1]
        assert not any("forward" in vars(layer) for layer in adapter_for(model).layers())
        (gradient,) = torch.autograd.grad(logits.logsumexp(-1).sum(), [ratios])
        found.append((logits.detach(), gradient))
    (logits, gradient), (again, gradient_again) = found
    assert torch.equal(logits, again)
    torch.testing.assert_close(gradient_again, gradient, rtol=1e-5, atol=1e-7)


def check_trailing(model: Any, batch: Batch, method: Method) -> None:
    """With an answer after the prompts, tokens are ranked, positions counted and logits given as without it."""
    adapter, ratios = adapter_for(model), torch.tensor([1.0, 0.75, 0.4, 0.2])
    answer = torch.arange(10, 10 + 2 * len(batch["input_ids"])).view(-1, 2)
    with torch.no_grad():
        with relaxed(adapter, method, ratios):
            without = model(**batch, use_cache=False).logits[:, -1]
        with relaxed(adapter, method, ratios, trailing=answer.shape[1]):
            behind = model(**adapter.with_text(batch, answer), use_cache=False).logits[:, -1 - answer.shape[1]]
    difference = float((without - behind).abs().max())
    assert difference <= tolerance(model), f"an answer after the prompt changes its logits by {difference:.3g}"


def encoded(model: Any, batch: Batch, method: Method) -> tuple[dict[str, Any], VisionExtras | None]:
    """``batch`` with its visual features in place of pixels, as the evaluator runs it: the vision tower runs once.

    And what was read off the tower, if ``method`` needs it.
    """
    adapter = adapter_for(model)
    if not any(key.startswith("pixel_values") for key in batch):
        return batch, None
    with torch.no_grad():
        if "vision" in method.needs:
            features, extras = adapter.encode_with_extras(batch, "middle" in method.needs)
            return adapter.with_features(batch, features), extras
        return adapter.with_features(batch, adapter.encode_images(batch)), None


def check_sharing(
    model: Any, batch: Batch, method: Method, policies: Sequence[Policy], limits: Sequence[int | None] = (None, 0)
) -> None:
    """Run together as a tree, policies give the logits that each gives alone, to the last bit, and leave no trace.

    ``limits``: bytes of hidden states that may be put aside; each is tried.
    """
    adapter = adapter_for(model)
    visual = adapter.visual_mask(batch["input_ids"], None)
    counts = torch.stack([counts_of(policy, visual) for policy in policies]).numpy()
    (inputs, vision), alone = encoded(model, batch, method), []
    for policy in policies:
        with torch.inference_mode(), prune(model, method=method, schedule=policy) as session:
            session.vision = vision
            alone.append(model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1])
    for limit in limits:
        before, found = installed_hooks(model), {}
        shared = SharedPrefill(adapter, method, counts, limit)
        shared.vision = vision
        for members, logits in shared.logits(inputs):
            for member in members:
                assert member not in found, f"policy {member} came twice"
                found[member] = logits
        assert installed_hooks(model) == before
        assert sorted(found) == list(range(len(policies)))
        for number, policy in enumerate(policies):
            difference = float((found[number] - alone[number]).abs().max())
            assert torch.equal(found[number], alone[number]), f"{policy}, limit {limit}: {difference}"


def check_sharing_answers(
    model: Any,
    batch: Batch,
    method: Method,
    policies: Sequence[Policy],
    limits: Sequence[int | None] = (None, 0),
    tokens: int = 5,
) -> None:
    """Answers of several tokens: run together, policies give what ``generate`` gives each alone."""
    adapter, prompt = adapter_for(model), batch["input_ids"].shape[1]
    visual = adapter.visual_mask(batch["input_ids"], None)
    counts = torch.stack([counts_of(policy, visual) for policy in policies]).numpy()
    stop, pad = model.generation_config.eos_token_id, model.generation_config.pad_token_id
    (inputs, vision), alone = encoded(model, batch, method), []
    for policy in policies:
        with torch.inference_mode(), prune(model, method=method, schedule=policy) as session:
            session.vision = vision
            alone.append(model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[:, prompt:].tolist())
    for limit in limits:
        found: dict[int, list[list[int]]] = {}
        shared = SharedPrefill(adapter, method, counts, limit)
        shared.vision = vision
        for members, logits in shared.logits(inputs, cached=True):
            answer = shared.greedy(logits, tokens, [stop], pad).tolist()
            found.update(dict.fromkeys(members, answer))
        for number, policy in enumerate(policies):
            assert found[number] == alone[number], f"{policy}, limit {limit}"


def installed_hooks(model: Any) -> set[tuple[str, int]]:
    """Every hook on every module. transformers puts its own on at the first forward and leaves them."""
    return {
        (name, id(hook))
        for name, module in model.named_modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for hook in hooks.values()
    }


def check_no_trace(model: Any, batch: Batch, method: Method, policy: Policy) -> None:
    """Nothing stays on the model, whether the block ends or fails; a failed forward leaves the block usable."""
    with torch.no_grad():
        before = model(**batch).logits
        attributes = {name: set(vars(module)) for name, module in model.named_modules()}
        hooks = installed_hooks(model)
        for fail in (False, True):
            try:
                with prune(model, method=method, schedule=policy):
                    assert installed_hooks(model) > hooks
                    first = model(**batch).logits
                    if fail:
                        raise KeyError("inside")
                    broken = {**batch, "input_ids": batch["input_ids"] * 0 + 10}
                    with suppress(ValueError, RuntimeError, IndexError, StopIteration):
                        model(**broken)
                    assert torch.equal(first, model(**batch).logits)
            except KeyError:
                assert fail
            assert installed_hooks(model) == hooks
            assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
            assert torch.equal(before, model(**batch).logits)


def counted_flops(model: Any, batch: Batch) -> int:
    """FLOPs of the decoder as torch counts them, with all that hooks on it do."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    decoder, counter, inside = adapter_for(model).decoder(), FlopCounterMode(display=False), ExitStack()
    config: Any = decoder.config
    experts = config._experts_implementation

    def start(module: Any, args: Any) -> None:
        inside.enter_context(counter)

    def stop(module: Any, args: Any, output: Any) -> None:
        inside.close()

    # The counter is slow, so it watches the decoder only: in front of all other hooks, and after them.
    handles = [decoder.register_forward_pre_hook(start, prepend=True), decoder.register_forward_hook(stop)]
    try:
        config._experts_implementation = "eager"  # the counter does not see grouped products
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(**batch)
    finally:
        config._experts_implementation = experts
        inside.close()
        for handle in handles:
            handle.remove()
    return int(counter.get_total_flops())


def check_flops(tiny: TinyFamily, rows: Sequence[tuple[int, int, int]], method: Method, policy: Policy) -> None:
    """The cost model equals torch's counter, scoring included, for each row run alone."""
    import numpy as np

    from vispco.costs import prefill_flops

    model = tiny.model()
    for number, row in enumerate(rows):
        batch = tiny.batch([row], seed=number)
        visual = adapter_for(model).visual_mask(batch["input_ids"], None).sum(dim=1).numpy()
        text = np.array([batch["input_ids"].shape[1]]) - visual
        counts = np.asarray(policy.counts(visual, LAYERS, None))
        with prune(model, method=method, schedule=policy):
            counted = counted_flops(model, batch)
        expected = int(prefill_flops(adapter_for(model).shape(), counts, visual, text, method)[0])
        assert counted == expected, f"{method.name}: counted {counted} FLOPs, the cost model says {expected}"
