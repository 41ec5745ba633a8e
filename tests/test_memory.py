"""Peak memory of a prefill with 4,096 visual tokens, counted tensor by tensor as torch makes and drops them."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vispco
from vispco.models.families import adapter_for
from vispco.pruning.forward.relaxed import relaxed
from vispco.pruning.methods import METHODS, make_method
from vispco.pruning.methods.scope import covering
from vispco.pruning.needs import missing
from vispco.pruning.schedules import MultiStep, Step
from vispco.testing.tiny import IMAGE, TEXT, TINY

pytestmark = pytest.mark.slow

PICTURES = 4
TOKENS = 4 * 1024
# Greedy picks of `cdpruner` are made orthogonal to one another, and so each has a row of floats: 4 N * keep bytes.
# `scope` compares every pair of tokens, which has a test of its own.
EXCEPT = {"cdpruner", "scope"}
QUICK = {"fastv", "pool"}  # one that drops and one that merges
GIVEN = {name for name in METHODS if not missing(make_method(name), adapter_for(TINY["llava"].model()))}


class LiveBytes(TorchDispatchMode):
    """``peak``: most bytes alive at once in storages made inside the block; ``largest``: values of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = self.largest = 0
        self._refs: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            self.largest = max(self.largest, storage.nbytes() // tensor.element_size())
            if key in given or key in self.alive:
                continue
            self.alive[key] = storage.nbytes()
            self._refs[key] = weakref.ref(storage, lambda _, key=key: self.alive.pop(key, None))
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


@pytest.fixture(scope="module")
def model() -> Any:
    """A LLaVA of the usual proportions: MLP 2.7 times the width, 1,024 tokens per picture."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=128, patch_size=4
    )
    text = LlamaConfig(**{**TEXT, "hidden_size": 64, "intermediate_size": 176, "num_key_value_heads": 4})
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def batch(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.cat([torch.full((20,), 9), torch.full((TOKENS,), IMAGE), torch.full((44,), 11)])[None]
    with torch.no_grad():
        pixels = torch.randn(PICTURES, 3, 128, 128)
        features = model.get_image_features(pixel_values=pixels).pooler_output
        embeds = model.get_input_embeddings()(ids)
        embeds[ids == IMAGE] = torch.cat(list(features)).view(-1, 64)
    # Features in place of pixels: the decoder is what is measured.
    return {"input_ids": ids, "embeds": embeds, "pixel_values": pixels}


def measure(model: Any, batch: dict[str, torch.Tensor]) -> LiveBytes:
    adapter = vispco.adapter_for(model)
    visual = adapter.visual_mask(batch["input_ids"], None)
    inputs = adapter.with_features({"input_ids": batch["input_ids"]}, batch["embeds"][visual])
    with torch.no_grad(), LiveBytes() as live:
        model(**inputs, use_cache=True, logits_to_keep=1)
    return live


@pytest.mark.parametrize("schedule", [Step(2, 0.5), MultiStep((1, 2, 3), (0.6, 0.3, 0.1))], ids=["step", "three steps"])
@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in sorted(GIVEN - EXCEPT)],
)
def test_pruning_needs_no_more_than_the_plain_model(model: Any, batch: Any, method: str, schedule: Any) -> None:
    plain, chosen = measure(model, batch), make_method(method)
    with torch.no_grad():
        pixels = {"pixel_values": batch["pixel_values"]}
        _, extras = vispco.adapter_for(model).encode_with_extras(pixels, "middle" in chosen.needs)
    with vispco.prune(model, method=chosen, schedule=schedule) as session:
        session.vision = extras
        pruned = measure(model, batch)
    assert session.counts is not None
    assert int(session.counts[0, 0]) == TOKENS
    assert pruned.peak <= plain.peak, f"{pruned.peak / plain.peak:.3f} of the plain peak"
    assert pruned.largest < TOKENS**2 / 4, "a full attention matrix was formed"
    assert plain.peak > 3 * TOKENS * 176 * 4, "the counter sees too little"


def test_scope_holds_every_pair_twice() -> None:
    """As its docstring says: 8 N² bytes while it picks."""
    vectors = torch.nn.functional.normalize(torch.randn(1024, 8), dim=-1)
    with torch.no_grad(), LiveBytes() as live:
        covering(vectors, torch.rand(1024), 8)
    assert 8 * 1024**2 <= live.peak <= 8.2 * 1024**2


@pytest.mark.parametrize("layers", [8, 16])
def test_what_a_gradient_step_needs(layers: int) -> None:
    """As docs/machines.md says: 2.4 times the layers times a plain forward pass; recomputed, 5 to 6 of them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 344, "num_key_value_heads": 4, "num_hidden_layers": layers}
    vision = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**{**TEXT, **sizes}),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    adapter, count = vispco.adapter_for(model), 512
    ids = torch.cat([torch.full((20,), 9), torch.full((count,), IMAGE), torch.full((44,), 11)])[None]
    inputs = adapter.with_features({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.randn(count, 128))
    with torch.no_grad(), LiveBytes() as plain:
        model(**inputs, use_cache=False, logits_to_keep=1)
    peaks = {}
    for recompute in (False, True):
        ratios = torch.tensor([1.0] + [0.5] * (layers - 1), requires_grad=True)
        with LiveBytes() as live:
            with relaxed(adapter, make_method("fastv"), ratios, recompute=recompute):
                logits = model(**inputs, use_cache=False, logits_to_keep=1).logits
            logits.logsumexp(-1).sum().backward()
        peaks[recompute] = live.peak / plain.peak
    assert 2.3 * layers <= peaks[False] <= 2.5 * layers, peaks
    assert 5 <= peaks[True] <= 6, peaks


def test_the_counter_sees_a_full_matrix(model: Any, batch: Any) -> None:
    model.set_attn_implementation("eager")
    try:
        assert measure(model, batch).largest >= 4 * TOKENS**2
    finally:
        model.set_attn_implementation("sdpa")
