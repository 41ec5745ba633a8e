"""Models as people have them: PEFT, DataParallel, accelerate, torch.compile, copies, parts, int8 weights."""

from __future__ import annotations

import copy
import pickle
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vispco
from conftest import make_batch
from vispco.errors import ModelError, ScheduleError
from vispco.models.loading import weights_hash
from vispco.pruning.schedule_file import ScheduleFile
from vispco.pruning.schedules import Ratios, Step
from vispco.testing import checks
from vispco.testing.tiny import LAYERS, TINY

BATCH = make_batch([(3, 1, 5)])
SCHEDULE = Step(1, 0.25)


def lora(model: Any) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def prepared(model: Any) -> Any:
    return pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(model)


def offloaded(model: Any) -> Any:
    return pytest.importorskip("accelerate").cpu_offload(model, execution_device="cpu")


@pytest.mark.parametrize("wrap", [lora, torch.nn.DataParallel, prepared, offloaded])
@torch.no_grad()
def test_wrapped_models_are_pruned(wrap: Callable[[Any], Any]) -> None:
    """By the wrapped call, and dropping equals hiding in the model with its adapters."""
    inner = TINY["llava"].build()
    model = wrap(inner)
    with vispco.prune(model, schedule=SCHEDULE) as session:
        logits = model(**BATCH, use_cache=False).logits
        if hasattr(model, "generate"):
            model.generate(**BATCH, max_new_tokens=2)
    kept = [session.kept(layer) for layer in range(LAYERS)]
    assert [len(layer[0]) for layer in kept] == [16, 4, 4, 4]
    with checks.hidden_from(vispco.adapter_for(model).model, BATCH, kept):
        wanted = model(**BATCH, use_cache=False).logits
    where = checks.text_places(vispco.adapter_for(model).model, BATCH)
    assert float((logits - wanted)[where].abs().max()) <= 1e-4


@pytest.mark.parametrize("before", [False, True])
@torch.no_grad()
def test_layers_that_are_replaced_in_a_block_are_noticed(before: bool) -> None:
    """Hooks stand on modules; those that PEFT puts in their place, or merges back, would not be read."""
    model = TINY["llava"].build()
    given = lora(model) if before else model
    with vispco.prune(given, schedule=SCHEDULE):
        given(**BATCH)
        changed = given.merge_and_unload() if before else lora(model)
        with pytest.raises(ModelError, match=r"parts of the decoder were replaced inside the prune block, .* again$"):
            changed(**BATCH)
    with vispco.prune(changed, schedule=SCHEDULE) as session:
        logits = changed(**BATCH, use_cache=False).logits[:, -1]
    with checks.hidden_from(model, BATCH, [session.kept(layer) for layer in range(LAYERS)]):
        wanted = changed(**BATCH, use_cache=False).logits[:, -1]
    assert float((logits - wanted).abs().max()) <= 1e-4
    with vispco.prune(changed, method="random", schedule=SCHEDULE):
        layers = vispco.adapter_for(changed).layers()
        layers[1] = copy.deepcopy(layers[1])
        with pytest.raises(ModelError, match="parts of the decoder were replaced"):
            changed(**BATCH)


@torch.no_grad()
def test_a_block_is_not_traced() -> None:
    model = TINY["llava"].build()
    model.requires_grad_(False)

    def logits(ids: Any, pixels: Any) -> Any:
        return model(input_ids=ids, pixel_values=pixels, use_cache=False).logits

    with vispco.prune(model, schedule=SCHEDULE), pytest.raises(ModelError, match="cannot be compiled, traced or exp"):
        torch.jit.trace(logits, (BATCH["input_ids"], BATCH["pixel_values"]), check_trace=False)


@pytest.mark.slow
@torch.no_grad()
def test_compiling_inside_a_block_is_refused_or_changes_nothing() -> None:
    """The whole model meets a hook while it is traced; a layer is traced without its hooks, and those run as ever."""
    model = TINY["llava"].build()
    with vispco.prune(model, schedule=SCHEDULE) as session:
        expected, counts = model(**BATCH).logits, session.counts
        with pytest.raises(ModelError, match="cannot be compiled, traced or exported"):
            torch.compile(model, backend="eager")(**BATCH)
        model.model.language_model.layers[2].compile(backend="eager")
        assert torch.equal(model(**BATCH).logits, expected)
        assert session.counts.tolist() == counts.tolist()


def prompt_tuning(model: Any) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=4,
        token_dim=32,
        num_transformer_submodules=1,
        num_attention_heads=4,
        num_layers=4,
    )
    return peft.get_peft_model(model, config)


def compiled_layer(model: Any) -> Any:
    model.model.language_model.layers[1].compile()
    return model


def compiled_forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward)
    return model


def compiled_in_place(model: Any) -> Any:
    model.compile()
    return model


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (prompt_tuning, "puts tokens of its own before the prompt"),
        (torch.compile, "compiled by torch.compile: pruning changes what the layers receive"),
        (compiled_in_place, "this model was compiled"),
        (compiled_forward, "this model was compiled"),
        (compiled_layer, "'model.language_model.layers.1' of this model was compiled"),
        (lambda model: model.model, "LlavaModel is a part of a 'llava' model.*the one that has generate"),
        (lambda model: model.model.language_model, "no adapter for model family 'llama'"),
    ],
)
def test_what_cannot_be_unwrapped_is_refused(wrap: Callable[[Any], Any], said: str) -> None:
    inner = TINY["llava"].build()
    model = wrap(inner)
    hooks = checks.installed_hooks(inner)
    with pytest.raises(ModelError, match=said), vispco.prune(model, schedule=SCHEDULE):
        pass
    assert checks.installed_hooks(inner) == hooks


