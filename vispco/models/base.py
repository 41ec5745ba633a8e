"""What the pruning runtime and the cost model need to know of a transformers model family."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from vispco.errors import ModelError
from vispco.models.hooks import Hooks
from vispco.models.wrappers import unwrapped
from vispco.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vispco.models.vision import VisionExtras, VisionWatch

ADAPTERS = Registry("model family", "models")
GUIDE = "docs/extending.md"
UNSERVED = {
    "gemma3n": "its hidden states are four streams side by side and half of its layers reuse keys and values, so "
    "tokens cannot be cut between layers; use Gemma 3 or Gemma 4",
    "nemotron_h_omni": "most of its layers are Mamba blocks or experts without attention, and its decoder is another "
    "causal model; use a model with attention in every layer",
}


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one decoder layer of a model whose layers are not all alike, or not what the formula assumes.

    ``weights``: multiply-adds per token outside attention: projections, MLP, router, the experts that a token is sent
    to. Linear attention has no ``heads`` of the usual kind; it costs ``chunk`` FLOPs for every 64 tokens started, and
    its convolution ``spread`` FLOPs for every token and ``spread`` times ``beyond`` at the ends.
    """

    heads: int
    kv_heads: int
    head_dim: int
    weights: int
    chunk: int = 0
    spread: int = 0
    beyond: int = 0


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder, in the letters of the FLOPs formula (``vispco.costs``).

    ``vision_width``, ``vision_heads``: of the vision tower, where methods can read it. ``each``: the layers one by
    one, where the formula with the sizes above does not hold for all of them (experts, several kinds of attention).
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vision_width: int = 0
    vision_heads: int = 0
    each: tuple[LayerShape, ...] = ()

    @property
    def weights(self) -> int:
        """Multiply-adds per token and layer outside attention, by the formula: ``2Hhd + 2Hgd + 3HI``."""
        return 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim + 3 * self.hidden * self.mlp

    def at(self, layer: int) -> ModelShape:
        """The same decoder with the attention sizes of ``layer``."""
        if not self.each:
            return self
        own = self.each[layer]
        return replace(self, heads=own.heads, kv_heads=own.kv_heads, head_dim=own.head_dim)


class Grid(NamedTuple):
    """Cells of one picture or video as the vision tower saw it, in the order of its tokens.

    ``row_end``: a token that is no cell stands after every row; ``end``: after the last cell. It has a place all
    the same, the column after its row's last one. ``view``: 0, or which further view (thumbnail, tile, crop) of
    the picture before it this is.
    """

    frames: int
    rows: int
    columns: int
    row_end: bool = False
    end: bool = False
    view: int = 0

    @property
    def tokens(self) -> int:
        return self.frames * self.rows * (self.columns + self.row_end) + self.end

    def places(self) -> Tensor:
        """int [tokens, 3]: frame, row, column."""
        import torch

        axes = torch.arange(self.frames), torch.arange(self.rows), torch.arange(self.columns + self.row_end)
        cells = torch.cartesian_prod(*axes).view(-1, 3)
        last = torch.tensor([[self.frames - 1, self.rows - 1, self.columns + self.row_end]])
        return torch.cat([cells, last]) if self.end else cells


@dataclass(frozen=True, eq=False)
class Deepstack:
    """Visual features that a decoder adds to hidden states after its layers 0, 1, ...

    ``places``: bool [B, T], the tokens that get them; ``features``: per layer [places.sum(), H], in reading order.
    """

    places: Tensor
    features: Sequence[Tensor]

    def add(self, layer: int, hidden: Tensor, index: Tensor) -> Tensor:
        """What leaves ``layer``, [B, n, H], of the tokens at ``index`` [B, n] of the prompt, with its features."""
        rows = self.places.flatten().cumsum(0).sub(1).view(self.places.shape).gather(1, index)
        here = self.places.gather(1, index)
        features = self.features[layer]
        chosen = features[rows[here].to(features.device)].to(hidden.device, hidden.dtype)
        here, hidden = here.to(hidden.device), hidden.clone()
        hidden[here] = hidden[here] + chosen
        return hidden


