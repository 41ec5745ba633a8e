"""Numbers that are no means over samples: their rules, each sample's part, and the intervals drawn from them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import SMALL
from test_copying import measured
from vispco.analysis.bootstrap import group_bootstrap, group_bootstraps, interval
from vispco.analysis.comparison import Comparison, compare
from vispco.analysis.headline import answer
from vispco.analysis.parts import Parts
from vispco.analysis.seeds import against
from vispco.analysis.sensitivity import sensitivity
from vispco.config import parse_study
from vispco.experiment.run import Run
from vispco.problem import Problem
from vispco.storage.store import Store
from vispco.tasks.aggregation import RULES, aggregate, parts
from vispco.tasks.mosaic_vqa import MosaicVQA
from vispco.tasks.scorers.yes_no import mme_points


def slow(rule: str, scores: Any, groups: list[str]) -> float:
    """The number as the benchmark defines it, one group after the other."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score, group in zip(scores, groups, strict=True):
        found["" if rule == "all-right" else group.split("/", 1)[0]][group].append(score)
    if rule == "pairs":
        return float(np.mean([mme_points(list(pairs.values())) / 200 for pairs in found.values()]))
    if rule == "kinds":
        return float(np.mean([np.mean([np.mean(group) for group in kind.values()]) for kind in found.values()]))
    return float(np.mean([min(group) for group in found[""].values()]))


SAMPLES = st.lists(
    st.tuples(st.sampled_from(["a/1", "a/2", "a/3", "b/1", "b/4"]), st.sampled_from([0.0, 1.0])), min_size=1
)


@pytest.mark.parametrize("rule", RULES)
@given(samples=SAMPLES)
def test_numbers_are_the_benchmarks_and_parts_have_them_as_their_mean(
    rule: str, samples: list[tuple[str, float]]
) -> None:
    groups, scores = [group for group, _ in samples], np.array([score for _, score in samples])
    number = aggregate(rule, scores, groups)
    assert number == pytest.approx(slow(rule, scores, groups))
    each = parts(rule, scores, groups)
    assert each.mean() == pytest.approx(number)
    for group in set(groups):
        assert len(set(each[np.array(groups) == group])) == 1, "a group is drawn as a whole"


def test_a_mean_is_its_own_part() -> None:
    scores = np.array([0.5, 1.0])
    assert parts("mean", scores, ["a", "b"]) is scores
    assert aggregate("mean", scores, ["a", "b"]) == 0.75


@pytest.mark.parametrize("rule", RULES)
def test_draws_of_parts_spread_as_the_number_does(rule: str) -> None:
    """Against resampling the groups and computing the number anew each time."""
    rng = np.random.default_rng(0)
    sizes = {"all-right": [2, 3, 4], "kinds": [1], "pairs": [2]}[rule]
    kinds = {"all-right": [200], "kinds": [60, 150], "pairs": [60, 150]}[rule]
    names = [(f"{kind}/{i}", int(rng.choice(sizes))) for kind, count in enumerate(kinds) for i in range(count)]
    groups = [name for name, size in names for _ in range(size)]
    # Kinds count alike whatever their size, which shows where they differ.
    right = np.where([rule == "kinds" and name.startswith("1/") for name in groups], 0.5, 0.85)
    scores = (rng.random(len(groups)) < right).astype(float)
    members = {name: [i for i, group in enumerate(groups) if group == name] for name, _ in names}
    anew = []
    for _ in range(600):
        drawn = [name for kind, count in enumerate(kinds) for name in rng.choice(_of(names, kind), count)]
        rows = [i for name in drawn for i in members[name]]
        labels = [f"{name}#{n}" for n, name in enumerate(drawn) for _ in members[name]]
        anew.append(slow(rule, scores[rows], labels))
    draws = group_bootstrap({"t": parts(rule, scores, groups)}, {"t": groups}, resamples=4000)
    assert draws.mean() == pytest.approx(aggregate(rule, scores, groups), abs=0.004)
    assert draws.std() == pytest.approx(np.std(anew), rel=0.1)
    plain = group_bootstrap({"t": scores}, {"t": groups}, resamples=4000)
    assert abs(plain.mean() - draws.mean()) > 2 * draws.std(), "the mean of the scores is another number"