@torch.no_grad()
def test_copies_and_pickles_of_a_model_in_a_block_are_plain() -> None:
    model = TINY["llava"].build()
    plain = TINY["llava"].model()(**BATCH).logits
    with vispco.prune(model, schedule=SCHEDULE) as session:
        read = pickle.loads(pickle.dumps(model))  # before transformers puts its own hooks on, which are no pickles
        pruned = model(**BATCH).logits
        copies = copy.deepcopy(model), read
        for other in copies:
            assert torch.equal(other(**BATCH).logits, plain)
        assert session.prefills == 1
    assert not torch.equal(plain, pruned)
    for other in copies:
        assert torch.equal(other(**BATCH).logits, plain)
        how = {"max_new_tokens": 4, "do_sample": False}
        answer = model.generate(**BATCH, **how)
        assert torch.equal(other.generate(**BATCH, **how, prompt_lookup_num_tokens=2), answer)
        with vispco.prune(other, schedule=SCHEDULE):
            assert torch.equal(other(**BATCH).logits, pruned)


@torch.no_grad()
def test_a_pickled_cache_goes_on(tiny_llava: Any) -> None:
    new = torch.tensor([[11, 12]])
    with vispco.prune(tiny_llava, schedule=SCHEDULE):
        cache = tiny_llava(**BATCH).past_key_values
        read = pickle.loads(pickle.dumps(cache))
        found = [tiny_llava(input_ids=new, past_key_values=one).logits for one in (cache, read)]
    assert torch.equal(*found)


@torch.no_grad()
def test_a_block_without_a_prompt_says_so(tiny_llava: Any) -> None:
    with pytest.warns(UserWarning, match="saw no prompt, so nothing was pruned"):
        with vispco.prune(tiny_llava, schedule=SCHEDULE):
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with vispco.prune(tiny_llava, schedule=SCHEDULE):
            tiny_llava(**BATCH)
        with pytest.raises(KeyError), vispco.prune(tiny_llava, schedule=SCHEDULE):
            raise KeyError("inside")


@torch.no_grad()
def test_inputs_by_place_are_those_by_name(tiny_llava: Any) -> None:
    batch = make_batch([(3, 1, 5), (1, 1, 9)])
    with vispco.prune(tiny_llava, schedule=SCHEDULE):
        named = tiny_llava.model(**batch).last_hidden_state
        placed = tiny_llava.model(batch["input_ids"], batch["pixel_values"], batch["attention_mask"]).last_hidden_state
    assert torch.equal(named, placed)


@torch.no_grad()
def test_installed_for_life_it_counts_over_threads(tiny_llava: Any) -> None:
    plain = tiny_llava(**BATCH).logits
    pruner = vispco.install(tiny_llava, schedule=SCHEDULE)
    try:
        working = [threading.Thread(target=lambda: tiny_llava.generate(**BATCH, max_new_tokens=2)) for _ in range(3)]
        for thread in working:
            thread.start()
        for thread in working:
            thread.join()
        assert (pruner.prefills, pruner.visual_tokens, pruner.dropped_tokens) == (3, 48, 36)
        assert pruner.milliseconds > 0
        assert pruner.counts is None
        with pytest.raises(ModelError, match="no prompt was prefilled in this thread"):
            pruner.kept(1)
    finally:
        pruner.remove()
    assert torch.equal(tiny_llava(**BATCH).logits, plain)


def test_weights_of_tensor_subclasses_have_an_identity() -> None:
    """As torchao's int8 weights are: tensors made of others, without views of their own."""
    from torch.testing._internal.two_tensor import TwoTensor

    def model(second: float) -> Any:
        layer = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(layer.weight, 1.0)
        torch.nn.init.zeros_(layer.bias)
        layer.weight = torch.nn.Parameter(TwoTensor(layer.weight.detach(), torch.full((2, 3), second)))
        return layer

    assert weights_hash(model(1.0)) == weights_hash(model(1.0)) != weights_hash(model(2.0))


# --- exported schedules on other models --------------------------------------------------------------


def exported(**facts: Any) -> ScheduleFile:
    return ScheduleFile(Step(1, 0.5), "sparsevlm", {}, facts)


def test_an_exported_schedule_is_held_against_the_model(tiny_llava: Any) -> None:
    right = {"model": "demo", "model_type": "llava", "keep_ratio": [1, 0.5, 0.5, 0.5]}
    with pytest.raises(ScheduleError, match="found on 'demo', which has 8 decoder layers, and this model has 4"):
        vispco.install(tiny_llava, schedule=exported(**{**right, "keep_ratio": [1.0] * 8}))
    with pytest.raises(ScheduleError, match="found on 'demo' of family 'gemma3', and this model is 'llava'"):
        vispco.install(tiny_llava, schedule=exported(**{**right, "model_type": "gemma3"}))
    model, _ = vispco.load_model("demo")
    right["keep_ratio"] = Ratios([1, *[0.5] * 7]).keep_ratio(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        session = vispco.install(model, schedule=exported(**right))
        session.remove()
    assert session.method.name == "sparsevlm"
    with pytest.warns(UserWarning, match="found on 'another/model' and runs on"):
        vispco.install(model, schedule=exported(**{**right, "model": "another/model"})).remove()


def test_every_test_that_the_models_page_names_is_there() -> None:
    root = Path(__file__).parent.parent
    named = set(re.findall(r"`(test_\w+)`", (root / "docs/own.md").read_text()))
    files = [*(root / "tests").glob("test_*.py"), root / "vispco/testing/adapters.py"]
    there = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}
    assert len(named) > 10
    assert named <= there
