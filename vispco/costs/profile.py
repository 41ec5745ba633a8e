"""A hardware profile: measured times of one model's parts on one device, as versioned JSON.

Made by :mod:`vispco.costs.measuring`. Times are milliseconds, for a whole batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from vispco.costs.held import TOWER
from vispco.errors import ConfigError
from vispco.files import read_text
from vispco.json_text import parse_json
from vispco.models.shapes import ModelShape

if TYPE_CHECKING:
    from vispco.pruning.methods.base import Method

FORMAT: Literal["vispco-profile"] = "vispco-profile"
VERSION = 3  # 1 had no pick, pair, step, reference and start of an answer; 2 did not say how the model was held
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NOISY = 0.1  # of the median: the spread of repetitions beyond which the machine was busy
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Curve(Part):
    """Time over a number of tokens: the measured points, and straight lines between them.

    An edge of a staircase is two points one token apart. ``spread``: interquartile range of each point's repetitions.
    ``monotone``: more tokens never take less time.
    """

    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    ms: list[Milliseconds]
    spread: list[Milliseconds] = []
    monotone: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Curve:
        if len(self.ms) != len(self.tokens):
            raise ValueError(f"{len(self.ms)} times for {len(self.tokens)} numbers of tokens")
        if any(b <= a for a, b in zip(self.tokens, self.tokens[1:], strict=False)):
            raise ValueError("numbers of tokens do not ascend")
        if self.monotone:
            for n, (a, b) in enumerate(zip(self.ms, self.ms[1:], strict=False)):
                if b < a:
                    raise ValueError(
                        f"it claims to be monotone, but falls from {a:g} ms at {self.tokens[n]} tokens to {b:g} ms at "
                        f"{self.tokens[n + 1]}"
                    )
        return self

    def __call__(self, tokens: Any) -> Any:
        """Milliseconds at ``tokens``, an array or a real tensor (differentiable). Fewer than measured cost as much as
        the fewest.

        Raises:
            ConfigError: more tokens than were measured.
        """
        plain = tokens if isinstance(tokens, np.ndarray) else tokens.detach()
        largest = float(plain.max()) if math.prod(plain.shape) else 0.0
        if largest > self.tokens[-1] + 1e-6:
            raise ConfigError(
                f"the profile has times up to {self.tokens[-1]} tokens, and {largest:g} are asked for; measure it "
                f"again with --max-tokens {math.ceil(largest)} or more"
            )
        if isinstance(tokens, np.ndarray):
            return np.interp(tokens, self.tokens, self.ms)
        return self._line(tokens)

    def _line(self, tokens: Any) -> Any:
        import torch

        x = torch.tensor(self.tokens, dtype=tokens.dtype, device=tokens.device)
        y = torch.tensor(self.ms, dtype=tokens.dtype, device=tokens.device)
        if len(x) == 1:
            return y.expand(tokens.shape)
        right = torch.searchsorted(x, tokens.detach().contiguous(), right=True).clamp(1, len(x) - 1)
        left = right - 1
        share = ((tokens - x[left]) / (x[right] - x[left])).clamp(0, 1)
        return y[left] + share * (y[right] - y[left])

    def edges(self, jump: float = 0.1) -> list[int]:
        """Largest numbers of tokens before a step: the time rises by the share ``jump`` or more with one token."""
        pairs = zip(self.tokens, self.tokens[1:], self.ms, self.ms[1:], strict=False)
        return [a for a, b, low, high in pairs if b == a + 1 and high - low >= jump * low]


class Scoring(Part):
    """What pruning with one method adds. ``boundary``: choosing and gathering, over the tokens of the layer before;
    ``start``: once per prefill; ``pick`` and ``pair``: for each visual token that the first choice keeps, alone and for
    each it is chosen from; ``layer``: hooks of each layer; ``step``: hooks of each decode step."""

    boundary: Curve
    start: Milliseconds = 0.0
    pick: Milliseconds = 0.0
    pair: Milliseconds = 0.0
    layer: Milliseconds = 0.0
    step: Milliseconds = 0.0


class Decode(Part):
    """One decode step: each kind of layer over the tokens in its cache, and everything else (``rest``; ``hooks`` of any
    method). ``start``: what an answer takes once beyond its prefill and steps."""

    layers: dict[str, Curve]
    rest: Milliseconds = 0.0
    hooks: Milliseconds = 0.0
    start: Milliseconds = 0.0


class Timings(Part):
    """All times at one batch size. ``layers``: by kind, over the tokens of a prompt that enter; ``rest``: embedding,
    masks, norm and head, over the prompt's tokens; ``tower``: with projector, over visual tokens. ``reference``: of the
    work that stands for the machine's speed while it was measured; 0: not known."""

    layers: dict[str, Curve]
    rest: Curve
    tower: Curve
    methods: dict[str, Scoring] = {}
    decode: Decode
    reference: Milliseconds = 0.0

    def noise(self) -> float:
        """How far repetitions of the same layer and prompt differ: interquartile range over median, the median over
        numbers of tokens. 0 where no repetitions are known."""
        pairs = [(ms, off) for curve in self.layers.values() for ms, off in zip(curve.ms, curve.spread, strict=False)]
        return float(np.median([off / ms for ms, off in pairs if ms > 0] or [0.0]))


