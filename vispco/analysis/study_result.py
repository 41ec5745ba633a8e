"""One study of an experiment as analysis sees it: what it searched with, and its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vispco.pruning.methods.base import Method, make_method
from vispco.storage.importing import IMPORTED
from vispco.storage.reading import TrialRecord


@dataclass(frozen=True)
class MethodChoice:
    """A method by its name, with its parameters."""

    method: str | None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyResult:
    """A study of one entry at one seed.

    Attributes:
        name: without the experiment's name; ``study`` with it.
        entry: of the experiment file, or the name that an imported study was given.
        method, method_parameters, method_key: None or empty for an imported study, and where it searched among
            ``several``.
        family: of its schedules.
        points: schedules of the whole grid, of a grid.
        deterministic: whether it gives the same with any seed.
        several: the methods that it searched among, by their keys; empty for one.
        trials: the COMPLETE ones with finite values, the only ones that are on a front or chosen.
        stopped: the PRUNED ones, which cost something.
        owed: FLOPs for proposing what failed at the end, so that no trial bears them.
        found_nothing: whether it came to its end without a schedule. One without trials that does not say so was not
            run, or interrupted.
    """

    name: str
    study: str
    entry: str
    kind: str
    seed: int | None
    method: str | None
    method_parameters: Mapping[str, Any]
    method_key: str | None
    family: str | None
    points: int | None
    deterministic: bool
    several: Mapping[str | None, MethodChoice]
    trials: Sequence[TrialRecord]
    stopped: Sequence[TrialRecord]
    owed: Mapping[str, int] = field(default_factory=dict)
    found_nothing: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        study: str,
        facts: Mapping[str, Any],
        trials: Sequence[TrialRecord],
        stopped: Sequence[TrialRecord],
        owed: Mapping[str, int] | None = None,
    ) -> StudyResult:
        """From what the experiment's stored ``facts`` note of the study."""
        several = facts.get("methods", {})
        return cls(
            name,
            study,
            entry=facts.get("entry") or name,
            kind=facts["kind"],
            seed=facts.get("seed"),
            method=facts.get("method"),
            method_parameters=facts.get("method_parameters") or {},
            method_key=facts.get("method_key"),
            family=facts.get("family"),
            points=facts.get("points"),
            deterministic=bool(facts.get("deterministic", facts["kind"] == "grid")),
            several={key: MethodChoice(one["method"], one["method_parameters"]) for key, one in several.items()},
            trials=trials,
            stopped=stopped,
            owed=owed or {},
            found_nothing=bool(facts.get("found_nothing")) and not trials,
        )

    @property
    def is_reference(self) -> bool:
        """Whether it is a grid, which others are compared with."""
        return self.kind == "grid"

    @property
    def is_imported(self) -> bool:
        return self.kind == IMPORTED

    @property
    def is_complete(self) -> bool:
        """Of a grid: whether all its schedules are measured, or were stopped by a race."""
        return self.points is not None and len(self.paid) >= self.points

    @property
    def methods(self) -> Mapping[str | None, MethodChoice]:
        """The methods that it searched among, by their keys; most searches have one."""
        return self.several or {self.method_key: MethodChoice(self.method, self.method_parameters)}

    def with_method(self, key: str | None) -> StudyResult:
        """Itself with one of its methods."""
        chosen = self.methods.get(key)
        if chosen is None:
            return replace(self, method_key=key)
        return replace(self, method=chosen.method, method_parameters=chosen.parameters, method_key=key)

    def by_method(self) -> list[StudyResult]:
        """Itself; of one that searched among several methods a part for each, with the trials of that."""
        if not self.several:
            return [self]
        return [
            replace(
                self.with_method(key),
                entry=f"{self.entry} with {key}",
                trials=[t for t in self.trials if t.user_attrs.get("method") == key],
                stopped=[t for t in self.stopped if t.user_attrs.get("method") == key],
                owed={},
            )
            for key in self.several
        ]

    def of_trial(self, trial: TrialRecord) -> StudyResult:
        """Itself, with the method of ``trial`` where it searched among several."""
        return self.with_method(trial.user_attrs.get("method")) if self.several else self

    def make_method(self) -> Method:
        """Its one method, ready to run."""
        assert self.method is not None
        return make_method(self.method, dict(self.method_parameters))

    @property
    def paid(self) -> list[TrialRecord]:
        """Trials that cost something: the stopped ones too."""
        return [*self.trials, *self.stopped]

    def total(self, name: str) -> int | None:
        """Sum of an attribute over the trials that cost something, and what is owed; None if one does not say."""
        return _sum([*(trial.user_attrs.get(name) for trial in self.paid), self.owed.get(name, 0)])

    @property
    def full_flops(self) -> int | None:
        """What it costs without sharing and without racing: all its schedules on all samples; None if not known."""
        return _sum([t.user_attrs.get("full_flops", t.user_attrs.get("charged_flops")) for t in self.paid])

    @property
    def seconds(self) -> float:
        """Of proposing and measuring all trials."""
        return sum(trial.duration.total_seconds() for trial in self.paid if trial.duration is not None)


def _sum(values: Sequence[int | None]) -> int | None:
    return None if None in values else sum(value for value in values if value is not None)


def each_method(runs: Sequence[StudyResult]) -> dict[str, list[StudyResult]]:
    """Runs by entry, or by entry and method where they searched among several."""
    found: dict[str, list[StudyResult]] = {}
    for run in runs:
        for part in run.by_method():
            found.setdefault(part.entry, []).append(part)
    return found
