"""Where a schedule can run besides this package, and what that server has to be given.

Servers with a paged cache assume one length for all decoder layers, so they can only drop visual tokens before the
first one (vllm#25756 in vllm-project/vllm). Sources of the flags: vLLM 0.32 ``--video-pruning-rate`` and
``--video-pruning-method``; the READMEs of NVIDIA TensorRT-Edge-LLM (``--visualPrune``, ``--dartReductionRatio``) and
openvinotoolkit/openvino.genai (``pruning_ratio`` in per cent).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vispco.errors import ConfigError, ScheduleError
from vispco.pruning.families.base import ScheduleFamily
from vispco.pruning.methods.base import Method, make_method
from vispco.pruning.schedules import Schedule, resolution_of
from vispco.registry import suggest


@dataclass(frozen=True)
class Target:
    """A server. ``methods``: those that run there (None: all). ``settings``: from schedule, method and the share that
    is kept to what the server takes, by option name; None: this package itself, which runs everything.
    ``takes_parameters``: whether a method may have other parameters than its default ones; ``per_cent``: whether the
    share is given in whole per cent."""

    name: str
    about: str
    methods: frozenset[str] | None = None
    settings: Callable[[Schedule, Method, float], dict[str, Any]] | None = None
    takes_parameters: bool = True
    per_cent: bool = False

    @property
    def constant(self) -> bool:
        """Whether tokens can only be dropped before layer 0."""
        return self.settings is not None

    def refuses(self, schedule: Schedule, method: Method, layers: int) -> str | None:
        """Why a schedule cannot run there, in one line; None if it can."""
        if self.methods is not None and method.name not in self.methods:
            return f"method {method.name!r} does not run on target {self.name!r}; those that do: {self._listed()}"
        if self.settings is not None and resolution_of(schedule) not in (None, 1.0):
            return f"{schedule.text()} does not run on target {self.name!r}, which is not given a picture's size"
        ratios = set(schedule.keep_ratio(layers))
        if self.constant and (len(ratios) > 1 or 0.0 in ratios):
            return (
                f"{schedule.text()} does not run on target {self.name!r}, which drops tokens before layer 0 only and "
                "keeps some; search family: constant, or use target transformers"
            )
        if problem := self._refuses_parameters(method):
            return problem
        if self.per_cent and abs(100 * (keep := ratios.pop()) - round(100 * keep)) > 1e-6:
            return f"keep {keep:g} does not run on target {self.name!r}, which takes whole per cent; round it"
        return None

    def check(self, method: Method, family: type[ScheduleFamily]) -> None:
        """Refuse what a study could search in vain.

        Raises:
            ConfigError: schedules of this method or family do not run there.
        """
        if self.methods is not None and method.name not in self.methods:
            raise ConfigError(
                f"method {method.name!r} does not run on target {self.name!r}; those that do: {self._listed()}"
            )
        if problem := self._refuses_parameters(method):
            raise ConfigError(problem)
        if self.constant and not family.before_decoder:
            raise ConfigError(
                f"target {self.name!r} drops tokens before layer 0 only, so family {family.name!r} does not run there; "
                "use family: constant"
            )

    def _refuses_parameters(self, method: Method) -> str | None:
        if self.takes_parameters or method.parameters() == make_method(method.name).parameters():
            return None
        return (
            f"method {method.name!r} with {method.parameters()} does not run on target {self.name!r}, which has its "
            "own parameters; measure it without any"
        )

    def _listed(self) -> str:
        return ", ".join(sorted(self.methods or ()))

    def written(self, schedule: Schedule, method: Method, layers: int) -> dict[str, Any]:
        """What the server has to be given, by option name; nothing for this package itself.

        Raises:
            ScheduleError: the schedule cannot run there.
        """
        problem = self.refuses(schedule, method, layers)
        if problem is not None:
            raise ScheduleError(problem)
        return {} if self.settings is None else self.settings(schedule, method, schedule.keep_ratio(layers)[0])


def _vllm(schedule: Schedule, method: Method, keep: float) -> dict[str, Any]:
    """What the plug-in reads of the model's configuration."""
    return {"vispco": {"method": method.name, "parameters": method.parameters(), "keep": keep}}


def _vllm_video(schedule: Schedule, method: Method, keep: float) -> dict[str, Any]:
    return {"video-pruning-rate": round(1 - keep, 6), "video-pruning-method": method.name}


def _edge(schedule: Schedule, method: Method, keep: float) -> dict[str, Any]:
    return {"visualPrune": True, "dartReductionRatio": round(1 - keep, 6)}


def _openvino(schedule: Schedule, method: Method, keep: float) -> dict[str, Any]:
    return {"pruning_ratio": round(100 * (1 - keep))}


# In vLLM: methods that read neither the decoder nor the question, nor layers of the tower that it does not load.
VLLM_METHODS = frozenset({"divprune", "visionzip", "stride", "pool", "random"})

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("transformers", "this package: vispco.prune, vispco serve"),
        Target("vllm", "vLLM with a plug-in that prunes before the decoder", VLLM_METHODS, _vllm),
        Target("vllm-video", "vLLM's own pruning of videos", frozenset({"evs", "vidcom2"}), _vllm_video, False),
        Target("tensorrt-edge-llm", "TensorRT-Edge-LLM's own DART", frozenset({"dart"}), _edge, False),
        Target("openvino-genai", "OpenVINO GenAI's own CDPruner", frozenset({"cdpruner"}), _openvino, False, True),
    )
}


def target_named(name: str) -> Target:
    """A target by name.

    Raises:
        ConfigError: there is none such.
    """
    if name not in TARGETS:
        raise ConfigError(f"unknown target {name!r}; {suggest(name, list(TARGETS))}")
    return TARGETS[name]


def targets_of(schedule: Schedule, method: Method, layers: int) -> list[str]:
    """Names of the targets on which a schedule runs."""
    return [name for name, target in TARGETS.items() if target.refuses(schedule, method, layers) is None]
