"""Compare the searches of an experiment, from the database alone: the object that ``compare --json`` prints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import TrialState

from vispco.analysis.bootstrap import group_bootstraps, interval
from vispco.analysis.indicators import additive_epsilon, hypervolume, igd_plus
from vispco.analysis.parts import Parts
from vispco.costs.base import make_cost
from vispco.errors import StorageError
from vispco.evaluation.records import Evaluation
from vispco.fronts import choose, front, is_measured, within_limits
from vispco.storage.reading import TrialRecord, read_attribute, read_trials, snapshot, study_ids
from vispco.storage.store import Store

if TYPE_CHECKING:
    from vispco.analysis.pricing import Pricing

FLOPS = "flops"
# What analysis reads of a trial, and the only types that it believes: an imported study may use these names otherwise.
ATTRIBUTES: dict[str, type | tuple[type, ...]] = {
    "schedule": str,
    "evaluation": str,
    "method": str,
    "charged_flops": int,
    "full_flops": int,
    "spent_flops": int,
    "propose_flops": int,
    "budget": (int, float),
    "flops_ratio": (int, float),
    "limit_excess": (int, float),
    "relaxed_flops_ratio": (int, float),
    "relaxed_cost_ratio": (int, float),
    "stationarity": (int, float),
    "feasibility": (int, float),
    "complementarity": (int, float),
}


@dataclass(frozen=True)
class Searched:
    """One study as analysis sees it, by number.

    ``trials`` are the COMPLETE ones with finite values, the only ones that are on a front or chosen; ``stopped`` are
    the PRUNED ones, which cost something.
    """

    name: str
    study: str
    facts: dict[str, Any]
    trials: list[TrialRecord]
    stopped: list[TrialRecord]

    @property
    def imported(self) -> bool:
        return bool(self.facts["kind"] == "imported")

    @property
    def entry(self) -> str:
        """The entry of the experiment whose study, at one seed, this is."""
        return str(self.facts["entry"])

    @property
    def methods(self) -> dict[str | None, dict[str, Any]]:
        """Facts of the methods that it searched among, by their keys; most searches have one."""
        several: dict[str | None, dict[str, Any]] | None = self.facts.get("methods")
        return several or {self.facts.get("method_key"): {}}

    def with_method(self, key: str | None) -> Searched:
        """Itself with the facts of one of its methods."""
        return replace(self, facts={**self.facts, **self.methods.get(key, {}), "method_key": key})

    def of(self, trial: TrialRecord) -> Searched:
        """Itself, with the method of ``trial`` where it searched among several."""
        return self.with_method(trial.user_attrs.get("method")) if "methods" in self.facts else self

    @property
    def deterministic(self) -> bool:
        """Whether the search gives the same with any seed."""
        return bool(self.facts.get("deterministic", self.facts["kind"] == "grid"))

    @property
    def paid(self) -> list[TrialRecord]:
        """Trials that cost something: the stopped ones too."""
        return [*self.trials, *self.stopped]

    def total(self, name: str) -> int | None:
        """Sum of an attribute over the trials that cost something; None if one does not say."""
        values = [trial.user_attrs.get(name) for trial in self.paid]
        return None if None in values else sum(value for value in values if value is not None)

    @property
    def seconds(self) -> float:
        """Of proposing and measuring all trials."""
        return sum(trial.duration.total_seconds() for trial in self.paid if trial.duration is not None)


class Comparison:
    """Reads one experiment once; every number below comes from these records.

    The second value of a trial is its ``cost`` as a share of the unpruned model's, in which budgets are; of ``flops``
    that is flops_ratio.
    """

    def __init__(self, store: Store, experiment: str) -> None:
        self.store, self.experiment = store, experiment
        self.stored = store.require_experiment(experiment)
        self.facts = self.stored["facts"]
        if not self.facts:
            raise StorageError(f"experiment {experiment!r} has no results yet; run it (vispco resume {experiment})")
        self.budgets: list[float] = self.facts["budgets"]
        self.cost = str(self.facts.get("cost", FLOPS))
        self.unpruned_cost: float | None = None
        if self.cost != FLOPS:
            self.unpruned_cost = float(self.facts["cost_terms"]["unpruned"]["search"])
        self.searches = self._read_searches()
        self._links = {role: store.linked(experiment, role) for role in ("reference", "default", "schedule")}
        self._fronts = {search.study: front(search.trials) for search in self.searches}
        self._choices = {search.study: [choose(search.trials, b) for b in self.budgets] for search in self.searches}
        self._confirmed = self._confirmed_evaluations()
        self._evaluations: dict[str, Evaluation] = {}
        self._draws: dict[str, NDArray[np.float64]] = {}
        self._keep_ratios: dict[str, dict[int, list[float] | None]] = {}
        shown = [i for role in ("reference", "default") for i in self._links[role].values()]
        shown += [i for s in self.searches for t in self.shown(s) if (i := self._held_out_id(s, t))]
        self._load(shown)
        held_out = self.reference("unpruned", "held_out")
        groups = store.groups_of(held_out.id) if held_out else {}
        self.parts = self.parts_of(groups, [e for e in self._evaluations.values() if e.split == "held_out"])

    def parts_of(self, groups: Mapping[str, Sequence[str]], known: Iterable[Evaluation]) -> Parts:
        """Scores of a split, by its groups and the experiment's rules, as bootstraps draw them."""
        return Parts(groups, self.facts.get("aggregations", {}), known)

    def _read_searches(self) -> list[Searched]:
        with snapshot(self.store.engine) as connection:
            self._studies = known = study_ids(connection, self.experiment)
            studies = {name: facts for name, facts in self.facts["studies"].items() if name in known}
            found = read_trials(
                connection,
                [known[name] for name in studies],
                states=(TrialState.COMPLETE, TrialState.PRUNED),
                attributes=ATTRIBUTES,
                with_params=False,
            )
        searches = []
        for name, facts in studies.items():
            trials = found[known[name]]
            if facts["kind"] == "imported":
                trials = [_believed(trial) for trial in trials]
            if self.unpruned_cost is not None:
                trials = [_as_share(trial, self.unpruned_cost) for trial in trials]
            searches.append(
                Searched(
                    name.removeprefix(f"{self.experiment}/"),
                    name,
                    facts,
                    trials=[t for t in trials if t.state == TrialState.COMPLETE and is_measured(t)],
                    stopped=[t for t in trials if t.state == TrialState.PRUNED],
                )
            )
        return searches

    def _confirmed_evaluations(self) -> dict[str, str]:
        """Search-split evaluation -> key of its schedule's link. Equal ids are equal measurements, so an imported
        trial has the held-out numbers of the trial of ours that it repeats, or of a run that measured its choices."""
        if not any(search.imported for search in self.searches):
            return {}
        linked = self._links["schedule"].items()
        found = {evaluation: key for (key, split), evaluation in linked if split == "search"}
        for search in self.searches:
            for trial in search.trials if not search.imported else []:
                evaluation, key = trial.user_attrs.get("evaluation", ""), _link_key(search, trial)
                if evaluation not in found or (key, "held_out") in self._links["schedule"]:
                    found[evaluation] = key
        found.pop("", None)
        return found

    def shown(self, search: Searched) -> list[TrialRecord]:
        """Trials of which held-out numbers are shown."""
        return [*self._fronts[search.study], *(trial for trial in self._choices[search.study] if trial is not None)]

    def load_held_out(self, wanted: Iterable[tuple[Searched, TrialRecord]]) -> None:
        """Read held-out measurements that will be asked for, together."""
        self._load(found for search, trial in wanted if (found := self._held_out_id(search, trial)))

    def _load(self, ids: Iterable[str]) -> None:
        missing = [i for i in ids if i not in self._evaluations]
        if missing:
            self._evaluations.update(self.store.get_evaluations(missing))

    def _held_out_id(self, search: Searched, trial: TrialRecord) -> str | None:
        if search.imported:
            key = self._confirmed.get(trial.user_attrs.get("evaluation", ""))
        else:
            key = _link_key(search, trial)
        return self._links["schedule"].get((key, "held_out")) if key else None

    # --- lookups ---------------------------------------------------------------------------------

    def reference(self, key: str, split: str) -> Evaluation | None:
        return self._evaluations.get(self._links["reference"].get((key, split), ""))

    def held_out(self, search: Searched, trial: TrialRecord) -> Evaluation | None:
        """The held-out measurement of a trial's schedule, if it was made."""
        found = self._held_out_id(search, trial)
        if found is None:
            return None
        self._load([found])
        return self._evaluations.get(found)

    def delivered(self, search: Searched) -> list[Evaluation] | None:
        """Held-out measurements of what a search would have chosen, one for each budget; None while one is missing.

        A missed budget counts as the model without the picture: dropping every visual token fits any budget.
        """
        found = []
        for trial in self.chosen(search):
            evaluation = self.delivered_by(search, trial)
            if evaluation is None:
                return None
            found.append(evaluation)
        return found

    def delivered_by(self, search: Searched, trial: TrialRecord | None) -> Evaluation | None:
        """Held-out measurement of a choice; of no choice, the model without the picture."""
        return self.reference("no_image", "held_out") if trial is None else self.held_out(search, trial)

    def missed(self, search: Searched) -> int:
        """Budgets for which a search has nothing that fits."""
        return self.chosen(search).count(None)

    def grid_flops(self) -> int | None:
        """The dense grid's naive cost, which shares of compute refer to; None if it is not known."""
        grid = self.grid()
        known = _naive(grid) if grid else None
        return known if known is not None else self.facts.get("anytime", {}).get("grid_flops")

    def grid_spent(self) -> int | None:
        """What the dense grid cost as it was run here, with sharing; None if that is not known."""
        grid = self.grid()
        return grid.total("spent_flops") if grid else None

    def grid(self) -> Searched | None:
        """The first complete grid: the empirical frontier that others are compared with. Half a grid is none."""
        grids = (search for search in self.searches if search.facts["kind"] == "grid")
        return next((grid for grid in grids if len(grid.trials) + len(grid.stopped) >= grid.facts["points"]), None)

    def front(self, search: Searched) -> list[TrialRecord]:
        """The search's non-dominated trials, by flops_ratio."""
        return self._fronts[search.study]

    def chosen(self, search: Searched) -> list[TrialRecord | None]:
        """The trial that the search would have chosen for each budget; None for a budget that it misses."""
        return self._choices[search.study]

    def origin(self, search: Searched, trial: TrialRecord) -> Searched | None:
        """The search whose method a trial's schedule belongs to: itself, or for an imported trial that repeats a
        measurement of ours the search that made it; None if that cannot be known."""
        if not search.imported:
            return search.of(trial)
        key = self._confirmed.get(trial.user_attrs.get("evaluation", ""))
        ours = (s.with_method(method) for s in self.searches if not s.imported for method in s.methods)
        return next((s for s in ours if key and key.startswith(f"{s.facts['method_key']}|")), None)

    def held_out_share(self, evaluation: Evaluation, trial: TrialRecord) -> float:
        """Cost of a trial's schedule where it was measured again. Measurements have FLOPs only: another cost is the one
        on the search split."""
        return evaluation.flops_ratio if self.unpruned_cost is None else _values(trial)[1]

    def default_share(self, name: str) -> float | None:
        """Cost of a published default on the search split, as a share; None where it has no price."""
        if self.unpruned_cost is not None:
            share: float | None = self._default_cost(name)["cost_ratio"]
            return share
        found = self.default_on_search(name) or self.defaults()[name]
        return found.flops_ratio

    def flops_ratio(self, search: Searched, trial: TrialRecord) -> float | None:
        """Of a trial on the search split, whatever cost budgets are in; None if it is not known."""
        return _values(trial)[1] if self.unpruned_cost is None else trial.user_attrs.get("flops_ratio")

    def keep_ratio(self, search: Searched, trial: TrialRecord) -> list[float] | None:
        """What a trial keeps at each layer; None if it does not say."""
        known = self._keep_ratios.setdefault(search.study, {})
        if trial.number not in known:
            numbers = {trial.number, *(shown.number for shown in self.shown(search))} - known.keys()
            with snapshot(self.store.engine) as connection:
                found = read_attribute(connection, self._studies[search.study], "keep_ratio", numbers)
            known.update({number: _ratios(found.get(number)) for number in numbers})
        return known[trial.number]

    def hypervolume(self, search: Searched) -> float:
        """Hypervolume of the front at search accuracy, up to the experiment's own reference point."""
        return hypervolume([_values(trial) for trial in self.front(search)], reference=self.reference_point())

    def held_out_hypervolume(self, search: Searched) -> tuple[float | None, list[float] | None]:
        """Hypervolume of the front's schedules at their held-out accuracy, and its interval.

        The reference point is the held-out accuracy without a picture, and flops_ratio 1. The interval is a
        bootstrap over groups, conditional on the schedules. (None, None) while one is not measured there.
        """
        trials = self.front(search)
        measured = [self.held_out(search, trial) for trial in trials]
        held_out = [evaluation for evaluation in measured if evaluation is not None]
        no_image = self.reference("no_image", "held_out")
        if not held_out or len(held_out) < len(trials) or no_image is None:
            return None, None
        costs = np.array([self.held_out_share(one, trial) for one, trial in zip(held_out, trials, strict=True)])
        reference = (no_image.accuracy, 1.0)

        def volume(accuracies: Any) -> float:
            return hypervolume(np.column_stack([accuracies, costs]), reference=reference)

        # The same seed draws the same groups for every schedule.
        draws = group_bootstraps([self.parts.of(e) for e in held_out], self.parts.groups, resamples=500)
        reached = volume([evaluation.accuracy for evaluation in held_out])
        if np.isnan(draws).any():
            return reached, None
        volumes = np.array([volume(accuracies) for accuracies in draws.T])
        return reached, interval(volumes)

    def reference_point(self) -> tuple[float, float]:
        """(no-image accuracy on the search split, flops_ratio 1)."""
        no_image = self.reference("no_image", "search")
        return (no_image.accuracy if no_image else 0.0, 1.0)

    def points(self) -> list[dict[str, Any]]:
        """Every measured schedule of every search, on the search split; ``schedule`` is None if it is not known."""
        rows = []
        for search in self.searches:
            on_front = {trial.number for trial in self.front(search)}
            for trial in search.trials:
                row = {
                    "search": search.name,
                    "trial": trial.number,
                    "schedule": trial.user_attrs.get("schedule"),
                    **_named(search, trial),
                    "accuracy": _values(trial)[0],
                    "flops_ratio": _values(trial)[1],
                    "on_front": trial.number in on_front,
                }
                rows.append(self._both(search, row, trial))
        return rows

    def _drawn(self, evaluation: Evaluation) -> NDArray[np.float64]:
        """Bootstrap distribution of an evaluation's accuracy; mean and difference are linear in it."""
        if evaluation.id not in self._draws:
            wanted = {e.id: e for e in self._evaluations.values() if e.split == "held_out" and e.id not in self._draws}
            wanted[evaluation.id] = evaluation
            drawn = group_bootstraps([self.parts.of(e) for e in wanted.values()], self.parts.groups)
            self._draws.update(zip(wanted, drawn, strict=True))
        return self._draws[evaluation.id]

    # --- the object ------------------------------------------------------------------------------

    def to_dict(self, reference_point: tuple[float, float] | None = None) -> dict[str, Any]:
        reference = reference_point or self.reference_point()
        unpruned, unpruned_held = self.reference("unpruned", "search"), self.reference("unpruned", "held_out")
        no_image = self.reference("no_image", "held_out")
        samples = sum(len(s) for s in unpruned.scores.values()) if unpruned else 0
        return {
            "experiment": self.experiment,
            "spec_hash": self.stored["spec_hash"],
            "accounting": self.facts["accounting"],
            "floor": self.facts["floor"],
            "budgets": self.budgets,
            "unpruned": {
                "accuracy": unpruned.accuracy if unpruned else None,
                "accuracy_held_out": unpruned_held.accuracy if unpruned_held else None,
                "flops": unpruned.flops / samples if unpruned else None,
                "tasks": _by_task(unpruned_held),
                **({} if self.unpruned_cost is None else {"cost": self.unpruned_cost}),
            },
            "no_image": {"accuracy": no_image.accuracy if no_image else None, "tasks": _by_task(no_image)},
            "reference_point": {"accuracy": reference[0], "flops_ratio": reference[1]},
            "defaults": self._defaults(),
            "searches": [self._search(search, reference) for search in self.searches if search.trials],
            "by_budget": self._by_budget(),
            **self._cost_told(),
            **({"limits": self.facts["limits"]} if "limits" in self.facts else {}),
        }

    def _cost_told(self) -> dict[str, Any]:
        """Which cost budgets are in; {} for FLOPs."""
        if self.unpruned_cost is None:
            return {}
        return {"cost": self.cost, "cost_unit": make_cost(self.cost).unit}

    def _both(self, search: Searched, row: dict[str, Any], trial: TrialRecord | None) -> dict[str, Any]:
        """A row about a trial with its FLOPs, and beside them its share of the experiment's own cost."""
        if self.unpruned_cost is None or trial is None:
            return row
        return {**row, "flops_ratio": self.flops_ratio(search, trial), "cost_ratio": _values(trial)[1]}

    def defaults(self) -> dict[str, Evaluation]:
        """Published defaults by name, as measured on the held-out split."""
        linked = sorted((name, found) for (name, split), found in self._links["default"].items() if split == "held_out")
        return {name: self._evaluations[found] for name, found in linked if found in self._evaluations}

    def default_on_search(self, name: str) -> Evaluation | None:
        """A published default as measured on the search split, where schedules are chosen."""
        return self._evaluations.get(self._links["default"].get((name, "search"), ""))

    def _defaults(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "accuracy_held_out": evaluation.accuracy,
                "flops_ratio": evaluation.flops_ratio,
                "schedule": evaluation.schedule,
                "accuracy_ci": self.interval_of(evaluation),
                **self._default_cost(name),
            }
            for name, evaluation in self.defaults().items()
        ]

    def _default_cost(self, name: str) -> dict[str, Any]:
        """A default's ``cost_ratio`` on the search split, None without a price; {} where budgets are in FLOPs."""
        if self.unpruned_cost is None:
            return {}
        price = self.pricing.of_published(self.cost, name)
        return {"cost_ratio": None if price is None else price.absolute / self.unpruned_cost}

    @cached_property
    def pricing(self) -> Pricing:
        from vispco.analysis.pricing import Pricing

        return Pricing(self)

    def _search(self, search: Searched, reference: tuple[float, float]) -> dict[str, Any]:
        points = [_values(trial) for trial in search.trials if within_limits(trial)]
        grid = self.grid()
        grid_points = [_values(trial) for trial in self.front(grid)] if grid else None
        volume = hypervolume(points, reference=reference)
        grid_volume = hypervolume(grid_points, reference=reference) if grid_points else 0.0
        charged = search.total("charged_flops")
        grid_charged = _naive(grid) if grid else None
        measured = [trial.user_attrs.get("evaluation") for trial in search.trials]
        score, score_ci = self._budget_score(search)
        return {
            "name": search.name,
            "study": search.study,
            "seed": search.facts["seed"],
            "trials": len(search.trials),
            "evaluations": None if None in measured else len(set(measured)),
            "charged_flops": charged,
            "spent_flops": search.total("spent_flops"),
            "propose_flops": search.total("propose_flops"),
            "wall_seconds": search.seconds,
            "budget_score": score,
            "budget_score_ci": score_ci,
            "budgets_missed": self.missed(search),
            "score_within_budget": score,  # the name of budget_score when there were two scores
            "score_within_budget_ci": score_ci,
            "hypervolume": volume,
            "hypervolume_ratio_to_grid": volume / grid_volume if grid_volume else None,
            "cost_ratio_to_grid": share(charged, grid_charged),
            "spent_ratio_to_grid": share(search.total("spent_flops"), self.grid_spent()),
            "seconds_ratio_to_grid": share(search.seconds, grid.seconds if grid else None) if charged else None,
            "igd_plus": igd_plus(points, reference_set=grid_points) if grid_points else None,
            "epsilon": additive_epsilon(points, reference_set=grid_points) if grid_points else None,
            "front": [self._point(search, trial) for trial in self.front(search)],
        }

    def _budget_score(self, search: Searched) -> tuple[float | None, list[float] | None]:
        """Mean over budgets of the chosen schedules' held-out accuracy; null while one is not measured there."""
        delivered = self.delivered(search)
        if delivered is None:
            return None, None
        score = float(np.mean([evaluation.accuracy for evaluation in delivered]))
        return score, interval(np.mean([self._drawn(evaluation) for evaluation in delivered], axis=0))

    def _point(self, search: Searched, trial: TrialRecord) -> dict[str, Any]:
        held_out = self.held_out(search, trial)
        row = {
            "trial": trial.number,
            "schedule": trial.user_attrs.get("schedule"),
            **_named(search, trial),
            "keep_ratio": self.keep_ratio(search, trial),
            "accuracy": _values(trial)[0],
            "accuracy_held_out": held_out.accuracy if held_out else None,
            "accuracy_ci": interval(self._drawn(held_out)) if held_out else None,
            "flops_ratio": _values(trial)[1],
            "budget": trial.user_attrs.get("budget"),
            "tasks": {name: dict(task) for name, task in held_out.tasks.items()} if held_out else {},
        }
        return self._both(search, row, trial)

    def _by_budget(self) -> list[dict[str, Any]]:
        grid = self.grid()
        rows = []
        for number, budget in enumerate(self.budgets):
            chosen: dict[str, Any] = {}
            differences: dict[str, Any] = {}
            grid_held = self.delivered_by(grid, self.chosen(grid)[number]) if grid else None
            for search in self.searches:
                if not search.trials:
                    continue
                trial = self.chosen(search)[number]
                held_out = self.delivered_by(search, trial)
                blind = held_out if trial is None else None
                row = {
                    "trial": trial.number if trial else None,
                    "schedule": trial.user_attrs.get("schedule") if trial else blind and blind.schedule,
                    **(_named(search, trial) if trial else {}),
                    "accuracy_held_out": held_out.accuracy if held_out else None,
                    "flops_ratio": _values(trial)[1] if trial else blind and blind.flops_ratio,
                    "missed": trial is None,
                    "tasks": _by_task(held_out),
                }
                chosen[search.name] = self._both(search, row, trial)
                if grid is not None and search is not grid:
                    differences[search.name] = self.difference(held_out, grid_held) if held_out and grid_held else None
            rows.append({"budget": budget, "chosen": chosen, "difference_to_grid": differences})
        return rows

    def interval_of(self, evaluation: Evaluation) -> list[float] | None:
        """Bootstrap interval of a held-out accuracy, conditional on the schedule; None where it cannot be known."""
        return interval(self._drawn(evaluation))

    def difference(self, first: Evaluation, second: Evaluation) -> dict[str, Any]:
        """``mean`` and ``ci`` of the difference of two held-out accuracies on the same samples."""
        return self.mean_difference([first], second)

    def mean_difference(self, several: Sequence[Evaluation], second: Evaluation) -> dict[str, Any]:
        """``mean`` and ``ci`` of the mean of several held-out accuracies minus one, given these schedules."""
        drawn = np.mean([self._drawn(evaluation) for evaluation in several], axis=0) - self._drawn(second)
        return {"mean": fmean(e.accuracy for e in several) - second.accuracy, "ci": interval(drawn)}


