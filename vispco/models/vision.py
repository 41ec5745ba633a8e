"""What a vision tower knows of the visual tokens beside their features, read off it while it runs.

Nothing is computed twice and nothing is changed: hooks keep the queries and keys of one or two layers, and what the
projector receives, until the projector is called. Attention is then computed for the rows that are needed.
"""

from __future__ import annotations

import itertools
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from vispco.models.hooks import Hooks
from vispco.models.pixels import prediction_errors

BLOCK = 1 << 22  # values of attention that are alive at once


@dataclass(frozen=True, eq=False)
class VisionExtras:
    """Of N visual tokens, in the order of ``ModelAdapter.encode_images``; a token of several patches has their means.

    ``attention`` float32 [N]: what the token gets in the layer that makes the features, mean over heads, from the CLS
    token (``source`` "cls") or, in a tower without one, from all patches of its picture, mean over these ("received").
    ``pseudo_attention`` float32 [N]: the same in the tower's last layer with all heads taken as one. ``among`` float32
    [N]: how many patches share this attention, which adds up to 1 over those of one picture. ``keys``,
    ``last_keys`` [N, C]: keys of these two layers, heads side by side. ``features`` [N, C]: what the projector
    receives (of several layers the last). ``relevance`` float32 [N]: cosine of token and question under a text tower
    trained with this one, where the adapter has one. ``novelty`` float32 [N]: by how much a token's pixels differ from
    what its neighbours predict, where the tower is given patches. ``received`` and ``middle`` float32 [N], where they
    were asked for: what the token gets from all rows in the layer that makes the features and in a middle one, mean
    over heads and rows. ``flops``: what reading cost beside the tower.

    A visual token that the tower knows nothing of (a learned newline) has zeros everywhere, also in ``among``.
    """

    attention: Tensor
    pseudo_attention: Tensor
    among: Tensor
    keys: Tensor
    last_keys: Tensor
    features: Tensor
    heads: int
    source: str
    relevance: Tensor | None = None
    novelty: Tensor | None = None
    received: Tensor | None = None
    middle: Tensor | None = None
    flops: int = 0

    def __len__(self) -> int:
        return len(self.attention)

    def beside(self, attention: Tensor) -> Tensor:
        """``attention`` [N] with that of larger pictures raised, so that tokens of several pictures can be ranked.

        As it is, a token of a small picture gets more for being one of few. Times ``among``, it says how much more a
        token gets than the average token of its picture. Unchanged where all pictures have one size.
        """
        return attention * (self.among / self.among.max()) if len(self) else attention

    def _each(self, change: Callable[[Tensor], Tensor]) -> VisionExtras:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {k: change(value) for k, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed)

    def rearranged(self, change: Callable[[Tensor], Tensor]) -> VisionExtras:
        """Other tokens, made by ``change`` of [N, C] to [M, C], for what is read of one channel too."""
        return self._each(lambda values: change(values) if values.ndim == 2 else change(values[:, None])[:, 0])

    def take(self, where: Tensor | slice) -> VisionExtras:
        """The tokens at ``where``, an index or a mask [N]."""
        return self._each(lambda values: values[where])

    def split(self, counts: Sequence[int]) -> list[VisionExtras]:
        """Parts of these many tokens."""
        ends = [sum(counts[: number + 1]) for number in range(len(counts))]
        return [self.take(slice(end - count, end)) for end, count in zip(ends, counts, strict=True)]

    @staticmethod
    def join(parts: Sequence[VisionExtras]) -> VisionExtras:
        """Of several calls of the tower, one after the other."""
        first = parts[0]
        if len(parts) == 1:
            return first
        tensors = {field.name for field in fields(first) if isinstance(getattr(first, field.name), Tensor)}
        joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in tensors}
        return replace(first, **joined, flops=sum(part.flops for part in parts))


class _Thread(threading.local):
    """What the tower did in one thread."""

    def __init__(self) -> None:
        self.calls: list[VisionExtras] = []
        self.seen: dict[Any, Any] = {}


