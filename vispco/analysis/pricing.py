"""Every cost of every measured schedule, from its text or keep ratios and the lengths of the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from vispco.config import CostConfig
from vispco.costs import Profile, Prompts, Setting, make_cost
from vispco.costs.flops import plain_flops
from vispco.costs.held import held_in, told_apart
from vispco.costs.profile import parse_profile
from vispco.errors import ConfigError, ScheduleError
from vispco.models.shapes import ModelShape
from vispco.pruning.families.base import bisected
from vispco.pruning.methods.base import Method
from vispco.pruning.published import PUBLISHED
from vispco.pruning.schedules import parse_schedule, ratio_counts, resolution_of

if TYPE_CHECKING:
    from vispco.analysis.comparison import Comparison
    from vispco.analysis.study_result import StudyResult
    from vispco.storage.reading import TrialRecord


@dataclass(frozen=True)
class Price:
    """A cost in its unit, mean over prompts, and as a share of the unpruned model's: of FLOPs the mean of each prompt's
    share, as ``flops_ratio`` is, of other costs the ratio of the means, as budgets are."""

    absolute: float
    share: float


class Pricing:
    """Costs of the trials of one experiment.

    Experiments that did not store the lengths of their prompts are priced by prompts of average length, which follow
    from the FLOPs of the plain model with and without pictures; ``exact`` is then False.

    Args:
        profile: default: the one that is stored with the experiment, if there is one.
        answer_tokens, batch: default: those of the study's cost. ``own``: whether all three are the study's.

    Raises:
        ConfigError: the profile is of another model.
    """

    def __init__(
        self,
        comparison: Comparison,
        profile: Profile | None = None,
        *,
        answer_tokens: int | None = None,
        batch: int | None = None,
    ) -> None:
        self.comparison = comparison
        study = {**CostConfig().model_dump(), **comparison.stored.identity.get("cost", {})}
        self.answer_tokens: int = study["answer_tokens"] if answer_tokens is None else answer_tokens
        self.batch: int = study["batch"] if batch is None else batch
        same = (self.answer_tokens, self.batch) == (study["answer_tokens"], study["batch"])
        self.own = same and profile is None
        stored = comparison.facts.get("profile")
        self.given = profile
        self.profile = profile or (parse_profile(stored, "the stored profile") if stored else None)
        self._prices: dict[tuple[Any, ...], Price | None] = {}
        if profile is not None:
            profile.check_model(self._model, self.setting.shape, held_in(comparison.stored.identity))

    @property
    def _model(self) -> str:
        return str(self.comparison.stored.identity.get("model", {}).get("name"))

    @cached_property
    def setting(self) -> Setting:
        """What costs depend on, without a method."""
        more: dict[str, Any] = {"answer_tokens": self.answer_tokens, "batch": self.batch}
        known = self.comparison.facts.get("costs")
        if known:
            return Setting.from_dict(known, **more).on(self.profile)
        from vispco.costs.described import described

        model = self.comparison.stored.identity.get("model", {})
        found = described(self._model, model.get("device", "cpu"), model.get("dtype", "auto"))
        return replace(found, **more).on(self.profile)

    def noise(self, cost: str) -> float | None:
        """Of a cost in time, how far repetitions differed while its profile was measured
        (:meth:`vispco.costs.profile.Timings.noise`); None of other costs."""
        if self.profile is None or not make_cost(cost).needs_profile:
            return None
        return self.profile.at(self.batch).noise()

    def times_of(self, cost: str) -> str | None:
        """Of a cost in time, what its times were measured on, and what else the experiment ran; None of other costs."""
        if self.profile is None or not make_cost(cost).needs_profile:
            return None
        identity = self.comparison.stored.identity
        dtype = (identity.get("content") or {}).get("model", {}).get("dtype", "").removeprefix("torch.")
        told = f"times are of {self.profile.about()}"
        if self.profile.model != self._model or (dtype and dtype != self.profile.dtype):
            told += f"; the experiment measured accuracies with {self._model}{f' in {dtype}' if dtype else ''}"
        return told + (f"; {apart}" if (apart := told_apart(self.profile, held_in(identity))) else "")

    def prompts(self, split: str) -> Prompts:
        """Lengths of a split's prompts.

        Raises:
            ConfigError: they are not known.
        """
        rows = self.comparison.facts.get("costs", {}).get("prompts", {}).get(split)
        if rows:
            return Prompts.from_list(rows)
        return self._average(split)

    def _average(self, split: str) -> Prompts:
        lengths = []
        for key in ("no_image", "unpruned"):
            reference = self.comparison.reference(key, split)
            if reference is None:
                raise ConfigError(
                    f"experiment {self.comparison.experiment!r} does not say how long its prompts are; "
                    f"run it again (vispco resume {self.comparison.experiment}), which measures nothing twice"
                )
            samples = sum(len(scores) for scores in reference.scores.values())
            lengths.append(_tokens(self.setting.shape, reference.flops / samples))
        text, whole = lengths
        return Prompts(np.array([whole - text]), np.array([text]), np.ones(1), exact=False)

    @property
    def exact(self) -> bool:
        return "costs" in self.comparison.facts

    def of(self, cost: str, search: StudyResult, trial: TrialRecord, split: str = "search") -> Price | None:
        """A trial's cost; None for an imported trial of which no schedule is known.

        ``flops`` as a share of the unpruned model's is what was measured, whatever is known of prompts.
        """
        origin = self.comparison.origin(search, trial)
        text = str(trial.user_attrs.get("schedule"))
        if cost == "flops" and split == "search":
            share = self.comparison.flops_ratio(search, trial)
            if share is not None:
                # The mean share times the mean of the plain model's is another number where prompts differ in length;
                # it has to do where lengths or schedule are not known.
                known = origin if self.exact and "(" in text else None
                priced = self._computed(cost, known, None, text, split) if known is not None else None
                return Price(priced.absolute if priced else share * self.unpruned(cost, split), share)
        elif self._is_own(cost) and split == "search":
            return Price(trial.cost * self.unpruned(cost, split), trial.cost)
        if origin is None:
            return None
        ratios = self.comparison.keep_ratio(search, trial) if "(" not in text else None
        return self._computed(cost, origin, ratios, text, split)

    def _computed(
        self, cost: str, origin: StudyResult, ratios: Sequence[float] | None, text: str, split: str
    ) -> Price | None:
        """From the schedule's text, or its keep ratios; each once."""
        key = (cost, split, str(origin.method_key), text, *(ratios or ()))
        if key not in self._prices:
            self._prices[key] = self._price(cost, text, ratios, origin.make_method(), split)
        return self._prices[key]

    def _is_own(self, cost: str) -> bool:
        """Whether it is what the experiment's budgets are in, by the same profile, batch and length of answers."""
        return self.own and cost == self.comparison.facts.get("cost") == self.comparison.cost

    def of_published(self, cost: str, name: str, split: str = "search") -> Price | None:
        """Of a published default; None where it has none here, as where the profile does not have its method."""
        known = PUBLISHED[name]
        layers = self.setting.shape.layers
        ratios = known.for_layers(layers).keep_ratio(layers)
        try:
            return self._price(cost, known.for_layers(layers).text(), ratios, known.make_method(), split)
        except ConfigError:
            return None

    def _price(self, cost: str, text: str, ratios: Sequence[float] | None, method: Method, split: str) -> Price | None:
        layers, setting = self.setting.shape.layers, self.setting.with_method(method)
        try:
            schedule = parse_schedule(text)
        except ScheduleError:
            if not ratios:
                return None
            prompts = self.prompts(split)
            found = make_cost(cost).mean(setting, ratio_counts(ratios, prompts.visual), prompts)
            return self._as_share(cost, split, *found)
        smaller = self._smaller(resolution_of(schedule), split)
        if smaller is None:
            return None
        vision, prompts = smaller
        counts = np.minimum(schedule.counts(prompts.visual, layers), prompts.visual[:, None])
        own = replace(setting, vision_flops=vision)
        return self._as_share(cost, split, *make_cost(cost).mean(own, counts, prompts, whole=setting))

    def _as_share(self, cost: str, split: str, absolute: float, share: float) -> Price:
        return Price(absolute, share if cost == "flops" else absolute / self.unpruned(cost, split))

    def _smaller(self, resolution: float | None, split: str) -> tuple[float, Prompts] | None:
        """The tower's FLOPs per visual token and the prompts at a resolution; None where that was not measured."""
        if resolution is None or resolution == self._own_resolution:
            return self.setting.vision_flops, self.prompts(split)
        known = self.comparison.facts.get("costs", {}).get("resolutions", {}).get(f"{resolution:g}")
        return (known["vision_flops"], Prompts.from_list(known["prompts"][split])) if known else None

    def picture(self, text: str) -> float:
        """Share of the whole pictures' visual tokens that a schedule's own pictures have."""
        try:
            resolution = resolution_of(parse_schedule(text))
        except ScheduleError:
            return 1.0
        if resolution is None or resolution == self._own_resolution:
            return 1.0
        smaller = self._smaller(resolution, "search")
        if smaller is None or (whole := smaller[1].whole) is None or not (seen := whole[:, 0] > 0).any():
            return resolution / self._own_resolution
        prompts = smaller[1]
        return float(np.average(prompts.visual[seen] / whole[seen, 0], weights=prompts.weight[seen]))

    @property
    def _own_resolution(self) -> float:
        return float(self.comparison.stored.identity.get("model", {}).get("resolution", 1.0))

    def unpruned(self, cost: str, split: str = "search") -> float:
        """Mean cost of the plain model, over tasks of means over their prompts."""
        if cost == "flops" and not self.exact:
            plain = self.comparison.reference("unpruned", split)
            return plain.flops / sum(len(scores) for scores in plain.scores.values()) if plain else float("nan")
        if self._is_own(cost):
            return float(self.comparison.facts["cost_terms"]["unpruned"][split])
        prompts, model = self.prompts(split), make_cost(cost)
        costs = model.unpruned(self.setting, prompts.visual, prompts.text)
        return model.averaged(prompts.mean, costs, costs)[0]


def _tokens(shape: ModelShape, flops: float) -> int:
    """How many tokens cost so many FLOPs in all layers."""
    most = 1.0
    while plain_flops(shape, most) < flops:
        most *= 2
    return round(bisected(lambda tokens: plain_flops(shape, tokens) < flops, 0.0, most, 60))
