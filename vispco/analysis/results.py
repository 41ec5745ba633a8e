"""What an experiment measured: its studies, their fronts and choices, and held-out measurements of those."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vispco.analysis.study_reading import read_studies
from vispco.analysis.study_result import StudyResult
from vispco.errors import StorageError
from vispco.evaluation.records import Evaluation
from vispco.fronts import choose, front, front_of_all
from vispco.storage.reading import TrialRecord, read_attribute, snapshot
from vispco.storage.store import Store

FLOPS = "flops"


class ExperimentResults:
    """Reads one experiment once.

    The second value of a trial is its ``cost`` as a share of the unpruned model's, in which budgets are; of ``flops``
    that is flops_ratio. Values of ``further`` costs that are minimised come after it, likewise as shares. Budgets,
    scores, and all that is said of a front without *all objectives*, are of accuracy and the first cost.
    """

    def __init__(self, store: Store, experiment: str) -> None:
        self.store, self.experiment = store, experiment
        self.stored = store.require_experiment(experiment)
        self.facts = self.stored.facts
        if not self.facts:
            raise StorageError(f"experiment {experiment!r} has no results yet; run it (vispco resume {experiment})")
        self.cost = str(self.facts.get("cost", FLOPS))
        self.unpruned_cost: float | None = None
        if self.cost != FLOPS:
            self.unpruned_cost = float(self.facts["cost_terms"]["unpruned"]["search"])
        self.further: dict[str, float] = self.facts.get("further_costs", {})
        wholes = None
        if self.unpruned_cost is not None or self.further:
            wholes = [1.0, self.unpruned_cost or 1.0, *self.further.values()]
        searches, self._studies = read_studies(store, experiment, self.facts["studies"], wholes)
        self._links = {role: store.linked(experiment, role) for role in ("reference", "default", "schedule")}
        self._choose(searches, self.facts["budgets"])
        self._repeated = self._repeated_measurements()
        self._evaluations: dict[str, Evaluation] = {}
        self._keep_ratios: dict[str, dict[int, list[float] | None]] = {}
        linked = [i for role in ("reference", "default") for i in self._links[role].values()]
        shown = [self._held_out_id(search, trial) for search in self.searches for trial in self.shown(search)]
        self._load([*linked, *(i for i in shown if i)])

    @property
    def score(self) -> str:
        """What numbers called accuracy are: that, or how far answers stay those of the unpruned model."""
        named = str(self.stored.identity.get("score", "task"))
        return "accuracy" if named == "task" else named

    def _choose(self, searches: list[StudyResult], budgets: list[float]) -> None:
        """Fronts of ``searches``, and what each would have chosen for ``budgets``."""
        self.searches, self.budgets = searches, budgets
        self._fronts = {search.study: front(search.trials) for search in searches}
        self._fronts_of_all = {one.study: front_of_all(one.trials) for one in searches if self.further}
        self._choices = {search.study: [choose(search.trials, budget) for budget in budgets] for search in searches}

    def _repeated_measurements(self) -> dict[str, str]:
        """Search-split evaluation -> key of its schedule's link. Equal ids are equal measurements, so an imported
        trial has the held-out numbers of the trial of ours that it repeats, or of a run that measured its choices."""
        if not any(search.is_imported for search in self.searches):
            return {}
        linked = self._links["schedule"].items()
        keys = {evaluation: key for (key, split), evaluation in linked if split == "search"}
        for search in self.searches:
            for trial in search.trials if not search.is_imported else []:
                evaluation, key = trial.user_attrs.get("evaluation", ""), _link_key(search, trial)
                if evaluation not in keys or (key, "held_out") in self._links["schedule"]:
                    keys[evaluation] = key
        keys.pop("", None)
        return keys

    # --- measurements ------------------------------------------------------------------------------

    def load_held_out(self, wanted: Iterable[tuple[StudyResult, TrialRecord]]) -> None:
        """Read held-out measurements that will be asked for, together."""
        self._load(i for search, trial in wanted if (i := self._held_out_id(search, trial)))

    def _load(self, ids: Iterable[str]) -> None:
        missing = [i for i in ids if i not in self._evaluations]
        if missing:
            self._evaluations.update(self.store.get_evaluations(missing))

    def _held_out_id(self, search: StudyResult, trial: TrialRecord) -> str | None:
        if search.is_imported:
            key = self._repeated.get(trial.user_attrs.get("evaluation", ""))
        else:
            key = _link_key(search, trial)
        return self._links["schedule"].get((key, "held_out")) if key else None

    def reference(self, key: str, split: str) -> Evaluation | None:
        return self._evaluations.get(self._links["reference"].get((key, split), ""))

    def held_out(self, search: StudyResult, trial: TrialRecord) -> Evaluation | None:
        """The held-out measurement of a trial's schedule, if it was made."""
        evaluation_id = self._held_out_id(search, trial)
        if evaluation_id is None:
            return None
        self._load([evaluation_id])
        return self._evaluations.get(evaluation_id)

    def delivered(self, search: StudyResult) -> list[Evaluation] | None:
        """Held-out measurements of what a search would have chosen, one for each budget; None while one is missing.

        A missed budget counts as the model without the picture: dropping every visual token fits any budget.
        """
        measured = []
        for trial in self.chosen(search):
            evaluation = self.delivered_by(search, trial)
            if evaluation is None:
                return None
            measured.append(evaluation)
        return measured

    def delivered_by(self, search: StudyResult, trial: TrialRecord | None) -> Evaluation | None:
        """Held-out measurement of a choice; of no choice, the model without the picture."""
        return self.reference("no_image", "held_out") if trial is None else self.held_out(search, trial)

    def defaults(self) -> dict[str, Evaluation]:
        """Published defaults by name, as measured on the held-out split."""
        linked = sorted((name, i) for (name, split), i in self._links["default"].items() if split == "held_out")
        return {name: self._evaluations[i] for name, i in linked if i in self._evaluations}

    def default_on_search(self, name: str) -> Evaluation | None:
        """A published default as measured on the search split, where schedules are chosen."""
        return self._evaluations.get(self._links["default"].get((name, "search"), ""))

    # --- trials ------------------------------------------------------------------------------------

    def front(self, search: StudyResult) -> list[TrialRecord]:
        """The search's non-dominated trials, by flops_ratio."""
        return self._fronts[search.study]

    def front_of_all(self, search: StudyResult) -> list[TrialRecord]:
        """Those that are non-dominated in all objectives, where several costs are minimised; otherwise none."""
        return self._fronts_of_all.get(search.study, [])

    def chosen(self, search: StudyResult) -> list[TrialRecord | None]:
        """The trial that the search would have chosen for each budget; None for a budget that it misses."""
        return self._choices[search.study]

    def shown(self, search: StudyResult) -> list[TrialRecord]:
        """Trials of which held-out numbers are shown."""
        chosen = (trial for trial in self._choices[search.study] if trial is not None)
        return [*self._fronts[search.study], *self.front_of_all(search), *chosen]

    def missed(self, search: StudyResult) -> int:
        """Budgets for which a search has nothing that fits."""
        return self.chosen(search).count(None)

    def origin(self, search: StudyResult, trial: TrialRecord) -> StudyResult | None:
        """The search whose method a trial's schedule belongs to: itself, or for an imported trial that repeats a
        measurement of ours the search that made it; None if that cannot be known."""
        if not search.is_imported:
            return search.of_trial(trial)
        key = self._repeated.get(trial.user_attrs.get("evaluation", ""))
        ours = (s.with_method(method) for s in self.searches if not s.is_imported for method in s.methods)
        return next((s for s in ours if key and key.startswith(f"{s.method_key}|")), None)

    def flops_ratio(self, search: StudyResult, trial: TrialRecord) -> float | None:
        """Of a trial on the search split, whatever cost budgets are in; None if it is not known."""
        return trial.cost if self.unpruned_cost is None else trial.user_attrs.get("flops_ratio")

    def costs_of(self, trial: TrialRecord) -> dict[str, float]:
        """Every cost that is minimised, as a share, by its name."""
        return dict(zip([self.cost, *self.further], (trial.values or ())[1:], strict=True))

    def held_out_share(self, evaluation: Evaluation, trial: TrialRecord) -> float:
        """Cost of a trial's schedule where it was measured again. Measurements have FLOPs only: another cost is the one
        on the search split."""
        return evaluation.flops_ratio if self.unpruned_cost is None else trial.cost

    def keep_ratio(self, search: StudyResult, trial: TrialRecord) -> list[float] | None:
        """What a trial keeps of its picture at each layer; None if it does not say."""
        known = self._keep_ratios.setdefault(search.study, {})
        if trial.number not in known:
            numbers = {trial.number, *(shown.number for shown in self.shown(search))} - known.keys()
            with snapshot(self.store.engine) as connection:
                stored = read_attribute(connection, self._studies[search.study], "keep_ratio", numbers)
            known.update({number: _ratios(stored.get(number)) for number in numbers})
        return known[trial.number]

    # --- the grid ----------------------------------------------------------------------------------

    def grid(self) -> StudyResult | None:
        """The first complete grid: the empirical frontier that others are compared with; None if there is none."""
        return next((one for one in self.searches if one.is_reference and one.is_complete), None)

    def grid_flops(self) -> int | None:
        """The dense grid's naive cost, which shares of compute refer to; None if it is not known."""
        grid = self.grid()
        known = grid.full_flops if grid else None
        return known if known is not None else self.facts.get("anytime", {}).get("grid_flops")

    def grid_spent(self) -> int | None:
        """What the dense grid cost as it was run here, with sharing; None if that is not known."""
        grid = self.grid()
        return grid.total("spent_flops") if grid else None


def _link_key(search: StudyResult, trial: TrialRecord) -> str:
    return f"{search.of_trial(trial).method_key}|{trial.user_attrs.get('schedule')}"


def _ratios(value: Any) -> list[float] | None:
    good = isinstance(value, list) and all(isinstance(r, (int, float)) and 0 <= r <= 1 for r in value)
    return value if good else None
