"""What searches have chosen, measured on the held-out split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from vispco.errors import ScheduleError
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.records import Evaluation, Failed, Outcome
from vispco.experiment.planning import Planned
from vispco.experiment.progress import Progress
from vispco.fronts import checkpoints_to_confirm, choose, front, is_measured, trials_to_confirm
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import Policy, Schedule, parse_schedule
from vispco.search import SEARCHES
from vispco.storage.importing import IMPORTED
from vispco.storage.store import Store


class HeldOut:
    """Measures on the held-out split what searches have chosen, and their fronts. Nothing is chosen here."""

    def __init__(self, evaluator: Evaluator, store: Store, progress: Progress) -> None:
        self.evaluator, self.store, self.progress = evaluator, store, progress
        self.problem, self.study = evaluator.problem, evaluator.problem.study

    def confirm(
        self,
        planned: Sequence[Planned],
        policies: Mapping[str, Callable[[str], Policy]],
        budgets: list[float],
        checkpoints: dict[str, Any],
    ) -> None:
        """Measure what each search would have chosen for each budget, and its front.

        Args:
            policies: by study, the policy of a schedule's text; a study without one ended early and is left out.
        """
        limits = [share * checkpoints["grid_flops"] for share in checkpoints.get("shares", [])]
        todo: dict[str, tuple[Method, dict[str, Policy]]] = {}
        for item in planned:
            if item.study not in policies:
                continue
            methods = {method.key(): method for method in self.problem.methods(item.config)}
            only = next(iter(methods))
            log = self.store.trial_log(item.study)
            wanted = trials_to_confirm(log.complete(), budgets)
            if limits and not SEARCHES[item.config.kind].is_reference:
                paid = log.trials(TrialState.COMPLETE, TrialState.PRUNED)
                wanted = [*wanted, *checkpoints_to_confirm(paid, budgets, limits)]
            for trial in wanted:
                text, key = trial.user_attrs["schedule"], trial.user_attrs.get("method", only)
                _, schedules = todo.setdefault(key, (methods[key], {}))
                if text not in schedules:
                    schedules[text] = policies[item.study](text)
        self._add_imported(todo, budgets)
        total, done = sum(len(schedules) for _, schedules in todo.values()), 0
        with self.progress.track("held-out") as advance:
            for key, (method, schedules) in todo.items():
                for schedule, outcome in zip(
                    schedules, self.evaluator.outcomes(list(schedules.values()), "held_out", method), strict=True
                ):
                    if not isinstance(outcome, Evaluation):
                        self.progress.say(f"held-out: {schedule} with {key} could not be measured: {_why(outcome)}")
                    else:
                        self.store.link(self.study.experiment, "schedule", f"{key}|{schedule}", outcome)
                    done += 1
                    advance(done, total, schedule)

    def _add_imported(self, todo: dict[str, tuple[Method, dict[str, Policy]]], budgets: list[float]) -> None:
        """What imported studies would have chosen, where a trial's evaluation shows that we would measure the same."""
        stored = self.store.experiment(self.study.experiment)
        studies = stored.facts["studies"] if stored else {}
        names = [name for name, facts in studies.items() if facts["kind"] == IMPORTED]
        own = [method for entry in self.study.searches.values() for method in self.problem.methods(entry)]
        methods = {method.key(): method for method in (self.problem.default_method, *own)}
        for name in names:
            trials = [trial for trial in self.store.trial_log(name).complete() if is_measured(trial)]
            chosen = {t.number: t for t in (*(choose(trials, b) for b in budgets), *front(trials)) if t is not None}
            unknown = 0
            for trial in chosen.values():
                found = self._measured_as(trial, methods)
                unknown += found is None
                if found is not None:
                    key, schedule = found
                    (evaluation,) = self.evaluator.evaluate([schedule], "search", methods[key])
                    self.store.link(self.study.experiment, "schedule", f"{key}|{schedule.text()}", evaluation)
                    todo.setdefault(key, (methods[key], {}))[1].setdefault(schedule.text(), schedule)
            if unknown:
                self.progress.say(
                    f"{name}: {unknown} of {len(chosen)} choices are not measured on held_out: their trials do not say "
                    "a schedule and an evaluation of this experiment (vispco.objective notes both)"
                )

    def _measured_as(self, trial: FrozenTrial, methods: Mapping[str, Method]) -> tuple[str, Schedule] | None:
        """Key of the method with which the evaluator would measure what an imported trial did, and its schedule."""
        text, evaluation = trial.user_attrs.get("schedule"), trial.user_attrs.get("evaluation")
        if not isinstance(text, str):
            return None
        for key, method in methods.items():
            with suppress(ScheduleError):
                schedule = parse_schedule(text)
                if self.evaluator.ids([schedule], "search", method) == [evaluation]:
                    return key, schedule
        return None


def _why(outcome: Outcome) -> str:
    return outcome.error if isinstance(outcome, Failed) else "it was stopped"
