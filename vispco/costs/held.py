"""How a model is held, as far as it decides the times of its parts: what a profile says of the one it measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vispco.costs.profile import Profile
    from vispco.models.base import ModelAdapter

TOWER = "vision_config"
SIZES = ("hidden_size", "embed_dim", "depth", "num_hidden_layers", "intermediate_size", "patch_size", "image_size")
WEIGHTS = ("weights", "bits", "load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "quant_type.default._type")
Read = Callable[[str], Any]


def held(adapter: ModelAdapter) -> dict[str, str]:
    """Of a loaded model: ``model_type``, sizes of its tower, ``quantization`` and ``adapter`` ("" for none), and in
    what it runs."""
    model = adapter.model
    given: Any = getattr(model, "peft_config", None)
    adapters = {name: one.to_dict() for name, one in given.items()} if isinstance(given, Mapping) else {}
    now = {"attention": adapter.attention(), "dtype": str(adapter.dtype()).removeprefix("torch.")}
    return {**_described(_nested(model.config.to_dict()), _nested(adapters), adapters), **now}


def held_in(identity: Mapping[str, Any]) -> dict[str, str]:
    """The same of the model that a stored experiment ran, without its dtype; {} where none of it was stored."""
    content: Mapping[str, Any] = identity.get("content") or {}
    if "configuration" not in content:
        return {}
    adapters: Mapping[str, str] = content.get("adapters", {})
    names = [key.removesuffix(".peft_type") for key in adapters if key.endswith(".peft_type")]
    now = {key: value for key, value in content.get("model", {}).items() if key == "attention"}
    return {**_described(_flat(content["configuration"]), _flat(adapters), names), **now}


def told_apart(profile: Profile, now: Mapping[str, str]) -> str:
    """How the model that was measured was held otherwise than this one, in words; "" where it was not."""
    then = {**profile.held, "attention": profile.attention}
    asked = [key for key in ("quantization", "adapter", "attention") if key in now and key in then]
    differ = [f"{key} {then[key] or 'none'} instead of {now[key] or 'none'}" for key in asked if then[key] != now[key]]
    return f"the model was timed with {', '.join(differ)}" if differ else ""


def _described(config: Read, adapters: Read, names: Iterable[str]) -> dict[str, str]:
    sizes = {f"{TOWER}.{size}": config(f"{TOWER}.{size}") for size in SIZES}
    method = config("quantization_config.quant_method")
    options = {key: config(f"quantization_config.{key}") for key in WEIGHTS} if method else {}
    kind = config("model_type")
    kinds = [(adapters(f"{name}.peft_type"), adapters(f"{name}.r")) for name in sorted(names)]
    return {
        **({"model_type": str(kind)} if kind else {}),
        **{key: str(value) for key, value in sizes.items() if isinstance(value, int)},
        "quantization": " ".join([method or "", *(f"{key}={value}" for key, value in options.items() if value)]),
        "adapter": ", ".join(f"{name} r={rank}" if rank else str(name) for name, rank in kinds),
    }


def _nested(settings: Mapping[str, Any]) -> Read:
    """Reads a dotted name, as JSON would give it."""

    def read(name: str) -> Any:
        value: Any = settings
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return json.loads(json.dumps(value, default=str))

    return read


def _flat(settings: Mapping[str, str]) -> Read:
    """The same of settings as experiments store them."""

    def read(name: str) -> Any:
        try:
            return json.loads(settings.get(name, "null"))
        except ValueError:  # a long one's hash
            return None

    return read
