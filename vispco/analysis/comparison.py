"""Compare the searches of an experiment, from the database alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vispco.analysis.bootstrap import group_bootstraps, interval
from vispco.analysis.comparison_rows import comparison_object, point_rows
from vispco.analysis.indicators import hypervolume
from vispco.analysis.parts import Parts
from vispco.analysis.results import ExperimentResults
from vispco.analysis.study_result import StudyResult
from vispco.evaluation.records import Evaluation
from vispco.storage.reading import TrialRecord
from vispco.storage.store import Store

if TYPE_CHECKING:
    from vispco.analysis.pricing import Pricing


class Comparison(ExperimentResults):
    """An experiment's searches in numbers, with their intervals, from what was measured of it.

    The second value of a trial is its ``cost`` as a share of the unpruned model's, in which budgets are; of ``flops``
    that is flops_ratio.
    """

    def __init__(self, store: Store, experiment: str) -> None:
        super().__init__(store, experiment)
        self._draws: dict[str, NDArray[np.float64]] = {}
        held_out = self.reference("unpruned", "held_out")
        groups = store.groups_of(held_out.id) if held_out else {}
        self.parts = self.parts_of(groups, [e for e in self._evaluations.values() if e.split == "held_out"])

    def parts_of(self, groups: Mapping[str, Sequence[str]], known: Iterable[Evaluation]) -> Parts:
        """Scores of a split, by its groups and the experiment's rules, as bootstraps draw them."""
        return Parts(groups, self.facts.get("aggregations", {}), known)

    @cached_property
    def pricing(self) -> Pricing:
        from vispco.analysis.pricing import Pricing

        return Pricing(self)

    def reference_point(self) -> tuple[float, float]:
        """(no-image accuracy on the search split, flops_ratio 1)."""
        no_image = self.reference("no_image", "search")
        return (no_image.accuracy if no_image else 0.0, 1.0)

    def hypervolume(self, search: StudyResult) -> float:
        """Hypervolume of the front at search accuracy, up to the experiment's own reference point."""
        return hypervolume(
            [(trial.accuracy, trial.cost) for trial in self.front(search)], reference=self.reference_point()
        )

    def held_out_hypervolume(self, search: StudyResult) -> tuple[float | None, list[float] | None]:
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

    def default_share(self, name: str) -> float | None:
        """Cost of a published default on the search split, as a share; None where it has no price."""
        if self.unpruned_cost is not None:
            price = self.pricing.of_published(self.cost, name)
            return None if price is None else price.absolute / self.unpruned_cost
        return (self.default_on_search(name) or self.defaults()[name]).flops_ratio

    def kept(self, search: StudyResult, trial: TrialRecord) -> list[float] | None:
        """:meth:`keep_ratio` as shares of the whole picture's visual tokens, of which a smaller picture has fewer."""
        ratios = self.keep_ratio(search, trial)
        share = self.pricing.picture(str(trial.user_attrs.get("schedule"))) if ratios else 1.0
        return ratios and [share * ratio for ratio in ratios]

    # --- intervals ---------------------------------------------------------------------------------

    def _drawn(self, evaluation: Evaluation) -> NDArray[np.float64]:
        """Bootstrap distribution of an evaluation's accuracy; mean and difference are linear in it."""
        if evaluation.id not in self._draws:
            wanted = {e.id: e for e in self._evaluations.values() if e.split == "held_out" and e.id not in self._draws}
            wanted[evaluation.id] = evaluation
            drawn = group_bootstraps([self.parts.of(e) for e in wanted.values()], self.parts.groups)
            self._draws.update(zip(wanted, drawn, strict=True))
        return self._draws[evaluation.id]

    def budget_score(self, search: StudyResult) -> tuple[float | None, list[float] | None]:
        """Mean over budgets of the chosen schedules' held-out accuracy; None while one is not measured there."""
        delivered = self.delivered(search)
        if delivered is None:
            return None, None
        score = float(np.mean([evaluation.accuracy for evaluation in delivered]))
        return score, interval(np.mean([self._drawn(evaluation) for evaluation in delivered], axis=0))

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

    # --- plain data --------------------------------------------------------------------------------

    def points(self) -> list[dict[str, Any]]:
        """Every measured schedule of every search, on the search split; ``schedule`` is None if it is not known."""
        return point_rows(self)

    def to_dict(self, reference_point: tuple[float, float] | None = None) -> dict[str, Any]:
        """The object that ``compare --json`` prints; ``reference_point``: default, the experiment's own."""
        return comparison_object(self, reference_point or self.reference_point())


def together(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The record of one experiment, or those of several under ``experiments``."""
    return records[0] if len(records) == 1 else {"experiments": list(records)}


def compare(store: Store, experiments: Sequence[str]) -> dict[str, Any]:
    """:func:`side_by_side` of experiments by their names.

    Raises:
        StorageError: no such experiment, or one without results.
    """
    return side_by_side([Comparison(store, name) for name in experiments])


def side_by_side(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """One experiment's object, or several under ``experiments`` that share the lowest reference point."""
    if len(comparisons) == 1:
        return comparisons[0].to_dict()
    shared = min(comparison.reference_point() for comparison in comparisons)
    return {
        "reference_point": {"accuracy": shared[0], "flops_ratio": shared[1]},
        "experiments": [comparison.to_dict(shared) for comparison in comparisons],
    }
