"""The contract of a cost: a pure function of counts, prompt lengths and what is known of the model and its device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.errors import ConfigError
from vispco.models.shapes import LayerShape, ModelShape
from vispco.pruning.schedules import Counts
from vispco.registry import Registry

if TYPE_CHECKING:
    from vispco.costs.profile import Profile
    from vispco.models.base import ModelAdapter
    from vispco.pruning.methods.base import Method

COSTS = Registry("cost", "costs", "name")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """What a cost depends on besides the tokens.

    ``windows``: sliding window of each decoder layer, None where a layer sees all; () where no layer has one.
    ``bytes_per_value``: of keys, values and hidden states. ``vocabulary``: outputs of the language-model head.
    ``vision_flops``: of the vision tower and projector, per visual token. ``method``: whose scoring is counted; None
    counts none. ``answer_tokens``: tokens of an answer, the first of which the prefill gives. ``batch``: prompts
    that run together. ``profile``: measured times, which the costs in time need.
    """

    shape: ModelShape
    windows: tuple[int | None, ...] = ()
    bytes_per_value: int = 2
    vocabulary: int = 0
    vision_flops: float = 0.0
    method: Method | None = None
    answer_tokens: int = 16
    batch: int = 1
    profile: Profile | None = None

    def __post_init__(self) -> None:
        if self.windows and len(self.windows) != self.shape.layers:
            raise ValueError(f"{len(self.windows)} windows for {self.shape.layers} layers")
        for name in ("answer_tokens", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it is a number of 1 or more")

    @classmethod
    def of(cls, adapter: ModelAdapter, **more: Any) -> Setting:
        """What a loaded model says of itself; ``vision_flops`` must be measured (:func:`vision_flops`)."""
        import torch

        shape = adapter.shape()
        windows = tuple(adapter.sliding_window(layer) for layer in range(shape.layers))
        config = adapter.model.config.get_text_config()
        return cls(
            shape=shape,
            windows=windows if any(windows) else (),
            bytes_per_value=torch.finfo(adapter.dtype()).bits // 8,
            vocabulary=int(getattr(config, "vocab_size", 0) or 0),
            **more,
        )

    def to_dict(self) -> dict[str, Any]:
        """What describes the model, as plain data; :meth:`from_dict` reads it."""
        return {
            "shape": asdict(self.shape),
            "windows": list(self.windows),
            "bytes_per_value": self.bytes_per_value,
            "vocabulary": self.vocabulary,
            "vision_flops": self.vision_flops,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], **more: Any) -> Setting:
        known = {key: data[key] for key in ("bytes_per_value", "vocabulary", "vision_flops") if key in data}
        each = tuple(LayerShape(**own) for own in data["shape"].get("each", ()))
        shape = ModelShape(**{**data["shape"], "each": each})
        return cls(shape, tuple(data.get("windows", ())), **known, **more)

    def on(self, profile: Profile | None) -> Setting:
        """With the times of the profile's machine, and values as wide as it has them."""
        wide = None if profile is None else profile.bytes_per_value
        return replace(self, profile=profile, bytes_per_value=wide or self.bytes_per_value)

    def with_method(self, method: Method | None) -> Setting:
        return replace(self, method=method)


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts of a split: ``visual`` and ``text`` tokens int [U], and ``weight`` float [U], sum 1.

    Weights are such that a weighted mean is the unweighted mean over tasks of means over samples. ``exact``: False
    where the lengths are averages, as of experiments that did not store theirs. ``whole`` int [U, 2]: visual and text
    tokens of the same prompts with whole pictures, where these have smaller ones; costs are shares of those.
    """

    visual: Counts
    text: Counts
    weight: Floats
    exact: bool = True
    whole: Counts | None = None

    @classmethod
    def of(cls, tasks: Sequence[tuple[Sequence[int] | Counts, ...]]) -> Prompts:
        """From (visual [S], text [S]) of each task; of smaller pictures, also those of the whole ones."""
        found: dict[tuple[int, ...], float] = {}
        for lengths in tasks:
            for row in zip(*(np.asarray(column).tolist() for column in lengths), strict=True):
                found[row] = found.get(row, 0.0) + 1 / (len(lengths[0]) * len(tasks))
        rows = np.array(sorted(found), dtype=np.int64).reshape(len(found), -1)
        weight, whole = np.array([found[key] for key in sorted(found)]), rows[:, 2:]
        return cls(rows[:, 0], rows[:, 1], weight, whole=whole if whole.size else None)

    def to_list(self) -> list[list[float]]:
        """[visual, text, weight] of each distinct prompt; of smaller pictures, also both of the whole ones."""
        rows = zip(self.visual.tolist(), self.text.tolist(), self.weight.tolist(), strict=True)
        whole = [[]] * len(self.weight) if self.whole is None else self.whole.tolist()
        return [[*row, *more] for row, more in zip(rows, whole, strict=True)]

    @classmethod
    def from_list(cls, rows: Sequence[Sequence[float]]) -> Prompts:
        table = np.array(rows, dtype=np.float64).reshape(len(rows), -1)
        whole = table[:, 3:].astype(np.int64)
        visual, text = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
        return cls(visual, text, table[:, 2], whole=whole if whole.size else None)

    def mean(self, values: Any) -> float:
        """Mean of ``values`` [U]."""
        return float(np.average(np.asarray(values, dtype=np.float64), weights=self.weight))


class CostModel(ABC):
    """One cost. Subclasses say what a decoder layer costs with so many tokens, and what comes on top.

    ``unit``: in which :meth:`of` is given. ``about``: what it includes, in one line. ``needs_profile``: whether it is
    measured in time. ``additive``: the sum over layers of :meth:`layer`, of :meth:`boundary` where tokens are dropped,
    of :meth:`pruning` and of :meth:`constant`. ``larger_is_better``: a rate; it can be a limit, not what is minimised.
    ``whole_batch``: it is of all prompts that run together, not of one.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    about: ClassVar[str]
    needs_profile: ClassVar[bool] = False
    additive: ClassVar[bool] = True
    larger_is_better: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = False

    @abstractmethod
    def layer(self, setting: Setting, layer: int, tokens: Any) -> Any:
        """Cost of decoder layer ``layer`` with ``tokens`` tokens of a prompt: an integer array, or a real tensor that
        the relaxed model differentiates through."""

    def boundary(self, setting: Setting, visual: Counts, text: Counts, keep: Counts) -> Any:
        """Cost of choosing ``keep`` of the ``visual`` tokens that were in the layer before; 0 < keep < visual."""
        return np.zeros(np.broadcast_shapes(visual.shape, text.shape))

    def constant(self, setting: Setting, visual: Any, text: Any) -> Any:
        """What no schedule changes; of numbers, arrays or tensors."""
        return 0.0

    def pruning(self, setting: Setting, visual: Counts, text: Counts, counts: Counts) -> Any:
        """[B]: what pruning adds once per prompt, from ``counts`` [B, L]; 0 where nothing is dropped."""
        return np.zeros(len(visual))

    def of(self, setting: Setting, counts: Counts, visual: Counts, text: Counts) -> Floats:
        """Cost of each prompt, float64 [B].

        Args:
            counts: visual tokens entering each layer, [B, L].
            visual, text: visual and other tokens of the prompt, [B].

        Raises:
            ConfigError: it needs a profile and there is none, or one of a smaller range of tokens.
        """
        self.check(setting)
        counts, visual, text = (np.asarray(value, dtype=np.int64) for value in (counts, visual, text))
        tokens = counts + text[:, None]
        total = self.constant(setting, visual, text) + np.asarray(self.pruning(setting, visual, text, counts))
        total = total + sum(np.asarray(self.layer(setting, n, tokens[:, n])) for n in range(counts.shape[1]))
        before = np.concatenate([visual[:, None], counts[:, :-1]], axis=1)
        chosen = (counts < before) & (counts > 0)
        if chosen.any():
            total = total + np.where(chosen, self.boundary(setting, before, text[:, None], counts), 0).sum(axis=1)
        return np.asarray(total, dtype=np.float64)

    def unpruned(self, setting: Setting, visual: Counts, text: Counts) -> Floats:
        """Cost of each plain prompt, float64 [B]."""
        visual = np.asarray(visual, dtype=np.int64)
        return self.of(setting, np.repeat(visual[:, None], setting.shape.layers, axis=1), visual, text)

    def relaxed(self, setting: Setting, kept: Any, visual: Any, text: Any) -> Any:
        """Differentiable cost without that of choosing, a tensor [...].

        Equals :meth:`of` at whole counts, less what :meth:`boundary` and :meth:`pruning` add.

        Args:
            kept: real visual tokens entering each layer, [..., L].
            visual, text: of the prompt, [...].
        """
        tokens = kept + text[..., None]
        layers = sum(self.layer(setting, n, tokens[..., n]) for n in range(setting.shape.layers))
        return self.constant(setting, visual, text) + layers

    def per(self, batch: int) -> str:
        """What it is the cost of, in words: ``per prompt``, or ``per batch of 16 prompts``."""
        return f"per batch of {batch} prompts" if self.whole_batch and batch > 1 else "per prompt"

    def check(self, setting: Setting) -> None:
        """Raises ConfigError where something is missing that this cost needs."""
        if self.needs_profile and setting.profile is None:
            raise ConfigError(
                f"cost {self.name!r} is in time, which nobody can count: measure a profile (vispco profile MODEL -o "
                "profile.json) and give it with --profile profile.json, or profile: profile.json in the study"
            )

    def mean(
        self, setting: Setting, counts: Counts, prompts: Prompts, whole: Setting | None = None
    ) -> tuple[float, float]:
        """(absolute, share of unpruned) over prompts; the share is taken per prompt, as ``flops_ratio`` is.

        ``whole``: of whole pictures, where the prompts have smaller ones; default: the same.
        """
        values = self.of(setting, counts, prompts.visual, prompts.text)
        lengths = (
            (prompts.visual, prompts.text) if prompts.whole is None else (prompts.whole[:, 0], prompts.whole[:, 1])
        )
        return self.averaged(prompts.mean, values, self.unpruned(whole or setting, *lengths))

    def averaged(self, mean: Callable[[Any], float], values: Floats, unpruned: Floats) -> tuple[float, float]:
        """(absolute, share of ``unpruned``) by a ``mean`` over prompts; a rate's is that of the mean time."""
        if not self.larger_is_better:
            return mean(values), mean(values / unpruned)
        slowness = mean(1 / values)
        return 1 / slowness, mean(1 / unpruned) / slowness


def make_cost(name: str) -> CostModel:
    """A registered cost.

    Raises:
        ConfigError: unknown name.
    """
    cost: CostModel = COSTS[name]()
    return cost
