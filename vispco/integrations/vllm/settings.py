"""What the model's configuration says under ``vispco``, checked before vLLM loads anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from vispco.errors import ConfigError
from vispco.pruning.methods.base import Method, make_method
from vispco.pruning.schedules import Step, keep_count
from vispco.pruning.targets import TARGETS

TOWER = "clip_vision_model"
ROPES = ("default", "linear", "llama3")  # whose angles do not depend on the longest prompt
DEVICES = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "prefill_context_parallel_size",
    "decode_context_parallel_size",
)
KEYS = {"method", "parameters", "keep"}
HOW = "write it with: vispco export EXPERIMENT --budget 0.5 --target vllm -o vllm.yaml"


@dataclass(frozen=True)
class Settings:
    """A method, and the share of a picture's tokens that stay."""

    method: Method
    keep: float

    @staticmethod
    def of(config: Any) -> Settings:
        """From a model's configuration.

        Raises:
            ConfigError: there are none, or they do not run in vLLM.
        """
        given = getattr(config, "vispco", None)
        if not isinstance(given, dict) or not {"method", "keep"} <= given.keys() <= KEYS:
            raise ConfigError(f"the model's configuration has vispco: {given!r}; {HOW}")
        keep, method = given["keep"], make_method(str(given["method"]), given.get("parameters") or {})
        if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
            raise ConfigError(f"vispco: keep is {keep!r}; vLLM needs a share above 0 and at most 1")
        TARGETS["vllm"].written(Step(layer=0, keep=float(keep)), method, 1)
        return Settings(method, float(keep))

    def count(self, tokens: int) -> int:
        """How many of a picture's tokens stay."""
        return keep_count(self.keep, tokens)

    @property
    def digest(self) -> str:
        """Tells cached pictures apart that were pruned in another way."""
        text = json.dumps([self.method.name, self.method.parameters(), self.keep], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class CheckedConfig(VerifyAndUpdateConfig):  # type: ignore[misc]
    """Refuses at start what would go wrong later."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        config = model_config.hf_config
        Settings.of(config)
        if model_config.uses_mrope:
            return
        # Positions that a server counts itself would move the text towards the picture.
        config.mrope_section = [1, 0, 0]
        tower = config.vision_config.model_type
        if tower != TOWER:
            raise ConfigError(
                f"vision tower {tower!r}: of LLaVA the plug-in prunes models with {TOWER!r}; use vispco serve"
            )
        rope = (getattr(config.get_text_config(), "rope_parameters", None) or {}).get("rope_type", "default")
        if rope not in ROPES:
            raise ConfigError(
                f"rotary positions of type {rope!r} depend on how long a prompt may be, which pruning changes; "
                f"the plug-in prunes models with {', '.join(ROPES)}; use vispco serve"
            )

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        for name, reason in refused(vllm_config):
            raise ConfigError(f"{name}: {reason}; leave it out")
        if vllm_config.use_v2_model_runner:
            raise ConfigError(
                "pruned models were tried on vLLM's first model runner only: set VLLM_USE_V2_MODEL_RUNNER=0"
            )


def refused(vllm_config: Any) -> Iterator[tuple[str, str]]:
    """Settings of an engine that would prune wrongly, and why."""
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    for name in DEVICES:
        if getattr(parallel, name) > 1:
            yield f"{name} {getattr(parallel, name)}", "pruned models run on one device"
    if parallel.use_ubatching:
        yield "enable_dbo, ubatch_size", "positions of a step are set for all of its tokens at once"
    if vllm_config.speculative_config is not None:
        yield "speculative_config", "a draft would see other positions than the model"
    for name in ("ec_transfer_config", "kv_transfer_config"):
        if getattr(vllm_config, name) is not None:
            yield name, "pruned pictures were not tried between engines"
    if model.enable_prompt_embeds:
        yield "enable_prompt_embeds", "what clients send would not be pruned"
    if model.multimodal_config.enable_mm_embeds:
        yield "enable_mm_embeds", "features from clients are not pruned"