def share(part: float | None, whole: float | None) -> float | None:
    """``part`` over ``whole``; None where either is not known."""
    return part / whole if part is not None and whole else None


def _by_task(evaluation: Evaluation | None) -> dict[str, float]:
    return {name: task["accuracy"] for name, task in evaluation.tasks.items()} if evaluation else {}


def _link_key(search: Searched, trial: TrialRecord) -> str:
    return f"{search.of(trial).facts['method_key']}|{trial.user_attrs.get('schedule')}"


def _named(search: Searched, trial: TrialRecord) -> dict[str, Any]:
    """The method of a trial, where its search had a choice."""
    return {"method": search.of(trial).facts["method"]} if "methods" in search.facts else {}


def _as_share(trial: TrialRecord, whole: float) -> TrialRecord:
    values = trial.values
    return trial if not values or len(values) != 2 else replace(trial, values=(values[0], values[1] / whole))


def _values(trial: TrialRecord) -> tuple[float, ...]:
    assert trial.values is not None
    return trial.values


def _believed(trial: TrialRecord) -> TrialRecord:
    """An imported trial without attributes that only share our names."""
    attrs = {k: v for k, v in trial.user_attrs.items() if isinstance(v, ATTRIBUTES[k]) and not isinstance(v, bool)}
    attrs = {k: v for k, v in attrs.items() if not isinstance(v, float) or math.isfinite(v)}
    if "charged_flops" in attrs:
        attrs.setdefault("propose_flops", 0)  # proposing was the user's own affair
    return replace(trial, user_attrs=attrs)


def _ratios(value: Any) -> list[float] | None:
    good = isinstance(value, list) and all(isinstance(r, (int, float)) and 0 <= r <= 1 for r in value)
    return value if good else None


def _naive(grid: Searched) -> int | None:
    """What a grid costs without sharing and without racing: all its schedules on all samples."""
    values = [trial.user_attrs.get("full_flops", trial.user_attrs.get("charged_flops")) for trial in grid.paid]
    return None if None in values else sum(values)


def together(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was found of one experiment, or of several under ``experiments``."""
    return found[0] if len(found) == 1 else {"experiments": list(found)}


def compare(store: Store, experiments: Sequence[str]) -> dict[str, Any]:
    """One experiment's object, or several under ``experiments`` that share the lowest reference point.

    Raises:
        StorageError: no such experiment, or one without results.
    """
    comparisons = [Comparison(store, name) for name in experiments]
    if len(comparisons) == 1:
        return comparisons[0].to_dict()
    shared = min(comparison.reference_point() for comparison in comparisons)
    return {
        "reference_point": {"accuracy": shared[0], "flops_ratio": shared[1]},
        "experiments": [comparison.to_dict(shared) for comparison in comparisons],
    }