class Profile(Part):
    """What ``vispco profile`` writes. ``kinds``: of each decoder layer, ``full`` or ``sliding``. ``held``: the model
    type, the tower's sizes, quantization and adapter (:func:`vispco.costs.held.held`); {} in older ones."""

    format: Literal["vispco-profile"] = FORMAT
    version: int = VERSION
    model: str
    shape: dict[str, int]
    kinds: list[str]
    device: str
    device_name: str = ""
    threads: int = 0
    dtype: str
    attention: str
    held: dict[str, str] = {}
    versions: dict[str, str] = {}
    created: str = ""
    batches: Annotated[dict[int, Timings], Field(min_length=1)]

    @model_validator(mode="after")
    def _complete(self) -> Profile:
        if len(self.kinds) != self.shape.get("layers"):
            raise ValueError(f"{len(self.kinds)} kinds for {self.shape.get('layers')} layers")
        for batch, timings in self.batches.items():
            for where in (timings.layers, timings.decode.layers):
                if missing := sorted(set(self.kinds) - where.keys()):
                    raise ValueError(f"no times of layers of kind {missing[0]!r} at batch {batch}")
        return self

    @property
    def bytes_per_value(self) -> int | None:
        """Width of the values of its dtype; None of an unknown one."""
        return BYTES.get(self.dtype)

    @model_serializer(mode="wrap")
    def _as_written(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Without what an older one did not have: experiments know their profile by its hash."""
        return {key: value for key, value in dump(self).items() if key != "held" or value}

    def longest(self, batch: int) -> int:
        """Tokens of the longest prompt that it is for."""
        return min(curve.tokens[-1] for curve in self.at(batch).layers.values())

    def at(self, batch: int) -> Timings:
        """Times at a batch size.

        Raises:
            ConfigError: it was not measured.
        """
        if batch not in self.batches:
            known = ", ".join(str(size) for size in sorted(self.batches))
            raise ConfigError(
                f"the profile of {self.model!r} has batch {known}, not {batch}; measure it: --batch {batch}"
            )
        return self.batches[batch]

    def method(self, batch: int, name: str) -> Scoring:
        """What pruning with a method adds.

        Raises:
            ConfigError: it was not measured.
        """
        known = self.at(batch).methods
        if name not in known:
            has = ", ".join(sorted(known)) or "none"
            raise ConfigError(
                f"the profile of {self.model!r} has no times of method {name!r} (it has {has}); measure it: "
                f"vispco profile {self.model} --method {name}"
            )
        return known[name]

    def scoring(self, batch: int, method: Method) -> Scoring:
        """:meth:`method`, of a method as it is set.

        Raises:
            ConfigError: it was not measured, or with other parameters.
        """
        if method.parameters() != type(method)().parameters():
            raise ConfigError(
                f"the profile of {self.model!r} has times of method {method.name!r} by its default parameters only, "
                f"not by {method.key()}; ask for a cost in FLOPs or bytes"
            )
        return self.method(batch, method.name)

    def check_model(self, name: str, shape: ModelShape, held: Mapping[str, str] | None = None) -> None:
        """Refuse a profile of another model.

        Args:
            held: what is known of how this one is held.

        Raises:
            ConfigError: sizes of decoder or tower, or the model type differ.
        """
        if self.shape["layers"] != shape.layers:
            raise ConfigError(
                f"the profile is of {self.model!r} with {self.shape['layers']} decoder layers, and {name!r} has "
                f"{shape.layers}; measure it: vispco profile {name}"
            )
        for key in ("hidden", "heads", "kv_heads", "head_dim", "mlp"):
            if self.shape.get(key) != getattr(shape, key):
                raise ConfigError(
                    f"the profile is of {self.model!r} ({key} {self.shape.get(key)}), and {name!r} has {key} "
                    f"{getattr(shape, key)}; measure it: vispco profile {name}"
                )
        for key, value in (held or {}).items():
            known = self.held.get(key, value)
            if known != value and (key == "model_type" or key.startswith(TOWER)):
                raise ConfigError(
                    f"the profile is of {self.model!r} ({key} {known}), and {name!r} has {key} {value}; measure it: "
                    f"vispco profile {name}"
                )

    def about(self) -> str:
        """What was measured, on what: ``demo in float32 on cpu (...)``."""
        return f"{self.model} in {self.dtype} on {self.device}{f' ({self.device_name})' if self.device_name else ''}"

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"


def busy(noise: float | None) -> str:
    """What to say of a profile whose repetitions differ by ``noise``; "" where that is little or not known."""
    if noise is None or noise <= NOISY:
        return ""
    return (
        f"the machine was busy while its profile was measured: repetitions differ by {100 * noise:.0f} %, so times are "
        "rough; measure it again with nothing else running (vispco profile)"
    )


def parse_profile(data: Any, source: str) -> Profile:
    """A profile from plain data.

    Raises:
        ConfigError: one line that says what is wrong with it.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ConfigError(f"{source} is no hardware profile; write one with: vispco profile MODEL -o {source}")
    version = data.get("version")
    if isinstance(version, int) and version > VERSION:
        raise ConfigError(f"{source} has profile version {version}, this vispco reads up to {VERSION}; upgrade vispco")
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        value = f" = {problem['input']!r}" if isinstance(problem["input"], (int, float, str)) else ""
        message = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{source}: {where or 'profile'}{value}: {message}; measure it again") from None


def read_profile(path: str | Path) -> Profile:
    """Read a profile file.

    Raises:
        ConfigError: it cannot be read, or is wrong.
    """
    try:
        data = parse_json(read_text(path))
    except OSError as error:
        raise ConfigError(f"cannot read profile {str(path)!r}: {error.strerror or error}") from None
    except ValueError:
        raise ConfigError(f"{path} is not JSON; write a profile with: vispco profile MODEL -o {path}") from None
    return parse_profile(data, str(path))
