"""The relaxed model: every token stays, a straight-through mask says which ones still count as keys.

The frozen model is differentiated with respect to keep ratios, [L] or one row per sample. At the boundary before
layer l the method ranks the visual tokens that are left, exactly as in the physically pruned forward. The mask of the
token at place j is 1 if j < keep_count(r_l, N_v), else 0; its gradient is that of
``sigmoid((r_l N_v - j - 1/2) / T)``.
A token's mask weighs it as a key for all others (never for itself): the weight is added to the attention
logits as ``log(m + eps)``, so that the model's own attention kernel runs unchanged and the derivative at m = 0
is the effect that bringing the token back would have.

After arXiv 2604.15188 (soft threshold, straight-through mask, masked attention). Deviations: the threshold is
soft in rank, not in score, so that its gradient does not depend on how a method scales its scores; N_v counts
visual tokens only; at r = 1 nothing is dropped; masked positions get weight eps = 1e-20, not eps/N
everywhere (a trained model has logits 18 apart: with eps = 1e-8 dropped tokens still speak).
With a hard mask the forward equals the pruned one (a test).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vispco.errors import ModelError
from vispco.models.base import ModelAdapter
from vispco.models.hooks import Hooks, named_arguments, owner_of_hooks
from vispco.models.vision import VisionExtras
from vispco.pruning.forward.attention import LayerAttention, LookAhead
from vispco.pruning.forward.masks import as_bool_mask, causal_mask
from vispco.pruning.forward.tokens import Prompt, Tokens
from vispco.pruning.forward.tower import TowerReader
from vispco.pruning.methods.base import Method, ScoreContext
from vispco.pruning.needs import LAYER_BEFORE, check_needs

EPSILON = 1e-20


class RelaxedForward:
    """Hooks of one :func:`relaxed` block, for one forward pass at a time."""

    def __init__(
        self,
        adapter: ModelAdapter,
        method: Method,
        ratios: Tensor,
        temperature: float,
        trailing: int,
        sample_keys: list[int],
        vision: VisionExtras | None,
        recompute: bool,
    ) -> None:
        self.recompute, self._forwards = recompute, dict[Any, Any]()
        self.adapter, self.method, self.ratios = adapter, method, ratios.reshape(-1, ratios.shape[-1])
        self.temperature, self.trailing, self.sample_keys = temperature, trailing, sample_keys
        self._captured: dict[str, Tensor] = {}
        self._inputs: dict[str, Any] = {}
        self._last_kwargs: dict[str, Any] = {}
        self._begun: Any = None
        self._hooks = Hooks(owner=self)
        self._vision, self._tower = vision, TowerReader(adapter, method)

    def install(self) -> None:
        if owner_of_hooks(self.adapter.layers()[0]) is not None:
            raise ModelError("this model is already inside a prune block; leave it before relaxing the model")
        hooks = self._hooks
        hooks.before(self.adapter.entry(), self._on_entry)
        hooks.before(self.adapter.decoder(), self._on_decoder)
        for number, layer in enumerate(self.adapter.layers()):
            hooks.before(layer, self._layer_hook(number))
            if self.method.needs & LAYER_BEFORE and number + 1 < self.ratios.shape[1]:
                for what, module in zip(("queries", "keys"), self.adapter.projections(number), strict=True):
                    hooks.after(module, self._capture_hook(what))
        self._tower.install(hooks)
        if self.recompute:
            for layer in self.adapter.layers()[1:]:
                self._forwards[layer] = vars(layer).get("forward")
                layer.forward = self._recomputed(layer.forward)

    def remove(self) -> None:
        self._hooks.remove()
        for layer, own in self._forwards.items():
            if own is None:
                del layer.forward
            else:
                layer.forward = own
        self._forwards.clear()
        self._captured.clear()
        self._tower.clear()

    def _capture_hook(self, what: str) -> Any:
        def capture(module: Any, args: Any, output: Tensor) -> None:
            self._captured[what] = output.detach()

        return capture

    def _on_entry(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._inputs = named_arguments(module, args, kwargs)
        self._captured.clear()
        self._tower.on_entry(self._inputs)

    def _on_decoder(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        inputs = self._inputs
        visual = self.adapter.visual_mask(inputs.get("input_ids"), inputs.get("inputs_embeds"))
        mask = inputs.get("attention_mask")
        valid = mask.bool() if mask is not None else torch.ones_like(visual)
        places = torch.arange(valid.shape[1], device=valid.device)
        self.valid, self.visual = valid, visual & valid
        self.mask = valid.to(self.ratios.dtype)
        self.prompt_part = valid & (places < len(places) - self.trailing)
        self.tokens = Tokens.of(self.visual, self.prompt_part)
        self.diagonal = torch.eye(len(places), dtype=torch.bool, device=places.device)
        self.prompt = Prompt(
            embeddings=kwargs["inputs_embeds"].detach(),
            visual=self.visual,
            valid=self.prompt_part,
            read_coordinates=lambda: self.adapter.coordinates(inputs, self.visual),
            read_keys=lambda: self.sample_keys,
            read_vision=lambda: self._tower.rows(inputs, visual, valid, self._vision),
        )
        with torch.no_grad():
            self._begun = self.method.begin(self.prompt)

    def _layer_hook(self, number: int) -> Any:
        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = kwargs.get("attention_mask")
            if number == 0:
                self._last_kwargs = kwargs
                return None
            self._drop(number, args[0] if args else kwargs["hidden_states"], kwargs)
            self._last_kwargs = kwargs
            return None if self.recompute else (args, {**kwargs, "attention_mask": self._additive(self.mask, given)})

        return before

    def _additive(self, mask: Tensor, given: Tensor | None) -> Tensor:
        """[B, 1, T, T]: what attention logits get; ``mask`` [B, T] weighs keys, ``given`` is the model's own mask."""
        seen = causal_mask(self.valid, self.valid.shape[1]) if given is None else as_bool_mask(given)
        weight = torch.log(mask + EPSILON)[:, None, None, :].masked_fill(self.diagonal, 0.0)
        additive = weight.to(self.adapter.dtype())
        return additive.masked_fill(~(seen | self.diagonal), torch.finfo(additive.dtype).min)

    def _recomputed(self, forward: Any) -> Any:
        """A layer's forward that keeps its input only; in the backward pass it runs again."""

        def run(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
            def layer(mask: Tensor, *args: Any, **kwargs: Any) -> Any:
                return forward(*args, attention_mask=self._additive(mask, attention_mask), **kwargs)

            if not (torch.is_grad_enabled() and self.mask.requires_grad):
                return layer(self.mask, *args, **kwargs)
            return checkpoint(layer, self.mask, *args, use_reentrant=False, **kwargs)

        return run

    def _drop(self, number: int, hidden: Tensor, entering: dict[str, Any]) -> None:
        """Multiply the mask by the keep mask of the boundary before layer ``number``."""
        ratio = self.ratios[:, number, None].to(self.mask.device)
        with torch.no_grad():
            alive, left = self.visual & (self.mask > 0.5), self.prompt_part & (self.mask > 0.5)
            kwargs = self._last_kwargs
            context = ScoreContext(
                boundary=number,
                visual=alive,
                valid=left,
                last=self.tokens.last(),
                index=self.tokens.index,
                rank=self.tokens.rank,
                prompt=self.prompt,
                shape=self.adapter.shape(),
                attention=cache(
                    lambda: LayerAttention(
                        self.adapter,
                        number - 1,
                        queries=self._captured["queries"],
                        keys=self._captured["keys"],
                        position_embeddings=kwargs["position_embeddings"],
                        valid=left,
                        mask=kwargs.get("attention_mask"),
                    )
                ),
                begun=self._begun,
                look_ahead=cache(
                    lambda: LookAhead(
                        self.adapter,
                        number,
                        hidden=hidden,
                        position_embeddings=entering["position_embeddings"],
                        valid=left,
                        mask=entering.get("attention_mask"),
                    )
                ),
                final_norm=self.adapter.norm,
            )
            scores = self.method.score(context).masked_fill(~alive, -torch.inf)
            order = scores.argsort(dim=-1, descending=True, stable=True)
            places = torch.arange(order.shape[1], device=order.device).expand_as(order)
            place = torch.empty_like(order).scatter_(1, order, places).to(self.ratios.dtype)
            visual = self.visual.sum(dim=1, keepdim=True)
            n_visual = visual.to(self.ratios.dtype)
            hard = (place < kept_counts(ratio, visual)).to(self.ratios.dtype)
        soft = torch.sigmoid((ratio * n_visual - place - 0.5) / (self.temperature * n_visual.clamp(min=1)))
        keep = hard + soft - soft.detach()
        self.mask = torch.where(self.visual, self.mask * keep, self.mask)


def kept_counts(ratio: Tensor, n_visual: Tensor) -> Tensor:
    """:func:`vispco.pruning.schedules.keep_count`, elementwise, float64. Ratios of single precision stand for the
    number of six digits nearest to them: 0.35 in float32 is less than 0.35, and half a token decides."""
    asked = ratio.detach()
    asked = asked if asked.dtype == torch.float64 else asked.double().mul(1e6).round().div(1e6)
    return torch.maximum(torch.floor(asked * n_visual + 0.5), (asked > 0).double())


@contextmanager
def relaxed(
    adapter: ModelAdapter,
    method: Method,
    ratios: Tensor,
    *,
    temperature: float = 0.1,
    trailing: int = 0,
    sample_keys: list[int] | None = None,
    vision: VisionExtras | None = None,
    recompute: bool = False,
) -> Iterator[RelaxedForward]:
    """Inside the block the model's forward is differentiable in ``ratios``, [L] or [B, L]; layer 0's must be 1.

    Args:
        temperature: width of the straight-through mask's gradient, as a share of the visual tokens.
        trailing: answer tokens after the prompt; methods see the prompt only.
        sample_keys: [B], tell samples apart for seeded methods.
        vision: of the batch's visual tokens, for methods that read the vision tower where the model is given features.
        recompute: keep only what enters each layer, and run the layer again in the backward pass: a small part of the
            memory for one more forward pass, and the same numbers.

    Raises:
        ModelError: the model lacks what the method needs, is in float16, the method's scores cannot drive the relaxed
            model, or the attention backend takes no additive mask.
    """
    if not method.differentiable:
        raise ModelError(
            f"method {method.name!r} cannot drive the relaxed model; use one that ranks by model signals, e.g. fastv"
        )
    check_needs(method, adapter)
    if any(map(adapter.recurrent, range(len(adapter.layers())))):
        raise ModelError(
            "layers of this decoder are linear attention, and no mask takes a token out of a recurrence by degrees; "
            "use a search without gradients: grid, random, tpe"
        )
    if adapter.dtype() == torch.float16:
        raise ModelError(
            "in float16 the gradient of a token that was dropped is 0, as its share of the attention is below the "
            "smallest number; set model.dtype: bfloat16 or float32, or use a search without gradients"
        )
    attention = adapter.attention()
    if attention not in ("sdpa", "eager"):
        raise ModelError(
            f"the relaxed model needs sdpa or eager attention, not {attention!r}; set model.attention: sdpa"
        )
    session = RelaxedForward(adapter, method, ratios, temperature, trailing, sample_keys or [], vision, recompute)
    try:
        session.install()
        yield session
    finally:
        session.remove()