class ModelAdapter(ABC):
    """Everything that differs between model families; methods and searches never look at the class.

    Subclasses set ``model_types`` (the values of ``config.model_type`` they serve) and ``examples`` (hub ids), and
    register with ``@ADAPTERS.register(name)``. Nothing here may leave an attribute or a hook on the model. The defaults
    describe a model with ``model.language_model.layers`` and Llama-like attention.
    """

    model_types: ClassVar[tuple[str, ...]]
    examples: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Any) -> None:
        self.model = model

    # --- modules ---------------------------------------------------------------------------------

    def entry(self) -> nn.Module:
        """The module that receives ``input_ids`` and the 2-D mask by keyword and calls the decoder."""
        module: nn.Module = self.model.model
        return module

    def decoder(self) -> nn.Module:
        """The module that owns the decoder layers and receives ``inputs_embeds``."""
        module: nn.Module = self.model.model.language_model
        return module

    def layers(self) -> Sequence[nn.Module]:
        """The decoder layers, in order; called with ``attention_mask`` and ``position_embeddings`` by keyword."""
        layers: Sequence[nn.Module] = self.decoder().layers  # type: ignore[assignment]
        return layers

    def norm(self, hidden: Tensor) -> Tensor:
        """The norm after the last layer, of [B, n, H]."""
        normed: Tensor = self.decoder().norm(hidden)  # type: ignore[operator]
        return normed

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [B, n, V] of what leaves the last layer, [B, n, H]."""
        logits: Tensor = self.model.lm_head(self.norm(hidden))
        return logits

    def shape(self) -> ModelShape:
        """Sizes of the decoder."""
        config, watch = self.layer_config(0), self.watch_vision()
        shape = ModelShape(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            mlp=config.intermediate_size,
            vision_width=watch.width if watch else 0,
            vision_heads=watch.heads if watch else 0,
        )
        each = tuple(self.layer_shape(number, shape) for number in range(shape.layers))
        alike = LayerShape(shape.heads, shape.kv_heads, shape.head_dim, shape.weights)
        return shape if set(each) == {alike} else replace(shape, each=each)

    @cached_property
    def known_shape(self) -> ModelShape:
        """:meth:`shape`, read once: for what is asked in every forward."""
        return self.shape()

    @cached_property
    def recurrent_layers(self) -> frozenset[int]:
        """Layers that are :meth:`recurrent`, read once."""
        return frozenset(filter(self.recurrent, range(len(self.layers()))))

    def layer_config(self, number: int) -> Any:
        """The configuration that says the sizes of layer ``number``. Default: that of the text decoder."""
        return self.model.config.get_text_config()

    def layer_shape(self, number: int, shape: ModelShape) -> LayerShape:
        """Sizes of layer ``number``; ``shape``: the decoder's. Default: its attention, and the weights it holds."""
        return LayerShape(shape.heads, shape.kv_heads, shape.head_dim, self._layer_weights[number])

    @cached_property
    def _layer_weights(self) -> list[int]:
        """Of each layer, the weights of its matrices; of experts, the share that a token is sent to."""
        return [weights_of(layer, self.model.config.get_text_config()) for layer in self.layers()]

    def provides(self) -> frozenset[str]:
        """What methods may read of this model, names of ``vispco.pruning.needs.NEEDS``."""
        watch = self.watch_vision()
        tower = {"vision"} if watch else set()
        rows = {"attention", "keys", "look_ahead"} if self._readable else set()
        more = {"text_tower"} if watch and watch.text_tower else set()
        more |= {"middle"} if watch and watch.middle_layer is not None else set()
        return frozenset(rows | tower | more | ({"pixels"} if watch and watch.pixels else set()))

    # --- attention -------------------------------------------------------------------------------

    @cached_property
    def _readable(self) -> bool:
        """Whether the decoder's queries and keys come from projections of their own and turn as :meth:`rotate` does.
        Families that take any text decoder may hold one where they do not (Phi-3, Cohere). Where some layers are
        linear attention, the layer before a boundary mostly has none to read."""
        import torch

        if any(self.recurrent(layer) for layer in range(len(self.layers()))):
            return False
        attention: Any = self.layers()[0].self_attn
        if not (hasattr(attention, "q_proj") and hasattr(attention, "k_proj")):
            return False
        rotate = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
        if rotate is None:
            return True
        values = torch.arange(6.0 * self.shape().at(0).head_dim).sin().view(3, 1, 1, 2, -1)
        heads, cos, sin = values[0], values[1][0], values[2][0]
        try:
            turned = rotate(heads, heads, cos, sin)[0]
        except (RuntimeError, TypeError):
            return False
        return turned.shape == heads.shape and torch.allclose(turned, self.rotate(heads, (cos, sin)))

    def projections(self, layer: int) -> tuple[nn.Module, nn.Module]:
        """The modules whose outputs are queries and keys just before rotation; :meth:`to_heads` reads them.

        Default: the projections, or the norms after them where there are any (Qwen 3).
        """
        attention: Any = self.layers()[layer].self_attn
        if hasattr(attention, "q_norm"):
            return attention.q_norm, attention.k_norm
        return attention.q_proj, attention.k_proj

    def to_heads(self, projected: Tensor, heads: int) -> Tensor:
        """[B, heads, n, d] of such an output, here [B, n, heads * d] or [B, n, heads, d]."""
        return projected.view(*projected.shape[:2], heads, -1).transpose(1, 2)

    def rotate(self, heads: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        """Apply the family's position rotation to [B, heads, n, d]; cosine and sine are [B, n, d], or narrower where
        it turns the first part of each head."""
        return rotate_part(heads, position_embeddings)

    def project(self, layer: int, hidden: Tensor, what: str) -> Tensor:
        """``"queries"`` or ``"keys"`` before rotation that ``layer`` makes of its input [B, n, H]: [B, heads, n, d]."""
        block: Any = self.layers()[layer]
        attention, letter = block.self_attn, what[0]
        projected = getattr(attention, f"{letter}_proj")(block.input_layernorm(hidden))
        shape = self.shape().at(layer)
        heads = shape.heads if what == "queries" else shape.kv_heads
        projected = projected.view(*hidden.shape[:2], heads, -1).transpose(1, 2)
        norm = getattr(attention, f"{letter}_norm", None)
        return projected if norm is None else norm(projected)  # type: ignore[no-any-return]

    def attention_scale(self, layer: int) -> float:
        """What logits are multiplied with before the softmax: the layer's own ``scaling``, or one over sqrt(d)."""
        scaling = getattr(self.layers()[layer].self_attn, "scaling", None)
        return float(scaling) if scaling is not None else 1.0 / math.sqrt(self.shape().head_dim)

    def recurrent(self, layer: int) -> bool:
        """Whether ``layer`` is linear attention: a convolution and a recurrence over its tokens, without a mask."""
        kinds = getattr(self.model.config.get_text_config(), "layer_types", None)
        return kinds is not None and kinds[layer] == "linear_attention"

    def sliding_window(self, layer: int) -> int | None:
        """How many places back a query of ``layer`` sees, itself included; None: all."""
        config = self.model.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        if kinds is not None and kinds[layer] != "sliding_attention":
            return None
        return getattr(config, "sliding_window", None)

    def attention(self) -> str:
        """Name of the decoder's attention backend: ``sdpa``, ``eager``, ..."""
        config: Any = self.decoder().config
        return config._attn_implementation or "eager"

    def dtype(self) -> torch.dtype:
        return next(self.decoder().parameters()).dtype

    def decoding_inputs(self, attention_mask: Tensor, new: int) -> dict[str, Tensor]:
        """What ``model(input_ids, attention_mask, past_key_values)`` needs besides for ``new`` tokens on its cache.

        ``attention_mask``: [B, T], new tokens included. Default: nothing; the model counts on from its cache.
        """
        return {}

    def with_text(self, inputs: dict[str, Any], ids: Tensor) -> dict[str, Any]:
        """``inputs`` with text tokens ``ids`` [B, n] after every (left-padded) prompt."""
        import torch

        longer = dict(inputs)
        new = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            if inputs.get(key) is not None:
                more = new.get(key, torch.zeros_like(ids))
                longer[key] = torch.cat([inputs[key], more.to(inputs[key].dtype)], dim=1)
        return longer

    def note_pictures(self, noted: Callable[[], dict[str, Any]], hooks: Hooks) -> None:
        """Put hooks on the model that put into ``noted()`` what ``generate`` leaves out of the inputs and :meth:`grids`
        needs. Default: none."""
        return

    # --- visual features that the decoder adds between its layers ----------------------------------

    def deepstack_layers(self) -> int:
        """After how many of its first layers the decoder adds visual features. Default: none."""
        return 0

    def take_deepstack(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], Deepstack | None]:
        """The decoder's arguments without such features, and the features: what is left adds none by itself."""
        return kwargs, None

    # --- pictures --------------------------------------------------------------------------------

    @abstractmethod
    def visual_token_ids(self) -> tuple[int, ...]:
        """Token ids that stand for visual tokens in ``input_ids``."""

    @abstractmethod
    def grids(self, inputs: dict[str, Any], runs: Sequence[int]) -> Sequence[Grid | tuple[int, int, int]]:
        """Grid of every picture in the batch, in reading order; plain (frames, rows, columns) will do.

        A picture that is encoded as several views (a thumbnail and tiles) has a grid for each.

        Args:
            inputs: what the entry module received.
            runs: lengths of the runs of visual tokens that belong together, in reading order.
        """

    @abstractmethod
    def encode_images(self, inputs: dict[str, Any]) -> Tensor:
        """Visual features of a batch, [total visual tokens, H], in the order of their places in ``input_ids``.

        A family with deepstack appends those features: [total visual tokens, H + layers * H].
        """

    def watch_vision(self) -> VisionWatch | None:
        """Reads attention and keys off the vision tower while it runs; None: this adapter does not tell how."""
        return None

    def join_extras(self, inputs: dict[str, Any], calls: Sequence[VisionExtras]) -> VisionExtras:
        """Extras of the calls of the tower that one batch made, in the order of :meth:`encode_images`."""
        from vispco.models.vision import VisionExtras

        return VisionExtras.join(calls)

    def encode_with_extras(self, inputs: dict[str, Any], middle: bool = False) -> tuple[Tensor, VisionExtras]:
        """:meth:`encode_images`, and what was read off the tower in the same pass; ``middle``: its middle layer too.

        Raises:
            ModelError: there is nothing to read.
        """
        watch = self.watch_vision()
        if watch is None:
            raise ModelError(
                f"the adapter of model family {self.model.config.model_type!r} does not watch its vision tower"
            )
        watch.middle = middle
        hooks = Hooks()
        watch.install(hooks)
        try:
            features = self.encode_images(inputs)
        finally:
            hooks.remove()
        calls = watch.take(len(features))
        if calls is None:
            raise ModelError(
                f"the vision tower of model family {self.model.config.model_type!r} showed other tokens than its "
                f"{len(features)} visual ones; its adapter's watch_vision must follow how features are put together"
            )
        return features, self.join_extras(inputs, calls)

    @abstractmethod
    def with_features(self, inputs: dict[str, Any], features: Tensor) -> dict[str, Any]:
        """``inputs`` with pixels replaced by ``features`` from :meth:`encode_images`."""

    def visual_mask(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """bool [B, T], True where the position came from pixels."""
        return self.places_of(self.visual_token_ids(), input_ids, inputs_embeds)

    def places_of(self, tokens: Sequence[int], input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """bool [B, T], True where one of ``tokens`` stands."""
        import torch

        if input_ids is not None:
            return torch.isin(input_ids, torch.tensor(list(tokens), device=input_ids.device))
        assert inputs_embeds is not None
        table = self.model.get_input_embeddings()
        found = torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        for token in tokens:
            embedded = table(torch.tensor(token, device=inputs_embeds.device))
            found |= (inputs_embeds == embedded).all(-1)
        return found

    def seen(self, inputs: dict[str, Any]) -> Tensor | None:
        """Normalised pixels [grids, 3, height, width] of what each grid covers; None: the whole original pictures."""
        pixels: Tensor = inputs["pixel_values"]
        return pixels if pixels.ndim == 4 else None

    def views(self, inputs: dict[str, Any], visual: Tensor) -> list[Grid]:
        """Grids of the pictures whose tokens are at ``visual`` [B, T], less those that have none."""
        grids = [Grid(*grid) for grid in self.grids(inputs, _runs(visual.cpu()))]
        return [grid for grid in grids if grid.tokens]

    def coordinates(self, inputs: dict[str, Any], visual: Tensor) -> Tensor:
        """int [B, T, 4]: (picture, frame, row, column) of visual tokens, 0 elsewhere; pictures count per sample.

        Every view of a picture counts as one; tokens that are no cell stand in the column after their row.
        """
        import torch

        found = torch.zeros(*visual.shape, 4, dtype=torch.long)
        places = visual.cpu()
        grids = iter(self.views(inputs, visual))
        for row in range(len(places)):
            at, picture, start = places[row].nonzero()[:, 0], 0, 0
            while start < len(at):
                cells = next(grids).places()
                part = at[start : start + len(cells)]
                found[row, part, 0] = picture
                found[row, part, 1:] = cells[: len(part)]
                start, picture = start + len(cells), picture + 1
        return found.to(visual.device)


def rotate_part(heads: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """Position rotation of the first r of d values of ``heads`` [B, heads, n, d] by cosine and sine [B, n, r], half
    against half."""
    import torch

    cos, sin = (part.unsqueeze(1) for part in position_embeddings)
    turned, rest = heads[..., : cos.shape[-1]], heads[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def weights_of(layer: nn.Module, config: Any) -> int:
    """Multiply-adds per token of a layer's matrices, those of attention's two products apart.

    Linear modules and routers take every token. Experts lie in tensors with their number in front, and a token is sent
    to ``num_experts_per_tok`` of them.
    """
    total = 0
    for module in layer.modules():
        own = dict(module.named_parameters(recurse=False))
        stacked = [weight for weight in own.values() if weight.ndim == 3 and not hasattr(module, "kernel_size")]
        if hasattr(module, "in_features"):
            total += int(module.in_features) * int(module.out_features)  # type: ignore[arg-type]
        elif stacked:
            total += sum(weight[0].numel() for weight in stacked) * _experts_per_token(config)
        elif "weight" in own and own["weight"].ndim == 2:
            total += own["weight"].numel()
    return total


def _experts_per_token(config: Any) -> int:
    for name in ("num_experts_per_tok", "top_k_experts"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    raise ModelError(
        f"the configuration of {config.model_type!r} does not say how many experts a token is sent to, so its FLOPs "
        f"cannot be counted; its adapter must override layer_shape: see {GUIDE}"
    )


def _runs(visual: Tensor) -> list[int]:
    """Lengths of the runs of True in a bool [B, T] on the CPU, row by row."""
    lengths = []
    for row in visual:
        edges = row.int().diff(prepend=row.new_zeros(1).int(), append=row.new_zeros(1).int())
        lengths += ((edges == -1).nonzero()[:, 0] - (edges == 1).nonzero()[:, 0]).tolist()
    return lengths


def fixed_grids(runs: Sequence[int], tokens: int) -> list[Grid]:
    """Square grids of ``tokens`` cells for runs of one or more such pictures."""
    side = math.isqrt(tokens)
    grid = Grid(1, side, side) if side * side == tokens else Grid(1, 1, tokens)
    return [grid for run in runs for _ in range(max(1, run // tokens))]


def register_builtin() -> None:
    """Import the adapters of this package; each registers itself."""
    from vispco.models import (  # noqa: F401
        gemma3,
        gemma4,
        glm4v,
        idefics3,
        internvl,
        llava,
        llava_next,
        llava_onevision,
        mistral3,
        qwen2_5_vl,
        qwen2_vl,
        qwen3_5,
        qwen3_vl,
    )


def adapter_for(model: Any) -> ModelAdapter:
    """The adapter of a loaded transformers model.

    The model may be inside a wrapper of PEFT or torch (:func:`vispco.models.wrappers.unwrapped`).

    Raises:
        ModelError: no adapter serves the model's family, it is a part of a model, or its wrapper cannot be opened.
    """
    register_builtin()
    model = unwrapped(model)
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    served: dict[str, type[ModelAdapter]] = {t: ADAPTERS[n] for n in ADAPTERS for t in ADAPTERS[n].model_types}
    if model_type in UNSERVED:
        raise ModelError(f"model family {model_type!r} is not served: {UNSERVED[model_type]}")
    if model_type not in served:
        raise ModelError(
            f"no adapter for model family {model_type!r}; known families: {', '.join(sorted(served))}. "
            f"To add one, subclass vispco.models.base.ModelAdapter in one file: see {GUIDE}"
        )
    adapter = served[model_type](model)
    try:
        adapter.entry(), adapter.decoder(), adapter.layers()
    except AttributeError:
        raise ModelError(
            f"{type(model).__name__} is a part of a {model_type!r} model, without its decoder layers or its head; give "
            "the whole model, the one that has generate"
        ) from None
    return adapter
