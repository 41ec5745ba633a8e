"""Input-conditioned policies: what a trained predictor says to each prompt, and how they are kept and found again."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vispco.costs import prefill_flops, unpruned_flops
from vispco.errors import ScheduleError
from vispco.pruning.families.base import bisected
from vispco.pruning.forward.tokens import Prompt
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import Counts, Policy, parse_schedule
from vispco.search.gradient.predictor import prompt_features, shifted_counts

if TYPE_CHECKING:
    from vispco.evaluation.evaluator import Evaluator
    from vispco.search.gradient.descent import Descent
    from vispco.search.study_cost import StudyCost
    from vispco.storage.store import Store

KEY = "predictor"
REACH = 16.0


@dataclass(frozen=True, eq=False)
class PredictedPolicy:
    """Keep ratios that a predictor gives to every prompt, all moved by ``shift`` in log-odds."""

    study: str
    budget: float
    ratios: Callable[[Tensor], Tensor] = field(repr=False)
    shift: float = 0.0

    @staticmethod
    def of(descent: Descent, study: str, budget: float) -> PredictedPolicy:
        """Of a trained predictor, at one of its budgets."""
        number = int((descent.budgets - budget).abs().argmin())

        def ratios(features: Tensor) -> Tensor:
            with torch.no_grad():
                return descent.family.relaxed(descent.free(features), descent.sharpness)[:, number]

        return PredictedPolicy(study, budget, ratios)

    def counts(self, n_visual: Counts, layers: int, context: Prompt | None = None) -> Counts:
        """Visual tokens entering each layer, [B, L].

        Raises:
            ScheduleError: there are no prompts to read.
        """
        if context is None:
            raise ScheduleError(f"{self} reads prompts, and only their lengths are known here")
        return shifted_counts(self.ratios(prompt_features(context)), self.shift, n_visual)

    def text(self) -> str:
        return f"predicted(study={self.study!r}, budget={self.budget!r}, shift={self.shift!r})"

    def __repr__(self) -> str:
        return self.text()


def snapped_policy(
    policy: PredictedPolicy, evaluator: Evaluator, method: Method, budget: float, study_cost: StudyCost | None = None
) -> PredictedPolicy:
    """``policy`` moved so that its mean cost on the search split is as large as fits, also within the limits."""
    parts, shape = evaluator.prepared("search"), evaluator.problem.shape
    ratios = []
    for part in parts:
        rows = torch.zeros(len(part.samples), shape.layers, dtype=torch.float64)
        for batch in part.batches:
            with torch.inference_mode():
                prompt = batch.prompt(evaluator.problem.adapter)
            rows[batch.rows] = policy.ratios(prompt_features(prompt).clone()).double()
        ratios.append(rows)

    def cost(shift: float) -> float:
        means = []
        if study_cost is not None and (not study_cost.in_flops or study_cost.bounds):
            given = [shifted_counts(rows, shift, part.n_visual) for part, rows in zip(parts, ratios, strict=True)]
            if study_cost.excess_of_counts(given, method) > 0:
                return np.inf
            if not study_cost.in_flops:
                return study_cost.ratio_of_counts(given, method)
        for part, rows in zip(parts, ratios, strict=True):
            counts = shifted_counts(rows, shift, part.n_visual)
            pruned = prefill_flops(shape, counts, part.n_visual, part.n_text, method)
            means.append(float(np.mean(pruned / unpruned_flops(shape, part.n_visual, part.n_text))))
        return float(np.mean(means))

    return replace(policy, shift=bisected(lambda shift: cost(shift) <= budget, -REACH, REACH))


def save_predictor(store: Store, study: str, text: str) -> None:
    """Keep the state of a study's predictor."""
    store.save_steps(study, KEY, [{"state": text}])


def saved_predictor(store: Store, study: str) -> str | None:
    found = store.trajectory(study).get(KEY)
    return str(found[0]["state"]) if found else None


def budgets_of(kept: str) -> int:
    """For how many budgets a saved predictor was trained."""
    return len(json.loads(kept)["level"])


def says_budgets(kept: str) -> bool:
    """Whether trials of a saved predictor say for how many budgets it was trained."""
    return bool(json.loads(kept).get("says_budgets", False))


def is_predicted(text: str) -> bool:
    return text.startswith("predicted(")


def parse_policy(text: str, load: Callable[[str, float], PredictedPolicy]) -> Policy:
    """A schedule or predicted policy from its text; ``load`` finds the predictor of a study at a budget.

    Raises:
        ScheduleError: the text is neither.
    """
    if not is_predicted(text):
        return parse_schedule(text)
    try:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        named: dict[str, Any] = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        study, budget, shift = str(named["study"]), float(named["budget"]), float(named["shift"])
    except (SyntaxError, ValueError, AssertionError, KeyError):
        raise ScheduleError(f"cannot read policy {re.sub(chr(10), ' ', text)[:120]!r}") from None
    return replace(load(study, budget), shift=shift)
