"""Optuna's multi-objective samplers: TPE, NSGA-II and Gaussian processes.

Each batch is asked of a fresh sampler, seeded by (seed, trials so far), over a copy in memory of those trials: stored
state of a sampler is not needed to resume.
"""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.samplers.nsgaii import BaseMutation
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field

from vispco.search.base import SEARCHES, Options
from vispco.search.sampling import METHOD, SamplingOptions, SamplingSearch, new_study

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REDRAWS = 20


class OptunaSearch(SamplingSearch):
    """``redraws``: how often a proposal is drawn again that repeats a schedule, which would cost and teach nothing."""

    redraws: ClassVar[int] = 0

    @abstractmethod
    def sampler(self, seed: int) -> BaseSampler:
        """A fresh sampler; warnings about experimental parts of it are silenced."""

    def history(self, start: int) -> list[FrozenTrial]:
        """Trials of the proposals before ``start``, in their order."""
        settled = self.settled()
        return [settled[number] for number in range(start)]

    def propose(self, start: int, count: int) -> list[dict[str, Any]]:
        history = self.history(start)
        known = {(trial.user_attrs["schedule"], trial.user_attrs.get(METHOD)) for trial in history}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = self.sampler((self.context.seed * 1_000_003 + start) % 2**32)
            study = new_study(sampler, history, 1 + len(self.context.cost.further))
            drawn = []
            for _ in range(count):
                for _ in range(1 + self.redraws):
                    parameters = dict(study.ask(self.distributions).params)
                    one = self.schedule_of(parameters).text(), parameters.get(METHOD)
                    if one not in known:
                        break
                known.add(one)
                drawn.append(parameters)
        return drawn


@SEARCHES.register("tpe")
class TPESearch(OptunaSearch):
    """Optuna's multi-objective TPE, multivariate."""

    kind: ClassVar[str] = "tpe"

    def sampler(self, seed: int) -> BaseSampler:
        return TPESampler(multivariate=True, seed=seed)


@SEARCHES.register("gp")
class GPSearch(OptunaSearch):
    """Optuna's Gaussian processes with expected hypervolume improvement; the time per proposal grows with trials cubed.

    The first ten proposals are random. Kernel parameters are fitted anew for every batch.
    """

    kind: ClassVar[str] = "gp"

    def sampler(self, seed: int) -> BaseSampler:
        # It says that it would be faster with greenlet: by a quarter, of less than a second per proposal.
        logging.getLogger("optuna._gp.batched_lbfgsb").setLevel(logging.ERROR)
        return GPSampler(seed=seed, warn_independent_sampling=False)


class NSGA2Options(SamplingOptions):
    """``population``: schedules in a generation; the first generation is random."""

    population: int = Field(20, ge=2)


@SEARCHES.register("nsga2")
class NSGA2Search(OptunaSearch):
    """NSGA-II, Optuna's: generations of schedules, children of the best so far by uniform crossover and mutation.

    Each trial notes its ``generation``, from which the population is read when the search goes on.
    """

    kind: ClassVar[str] = "nsga2"
    Options: ClassVar[type[Options]] = NSGA2Options
    redraws: ClassVar[int] = REDRAWS

    def sampler(self, seed: int) -> BaseSampler:
        return Generations(population_size=self.options.population, mutation=Redraw(), seed=seed)

    def notes(self, start: int) -> Mapping[str, Any]:
        return {"generation": next_generation(self.history(start), self.options.population)}


class Generations(NSGAIISampler):
    """NSGA-II that reads generations from the user attributes of trials.

    Optuna keeps them in system attributes that only its own live trials have: over trials that were added to a study,
    its sampler would stay in generation 0, which is random search.
    """

    def get_trial_generation(self, study: optuna.Study, trial: FrozenTrial) -> int:
        assert self.population_size is not None
        return next_generation(study.get_trials(deepcopy=False), self.population_size)

    def get_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [trial for trial in trials if trial.user_attrs["generation"] == generation]


def next_generation(trials: Sequence[FrozenTrial], population: int) -> int:
    """Generation of the next proposal: the newest one until it has ``population`` COMPLETE trials.

    Trials that failed belong to no population, so that a generation is always full.
    """
    sizes = Counter(t.user_attrs["generation"] for t in trials if t.state == TrialState.COMPLETE)
    newest = max(sizes, default=0)
    return newest + (sizes[newest] >= population)


class Redraw(BaseMutation):
    """A new uniform value, as Optuna's default mutation, but from the random numbers that also decide on crossover.

    Optuna draws the two from generators of equal seed. Of a fresh sampler the same number would decide both, and large
    values would be mutated to only where there is no crossover.
    """

    def mutation(
        self, param: float, rng: np.random.RandomState, study: optuna.Study, search_space_bounds: NDArray[np.float64]
    ) -> float:
        low, high = search_space_bounds
        return float(rng.uniform(low, high))