class VisionWatch(ABC):
    """Reads :class:`VisionExtras` off a vision tower. ``width`` C of its keys and features; ``text_tower``: whether
    the adapter adds ``relevance``; ``pixels``: whether it adds ``novelty``. ``middle_layer``: number of the layer for
    ``middle``, None if it cannot; ``middle``: whether to read it, set before :meth:`install`."""

    width: int
    heads: int
    text_tower = False
    pixels = False
    middle_layer: int | None = None
    middle = False

    def __init__(self) -> None:
        self._thread = _Thread()

    @property
    def _calls(self) -> list[VisionExtras]:
        return self._thread.calls

    @property
    def _seen(self) -> dict[Any, Any]:
        return self._thread.seen

    @abstractmethod
    def install(self, hooks: Hooks) -> None:
        """Put its hooks on the tower."""

    @abstractmethod
    def _read(self, features: Tensor) -> VisionExtras:
        """Extras of the call whose parts are in ``_seen``; ``features`` are what the projector receives."""

    def _on_projector(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features: Tensor = args[0] if args else next(iter(kwargs.values()))
        with torch.no_grad():
            self._calls.append(self._read(features.detach()))
        self._seen.clear()

    def _keep(self, key: Any) -> Any:
        def hook(module: Any, args: Any, output: Tensor) -> None:
            self._seen[key] = output.detach()

        return hook

    def take(self, tokens: int) -> list[VisionExtras] | None:
        """Extras of the last calls that gave ``tokens`` visual tokens in all; None if there are none such."""
        found: list[VisionExtras] = []
        while self._calls and sum(map(len, found)) < tokens:
            found.insert(0, self._calls.pop())
        self.clear()
        return found if found and sum(map(len, found)) == tokens else None

    @property
    def read(self) -> int:
        """Visual tokens of the calls so far."""
        return sum(map(len, self._calls))

    def clear(self) -> None:
        self._calls.clear()
        self._seen.clear()


class EncoderWatch(VisionWatch):
    """CLIP, SigLIP and towers built like them: ``q_proj`` and ``k_proj`` in each layer, pictures of one size.

    Args:
        layers: the tower's layers.
        layer: number of the one that makes the features.
        heads: attention heads.
        projector: the module that receives the features, [P, n, C].
        cls: whether a CLS token stands before the patches.
        drop_cls: whether the projector goes without it.
        cell: patches per side of the square cells that become one visual token.
        attention: name of a layer's attention module.
        shuffled: whether the projector receives the patches of a cell side by side, [P, tokens, cell * cell * C].
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        layer: int,
        heads: int,
        projector: nn.Module,
        *,
        cls: bool,
        drop_cls: bool = False,
        cell: int = 1,
        attention: str = "self_attn",
        shuffled: bool = False,
    ) -> None:
        super().__init__()
        self.layer, self.heads, self.projector = layer, heads, projector
        self.cls, self.drop_cls, self.cell, self.shuffled = cls, drop_cls, cell, shuffled
        self.attentions: list[Any] = [getattr(part, attention) for part in layers]
        self.width: int = self.attentions[layer].k_proj.out_features
        self.middle_layer: int = max(1, round(len(self.attentions) * 9 / 24)) - 1

    def install(self, hooks: Hooks) -> None:
        hooks.before(self.projector, self._on_projector)
        for number in {self.layer, len(self.attentions) - 1, *([self.middle_layer] if self.middle else [])}:
            attention = self.attentions[number]
            for what in ("q_proj", "k_proj"):
                module = getattr(attention, what.replace("proj", "norm"), getattr(attention, what))
                hooks.after(module, self._keep((number, what)))

    def _read(self, features: Tensor) -> VisionExtras:
        pictures, last, flops = len(features), len(self.attentions) - 1, 0
        rows = 1 if self.cls else None
        wanted = [("attention", self.layer, self.heads, rows), ("pseudo_attention", last, 1, rows)]
        if self.middle:
            assert self.middle_layer is not None
            wanted += [("received", self.layer, self.heads, None), ("middle", self.middle_layer, self.heads, None)]
        found: dict[str, list[Tensor]] = {}
        for name, number, heads, asking in wanted:
            queries, keys = self._seen[number, "q_proj"], self._seen[number, "k_proj"]
            for picture in range(pictures):
                q, k = (in_heads(part[picture], heads) for part in (queries, keys))
                q = q[:, :asking]
                flops += 2 * q.shape[1] * k.shape[1] * self.width
                found.setdefault(name, []).append(attention_to(q, k))
        first = 1 if self.drop_cls else 0
        of = {name: self._cells(torch.stack(given)[:, first:, None])[:, 0] for name, given in found.items()}
        keys, last_keys = (self._cells(self._seen[number, "k_proj"][:, first:]) for number in (self.layer, last))
        attention, pseudo = of.pop("attention"), of.pop("pseudo_attention")
        if self.shuffled:
            kept = features.reshape(len(attention), -1, self.width).mean(dim=1)
        else:
            kept = self._cells(features[..., -self.width :])
        source, among = "cls" if self.cls else "received", torch.full_like(attention, k.shape[1])
        return VisionExtras(attention, pseudo, among, keys, last_keys, kept, self.heads, source, flops=flops, **of)

    def _cells(self, values: Tensor) -> Tensor:
        """``values`` [P, n, C] of patches as means over cells, [P * tokens, C]."""
        if self.cell > 1:
            pictures, n, width = values.shape
            side, cells = math.isqrt(n), math.isqrt(n) // self.cell
            grid = values.view(pictures, side, side, width)[:, : cells * self.cell, : cells * self.cell]
            values = grid.reshape(pictures, cells, self.cell, cells, self.cell, width).mean(dim=(2, 4))
        return values.reshape(-1, values.shape[-1])


class PackedWatch(VisionWatch):
    """Qwen's towers: pictures of any size packed into one row, fused ``qkv``, groups of patches merged at the end.

    What is read is the last block with full attention, within each picture or frame. Blocks with windows work on
    another order of the groups; here they stand in the order in which the merger's output is put back.

    Args:
        tower: has ``blocks``, each with ``attn.qkv``, and ``merger``; is called with patches and ``grid_thw``.
    """

    pixels = True

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        full = getattr(tower, "fullatt_block_indexes", None)
        self.attention = tower.blocks[max(full) if full else -1].attn
        self.heads, self.width = self.attention.num_heads, self.attention.qkv.in_features
        self.projector = tower.merger
        half = max(1, round(len(tower.blocks) / 2)) - 1
        self.middle_layer: int = min(full, key=lambda number: abs(number - half)) if full else half

    def install(self, hooks: Hooks) -> None:
        if self.middle:
            hooks.after(self.tower.blocks[self.middle_layer].attn.qkv, self._keep("middle"))
        hooks.before(self.tower, self._on_tower)
        hooks.before(self.attention, self._on_attention)
        hooks.after(self.attention.qkv, self._keep("qkv"))
        hooks.before(self.projector, self._on_projector)

    def _on_tower(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen["grid"] = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        patches: Tensor = args[0] if args else kwargs["hidden_states"]
        self._seen["novelty"] = self._novelty(patches)

    def _on_attention(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen["seams"], self._seen["rotary"] = kwargs["cu_seqlens"], kwargs["position_embeddings"]

    def _read(self, features: Tensor) -> VisionExtras:
        q, k = self._queries_and_keys("qkv")
        seams, flops = self._seen["seams"].tolist(), 0
        attention: list[Tensor] = []
        pseudo: list[Tensor] = []
        among: list[Tensor] = []
        for start, end in itertools.pairwise(seams):
            for found, heads in ((attention, self.heads), (pseudo, 1)):
                part = (in_heads(values[start:end].flatten(1), heads) for values in (q, k))
                found.append(attention_to(*part))
                flops += 2 * (end - start) ** 2 * self.width
            among.append(torch.full_like(attention[-1], end - start))
        keys = k.flatten(1)
        parts = [*(torch.cat(found)[:, None] for found in (attention, pseudo, among)), keys, features]
        given, merged, shared, keys, kept = (self._groups(part) for part in parts)
        of_tokens = (given[:, 0], merged[:, 0], shared[:, 0], keys, keys, kept)
        found_more: dict[str, Tensor] = {}
        if self.middle:
            q, k = self._queries_and_keys("middle")
            middle = []
            for start, end in itertools.pairwise(seams):
                middle.append(attention_to(*(in_heads(part[start:end].flatten(1), self.heads) for part in (q, k))))
                flops += 2 * (end - start) ** 2 * self.width
            found_more = {"received": given[:, 0], "middle": self._groups(torch.cat(middle)[:, None])[:, 0]}
        novelty = self._seen["novelty"]
        return VisionExtras(*of_tokens, self.heads, "received", novelty=novelty, flops=flops, **found_more)

    def _queries_and_keys(self, what: str) -> tuple[Tensor, Tensor]:
        """Rotated, [S, heads, d], from a block's fused ``qkv``."""
        q, k, _ = self._seen[what].view(len(self._seen[what]), 3, self.heads, -1).unbind(dim=1)
        return rotated(q, self._seen["rotary"]), rotated(k, self._seen["rotary"])

    def _novelty(self, patches: Tensor) -> Tensor:
        """Of each token, from ``patches`` [S, K] of pixels in the order of the tokens' cells."""
        found, start, merge = [], 0, self.tower.spatial_merge_size
        with torch.no_grad():
            for frames, rows, columns in self._seen["grid"].tolist():
                for _ in range(frames):
                    part = patches[start : start + rows * columns]
                    found.append(prediction_errors(part.reshape(rows // merge, columns // merge, -1)).flatten())
                    start += rows * columns
        return torch.cat(found)

    def _groups(self, values: Tensor) -> Tensor:
        """``values`` [S, C] of patches as means over merged groups, [N, C], in the order of the pictures."""
        merge = self.tower.spatial_merge_size
        groups = values.view(-1, merge**2, values.shape[-1]).mean(dim=1)
        if getattr(self.tower, "window_size", None) is None:
            return groups
        from transformers.vision_utils import get_vision_window_index

        order, _ = get_vision_window_index(
            self._seen["grid"],
            spatial_merge_size=merge,
            window_size=self.tower.window_size,
            patch_size=self.tower.patch_size,
        )
        return groups[order.argsort().to(groups.device)]


class GlmWatch(PackedWatch):
    """GLM's towers: as Qwen's, but a convolution merges the patches, [tokens, C, merge, merge], before the merger."""

    def __init__(self, tower: Any) -> None:
        super().__init__(tower)
        self.projector = tower.downsample

    def _read(self, features: Tensor) -> VisionExtras:
        return super()._read(features.permute(0, 2, 3, 1).reshape(-1, self.width))


class PixtralWatch(VisionWatch):
    """Pixtral: pictures of any size side by side in one row, ``q_proj`` and ``k_proj``, cells merged in the projector.

    Args:
        layers: the tower's layers.
        layer: number of the one that makes the features.
        projector: receives the features [S, C] and the sizes of the pictures in pixels.
        merge: patches per side of the square cells that become one visual token.
    """

    def __init__(self, layers: Sequence[nn.Module], layer: int, projector: nn.Module, merge: int) -> None:
        super().__init__()
        self.merge, self.projector = merge, projector
        chosen: Any = layers[layer]
        last: Any = layers[len(layers) - 1]
        self.attentions = chosen.attention, last.attention
        self.heads, self.width = chosen.attention.num_heads, chosen.attention.k_proj.out_features
        self.middle_layer: int = max(1, round(len(layers) / 2)) - 1
        half: Any = layers[self.middle_layer]
        self.half = half.attention

    def install(self, hooks: Hooks) -> None:
        hooks.before(self.attentions[0], self._on_attention)
        hooks.before(self.projector, self._on_sizes)
        hooks.before(self.projector, self._on_projector)
        for attention in {*self.attentions, *([self.half] if self.middle else [])}:
            for what in ("q_proj", "k_proj"):
                hooks.after(getattr(attention, what), self._keep((attention, what)))

    def _on_attention(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen["rotary"] = kwargs["position_embeddings"]

    def _on_sizes(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sizes = kwargs["image_sizes"] if "image_sizes" in kwargs else args[1]
        patch = module.patch_merger.patch_size
        self._seen["grids"] = [(int(height) // patch, int(width) // patch) for height, width in sizes]

    def _read(self, features: Tensor) -> VisionExtras:
        grids, flops, read = self._seen["grids"], 0, []
        ends = list(itertools.accumulate(rows * columns for rows, columns in grids))
        asked = [
            *zip(self.attentions, (self.heads, 1), strict=True),
            *([(self.half, self.heads)] if self.middle else []),
        ]
        for attention, heads in asked:
            queries, keys = (self._rotated(attention, what) for what in ("q_proj", "k_proj"))
            given = []
            for end, (rows, columns) in zip(ends, grids, strict=True):
                part = slice(end - rows * columns, end)
                given.append(attention_to(in_heads(queries[part], heads), in_heads(keys[part], heads)))
                flops += 2 * (rows * columns) ** 2 * self.width
            read += [torch.cat(given)[:, None], keys]
        among = torch.cat([torch.full((rows * columns, 1), float(rows * columns)) for rows, columns in grids])
        parts = [*read[:4], among.to(features.device), features[..., -self.width :]]
        received, keys, pseudo, last_keys, shared, kept = (self._cells(part, grids) for part in parts)
        tokens = (received[:, 0], pseudo[:, 0], shared[:, 0], keys, last_keys, kept)
        if not self.middle:
            return VisionExtras(*tokens, self.heads, "received", flops=flops)
        middle = self._cells(read[4], grids)[:, 0]
        return VisionExtras(*tokens, self.heads, "received", received=received[:, 0], middle=middle, flops=flops)

    def _rotated(self, attention: Any, what: str) -> Tensor:
        values = self._seen[attention, what][0]
        return rotated(values.view(len(values), self.heads, -1), self._seen["rotary"]).flatten(1)

    def _cells(self, values: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """``values`` [S, C] of patches as means over merged cells, [N, C]."""
        merge, width, found, start = self.merge, values.shape[-1], [], 0
        for rows, columns in grids:
            part = values[start : start + rows * columns].view(rows // merge, merge, columns // merge, merge, width)
            found.append(part.mean(dim=(1, 3)).view(-1, width))
            start += rows * columns
        return torch.cat(found)


class PlacedWatch(VisionWatch):
    """Gemma 4: patches with their places (x, y), filled up to one number, ``q_norm`` and ``k_norm``, no 1 / sqrt(d).

    Args:
        tower: has ``encoder.layers``; is called with ``pixel_position_ids`` [P, n, 2], -1 where there is no patch.
        projector: receives the features of the visual tokens, [N, C].
        cell: patches per side of the square cells that become one visual token.
    """

    def __init__(self, tower: Any, projector: nn.Module, cell: int) -> None:
        super().__init__()
        self.projector, self.cell = projector, cell
        self.attention = tower.encoder.layers[len(tower.encoder.layers) - 1].self_attn
        self.heads = tower.config.num_attention_heads
        self.width = tower.config.hidden_size

    def install(self, hooks: Hooks) -> None:
        hooks.before(self.attention, self._on_attention)
        hooks.after(self.attention.q_norm, self._keep("queries"))
        hooks.after(self.attention.k_norm, self._keep("keys"))
        hooks.before(self.projector, self._on_projector)

    def _on_attention(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen["rotary"], self._seen["places"] = kwargs["position_embeddings"], kwargs["position_ids"]

    def _read(self, features: Tensor) -> VisionExtras:
        parts: list[list[Tensor]] = []
        flops, width = 0, self._seen["keys"].shape[-1]
        for picture, places in enumerate(self._seen["places"]):
            at = (places >= 0).all(dim=-1)
            cos, sin = (part[picture, at] for part in self._seen["rotary"])
            q, k = (_turned(self._seen[what][picture, at], cos, sin) for what in ("queries", "keys"))
            n, groups = len(q), q.shape[1] // k.shape[1]
            k = k.repeat_interleave(groups, dim=1)
            q = q * math.sqrt(width)
            given = attention_to(q.transpose(0, 1), k.transpose(0, 1))
            merged = attention_to(in_heads((q * math.sqrt(self.heads)).flatten(1), 1), in_heads(k.flatten(1), 1))
            flops += 4 * n * n * self.heads * width
            x, y = (places[at] // self.cell).unbind(dim=-1)
            cells = y * (int(x.max()) + 1) + x
            values = torch.cat([given[:, None], merged[:, None], k.flatten(1)], dim=1)
            pooled = torch.zeros(int(cells.max()) + 1, values.shape[1], dtype=values.dtype, device=values.device)
            pooled = pooled.index_add_(0, cells, values) / self.cell**2
            parts.append([pooled[:, 0], pooled[:, 1], torch.full_like(pooled[:, 0], n), pooled[:, 2:]])
        attention, pseudo, among, keys = (torch.cat(part) for part in zip(*parts, strict=True))
        return VisionExtras(attention, pseudo, among, keys, keys, features, self.heads, "received", flops=flops)


def _turned(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotation of [n, heads, d] by cosine and sine [n, d], one half of each head by x and one by y."""
    halves = zip(*(part.chunk(2, dim=-1) for part in (values, cos, sin)), strict=True)
    return torch.cat([rotated(part, (c, s)) for part, c, s in halves], dim=-1)


def in_heads(values: Tensor, heads: int) -> Tensor:
    """[n, C] -> [heads, n, C / heads]."""
    return values.view(len(values), heads, -1).transpose(0, 1)


def rotated(values: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Position rotation of [S, heads, d] by cosine and sine [S, d], in float32 as the towers do."""
    cos, sin = (part.float()[:, None] for part in rotary)
    first, second = values.float().chunk(2, dim=-1)
    return (values.float() * cos + torch.cat((-second, first), dim=-1) * sin).to(values.dtype)


def attention_to(queries: Tensor, keys: Tensor) -> Tensor:
    """Attention that keys [h, n, d] get from queries [h, R, d], mean over both heads and queries: float32 [n]."""
    heads, n, width = keys.shape
    total = torch.zeros(n, device=keys.device)
    rows = max(1, BLOCK // (heads * n))
    for block in torch.split(queries, rows, dim=1):
        logits = torch.matmul(block.float(), keys.float().transpose(1, 2)) / math.sqrt(width)
        total += logits.softmax(dim=-1).sum(dim=(0, 1))
    return total / (heads * queries.shape[1])