def _of(names: list[tuple[str, int]], kind: int) -> list[str]:
    return [name for name, _ in names if name.startswith(f"{kind}/")]


# --- what is not known is not told -----------------------------------------------------------------------


def test_one_group_alone_has_no_interval() -> None:
    scores, groups = {"a": np.array([1.0, 0.0, 1.0])}, {"a": ["same"] * 3}
    assert interval(group_bootstrap(scores, groups, resamples=20)) is None
    assert np.isnan(group_bootstraps([scores, scores], groups, resamples=20)).all()


@settings(max_examples=20)
@given(st.integers(0, 3))
def test_a_number_that_follows_no_known_rule_is_not_drawn(wrong: int) -> None:
    given_ = [measured(f"e{n}", "held_out", 0.5 + n / 10, 0.5) for n in range(4)]
    names = {"x": [f"g{n // 2}" for n in range(40)]}
    assert Parts(names, {}, given_).groups == names
    other = given_[wrong]
    lower = type(other)(**{**vars(other), "tasks": {"x": {"accuracy": other.accuracy - 0.1, "flops_ratio": 0.5}}})
    for found in (
        Parts(names, {}, [e if e is not other else lower for e in given_]),  # as experiments of before there were rules
        Parts(names, {"x": None}, given_),
    ):
        assert set(found.groups["x"]) == {"all"}
        assert found.of(lower)["x"].tolist() == [lower.tasks["x"]["accuracy"]] * 40
        assert interval(group_bootstrap(found.of(lower), found.groups, resamples=10)) is None


# --- a whole experiment ----------------------------------------------------------------------------------


class AllRight(MosaicVQA):
    """All three questions about a picture, or whatever a group is, must be right."""

    aggregation: ClassVar[str] = "all-right"  # type: ignore[assignment]


class Own(MosaicVQA):
    def aggregate(self, scores: Any, groups: Any) -> float:
        return float(np.mean(scores) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rules"), [(AllRight, {"mosaic-vqa": "all-right"}), (Own, {"mosaic-vqa": None})])
def test_intervals_are_about_the_number_itself(
    problem: Problem, tmp_path: Path, kind: type[MosaicVQA], rules: dict[str, Any], cli: Any
) -> None:
    text = SMALL.replace("held_out: 12", "held_out: 60").partition("  lagrangian:")[0] + "  again: {kind: grid}\n"
    study = parse_study(text)
    task = kind(problem.tasks[0].sizes | {"held_out": 60})
    own = Problem(study, text, tasks=[task], model=problem.model, processor=problem.processor)
    store = Store(f"sqlite:///{tmp_path}/a.db")
    Run(own, store).run()
    comparison = Comparison(store, study.experiment)
    assert comparison.facts["aggregations"] == rules
    unpruned = comparison.reference("unpruned", "held_out")
    assert unpruned is not None
    found = comparison.interval_of(unpruned)
    table = compare(store, [study.experiment])
    intervals = [point["accuracy_ci"] for search in table["searches"] for point in search["front"]]
    told = answer(comparison)
    # What has no interval is shown without one.
    url = ["--storage", f"sqlite:///{tmp_path}/a.db"]
    for words in (
        ["compare", "small"],
        ["compare", "small", "--against", "grid"],
        ["layers", "small"],
        ["report", "small", "-o", str(tmp_path / "report.html")],
        *(["plot", "small", "--what", what, "-o", str(tmp_path / f"{what}.svg")] for what in ("front", "choices")),
    ):
        code, _, error = cli(*words, *url)
        assert code == 0, error
    if kind is Own:
        assert found is None
        assert set(map(str, intervals)) == {"None"}
        assert all(row["accuracy_ci"] is None for row in told["entries"])
        assert all(ci is None for shown in sensitivity(comparison) for ci in shown["lost_ci"])
        assert {row["verdict"] for row in against(comparison, "grid")["entries"]} == {"reference", "too few samples"}
    else:
        assert found is not None
        assert unpruned.accuracy < unpruned.scores["mosaic-vqa"].mean() - 0.01
        assert found[0] <= unpruned.accuracy <= found[1]
        for search in table["searches"]:
            for point in search["front"]:
                assert point["accuracy_ci"][0] <= point["accuracy_held_out"] <= point["accuracy_ci"][1]
