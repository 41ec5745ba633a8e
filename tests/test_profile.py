"""Measuring a profile: staircases are found, noise is not, predictions are made of parts; commands and their errors.

No timing is asserted: what is measured here is a clock that the tests wind."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import vispco
from conftest import Cli
from vispco.analysis.comparison import Comparison
from vispco.analysis.decision import Question, decide
from vispco.analysis.pricing import Pricing
from vispco.analysis.repriced import Repriced
from vispco.costs import read_profile
from vispco.costs.base import Setting, make_cost
from vispco.costs.checking import Check, _prompts, other_machine, summary
from vispco.costs.described import described
from vispco.costs.edges import search_edges, token_grid
from vispco.costs.measuring import Effort, curve_of, device_name, measure_profile, random_schedule
from vispco.costs.profile import Curve, Scoring, busy
from vispco.costs.prompter import SIZE, Prompted, Prompter
from vispco.costs.rounds import Turns, in_turn
from vispco.costs.scoring import Draw, explain
from vispco.costs.stamps import stamped
from vispco.errors import ConfigError
from vispco.fronts import front
from vispco.models.families import adapter_for
from vispco.pruning.methods.base import make_method
from vispco.storage.store import Store
from vispco.testing.costs import SHAPE, planted_profile
from vispco.testing.tiny import TINY


def test_edges_are_found_where_they_are() -> None:
    """A clock that steps at 300 and 700 tokens, asked at the grid and then wherever it jumps."""
    clock = lambda tokens: 1.0 + tokens / 1e4 + (tokens > 300) * 0.5 + (tokens > 700) * 0.8  # noqa: E731
    times = {n: clock(n) for n in token_grid(1024)}
    search_edges(times, lambda asked: {n: clock(n) for n in asked})
    tokens = sorted(times)
    curve = curve_of(tokens, [[times[n]] for n in tokens])
    assert curve.monotone
    assert curve.edges() == [300, 700]
    assert curve(np.array([300, 301])).tolist() == [clock(300), clock(301)]


class Clock:
    """Time over tokens, and how many numbers of tokens it was asked for."""

    def __init__(self, ms: Callable[[int], float]) -> None:
        self.ms, self.asked = ms, 0

    def __call__(self, tokens: Sequence[int]) -> dict[int, float]:
        self.asked += len(tokens)
        return {n: self.ms(n) for n in tokens}


def edges_by(clock: Clock, most: int = 1024, **more: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """The edges that are found, and the jumps that are left; ``asked`` then counts what came after the grid."""
    times = clock(token_grid(most))
    clock.asked = 0
    left = search_edges(times, clock, **more)
    tokens = sorted(times)
    return curve_of(tokens, [[times[n]] for n in tokens]).edges(), left


@pytest.mark.parametrize("square", [0.0, 5e-6, 2e-5])
def test_growth_without_steps_is_not_searched(square: float) -> None:
    """Where time grows with the tokens, a gap's ends differ by much more than an edge does."""
    clock = Clock(lambda n: 0.2 + 0.05 * n + square * n * n)
    assert edges_by(clock, 4096) == ([], [])
    assert clock.asked == 0


def test_steps_on_a_slope_are_found_with_few_measurements() -> None:
    """Beside growth in proportion, and where neighbouring gaps have edges too."""
    edges = [200, 300, 450, 600, 700]
    clock = Clock(lambda n: 3.0 + 0.005 * n + sum(3.0 * (n > edge) for edge in edges))
    assert edges_by(clock) == (edges, [])
    assert clock.asked <= 5 * 9  # at most 7 halvings of 128, and both ends once


def test_noise_is_not_searched() -> None:
    """Rises of 30 % where repetitions differ by as much; the same rises without noise are edges."""
    clock = Clock(lambda n: 1.0 + 0.3 * (n > 300))
    assert edges_by(clock, noise=dict.fromkeys(range(1025), 0.2)) == ([], [])
    assert clock.asked == 0
    assert edges_by(clock, noise=dict.fromkeys(range(1025), 0.05)) == ([300], [])


def test_a_slow_moment_is_no_edge() -> None:
    """What was slow once, and is not when it is measured again."""
    clock = Clock(lambda n: 1.0)
    times = clock(token_grid(1024))
    times[640] = 1.5
    clock.asked = 0
    assert search_edges(times, clock) == []
    assert clock.asked <= 6
    assert set(times.values()) == {1.0}


def test_what_the_limit_of_time_leaves_is_told() -> None:
    """After the first edge no time is left; nothing is measured once it is over."""
    clock = Clock(lambda n: 1.0 + 0.8 * (n > 300) + 0.5 * (n > 700))
    assert edges_by(clock, ended=lambda: clock.asked > 8) == ([300], [(640, 768)])
    clock.asked = 0
    found, left = edges_by(Clock(clock.ms), ended=lambda: True)
    assert (found, sorted(left)) == ([], [(257, 384), (640, 768)])


def test_rounds_end_when_time_is_over() -> None:
    """Each probe is timed once after its warm-up, whatever the limit."""
    turns = in_turn({"a": lambda: 1.0, "b": lambda: 2.0}, lambda: 1.0, 9, random.Random(0), seconds=0.0)
    assert {key: len(times) for key, times in turns.times.items()} == {"a": 1, "b": 1}


def test_how_much_longer_it_takes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of 12 s, every half a minute; none where nothing is left; within a limit of time."""
    now, said = 0.0, list[str]()

    def probe() -> float:
        nonlocal now
        now += 12.0
        return 1.0 + now % 5  # never settled

    monkeypatch.setattr("vispco.costs.rounds.time", SimpleNamespace(monotonic=lambda: now))
    in_turn({"a": probe}, lambda: 1.0, 9, random.Random(0), say=said.append)
    told = ["round 3 of 10, 1 of 1: at most 84 s more", "round 6 of 10, 1 of 1: at most 48 s more"]
    assert said == [*told, "round 9 of 10, 1 of 1: at most 12 s more"]
    said.clear()
    in_turn({"a": probe}, lambda: 1.0, 9, random.Random(0), seconds=50.0, say=said.append)
    assert said == ["round 3 of 10, 1 of 1: at most 14 s more"]


def test_a_busy_machine_is_told() -> None:
    """From how far repetitions differ; a profile that has none says nothing."""
    planted = planted_profile().at(1)
    assert busy(planted.noise()) == busy(None) == ""
    curve = planted.layers["full"]

    def noisy(share: float) -> float:
        layers = {"full": curve.model_copy(update={"spread": [share * ms for ms in curve.ms]})}
        return planted.model_copy(update={"layers": layers}).noise()

    assert noisy(0.25) == pytest.approx(0.25)
    assert busy(noisy(0.02)) == ""
    assert "repetitions differ by 25 %" in busy(noisy(0.25))


def test_both_sides_of_likely_edges_are_measured() -> None:
    grid = token_grid(1024)
    assert grid[0] == 1
    assert grid[-1] == 1024
    assert {64, 65, 128, 129, 256, 257, 512, 513} <= set(grid)
    assert token_grid(100)[-1] == 100


def test_falls_within_the_noise_are_levelled_and_others_kept() -> None:
    rng = np.random.default_rng(0)
    noisy = [[1.0 + 0.05 * rng.normal() for _ in range(15)] for _ in range(6)]
    assert curve_of([1, 2, 3, 4, 5, 6], noisy).monotone
    falling = curve_of([1, 2, 3], [[3.0] * 9, [1.0] * 9, [2.0] * 9])
    assert not falling.monotone
    assert falling.ms == [3.0, 1.0, 2.0]


def test_a_change_of_the_machines_speed_changes_nothing() -> None:
    """Work of 2, 5 and 9 ms on a machine that is three times slower in the middle, and for one moment a hundred times;
    each probe and the reference read the same speed."""
    asked = 0

    def speed() -> float:
        return 100.0 if asked == 61 else 3.0 if 40 < asked < 160 else 1.0

    def work(ms: float) -> Callable[[], Any]:
        def call() -> Any:
            nonlocal asked
            asked += 1
            return ms * speed()

        return call

    turns = in_turn({ms: work(ms) for ms in (2.0, 5.0, 9.0)}, work(1.0), 15, random.Random(0))
    for ms, times in turns.times.items():
        assert np.median(times) / turns.reference == pytest.approx(ms)
        assert 5 <= len(times) <= 15


def test_repetitions_end_once_the_median_is_known() -> None:
    rng = np.random.default_rng(0)
    probes = {"steady": lambda: 1.0, "noisy": lambda: 1.0 + rng.exponential()}
    times = in_turn(probes, lambda: 1.0, 12, random.Random(0)).times
    assert (len(times["steady"]), len(times["noisy"])) == (5, 12)


def test_what_scoring_takes_is_told_from_whole_prefills() -> None:
    """Planted: 0.3 ms once, 0.02 for each token first kept, 0.5 for each choice and 0.01 for each token before it."""
    rng, layers = random.Random(1), 8
    prompts = [Prompted({}, visual, text) for visual, text in ((64, 5), (64, 30), (128, 9))]
    drawn = [Draw(random_schedule(rng, layers), rng.choice(prompts)) for _ in range(24)]
    planted = Scoring(boundary=Curve(tokens=[1, 300], ms=[0.51, 3.5]), start=0.3, pick=0.02)
    none = Scoring(boundary=Curve(tokens=[1, 300], ms=[0.0, 0.0]))
    shape = replace(SHAPE, layers=layers)

    def of(scoring: Scoring, some: Sequence[Draw]) -> Any:
        made = planted_profile(shape, ())
        times = made.batches[1].model_copy(update={"methods": {"fastv": scoring}})
        times = times.model_copy(update={"layers": {"full": Curve(tokens=[1, 300], ms=[1.0, 9.0])}})
        times = times.model_copy(update={"rest": none.boundary, "tower": none.boundary})
        setting = Setting(shape, method=make_method("fastv"), profile=made.model_copy(update={"batches": {1: times}}))
        counts = np.concatenate([draw.counts(layers) for draw in some])
        visual, text = (np.array([getattr(draw.prompted, what) for draw in some]) for what in ("visual", "text"))
        return make_cost("prefill_ms").of(setting, counts, visual, text)

    whole = of(planted, drawn)
    found = explain(drawn, whole - of(none, drawn), whole, layers, 300)
    unseen = [Draw(random_schedule(rng, layers), rng.choice(prompts)) for _ in range(30)]
    np.testing.assert_allclose(of(found, unseen), of(planted, unseen), rtol=1e-6)
    assert found.pick + 64 * found.pair == pytest.approx(0.02, abs=1e-4)


def hooks_of(layers: Sequence[torch.nn.Module]) -> list[list[object]]:
    """The library's own among them: it leaves some on a model that was ever asked for its hidden states."""
    return [[*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()] for layer in layers]


def test_stamps_are_gone_afterwards_and_add_up() -> None:
    tiny = TINY["llava"]
    model, batch = tiny.model(), tiny.batch([(3, 1, 4)])
    layers = list(adapter_for(model).layers())
    before = hooks_of(layers)
    with torch.no_grad(), stamped(layers, False) as run:
        stamps = run(lambda: model(**batch))
        again = run(lambda: model(**batch))
    assert len(stamps.layers) == len(layers) == len(again.layers)
    assert len(stamps.gaps) == len(layers) - 1
    assert stamps.total == pytest.approx(stamps.layers.sum() + stamps.gaps.sum() + stamps.outside)
    assert hooks_of(layers) == before


def test_summary_by_hand() -> None:
    times = ((1.0, 1.0, 1.0, (1.1, 0.9)), (2.2, 2.0, 4.0, (2.1, 4.0)), (3.0, 4.0, 9.0, (4.2, 3.9)))
    rows = [Check("a", "prefill_ms", 1, 1, p, m, f, halves=halves) for p, m, f, halves in times]
    found = summary(rows)
    assert found["median_error"] == pytest.approx(0.1)
    assert found["worst_error"] == pytest.approx(0.25)
    assert found["rank_correlation"] == pytest.approx(1.0)
    assert found["rank_repeated"] == pytest.approx(0.5)
    assert found["ratio_error"] < found["ratio_error_of_flops"]


def test_random_schedules_fit_the_decoder() -> None:
    rng = random.Random(0)
    for _ in range(50):
        ratios = random_schedule(rng, 4).keep_ratio(4)
        assert ratios[0] == 1.0
        assert min(ratios) < 1


def prompter_of(tokens: Callable[[int], int]) -> Prompter:
    """Of a processor that makes a picture of so many pixels a side into ``tokens`` visual tokens."""

    def make(pictures: int, words: Any, batch: int, size: int = SIZE) -> Prompted:
        text = 5 + (words if isinstance(words, int) else max(words))
        return Prompted({}, pictures * tokens(size), text, pictures=pictures, size=size)

    made = object.__new__(Prompter)
    made.make = make  # type: ignore[method-assign]
    return made


def test_a_tower_that_looks_at_whole_pictures_is_timed_on_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: time square in a picture's tokens, as in Qwen2-VL's tower. What is priced is one picture, and a
    straight line from four small ones is half of what it takes."""
    tower = lambda tokens: tokens + tokens**2 / 500  # noqa: E731

    def in_turn(probes: dict[Any, Any], *_: Any, **__: Any) -> Turns:
        def times(key: Any) -> Any:
            what, tokens = key[:2] if isinstance(key, tuple) else ("layers", key)
            if what in ("layers", "decode"):
                return np.ones((3, 2))
            return np.full(3, tower(tokens) if what == "tower" else 1e4)

        return Turns({key: times(key) for key in probes}, 1.0)

    monkeypatch.setattr("vispco.costs.measuring.in_turn", in_turn)
    monkeypatch.setattr("vispco.costs.measuring.Prompter", lambda *_: prompter_of(lambda size: (size // 28) ** 2))
    made = measure_profile(TINY["llava"].model(), None, "tiny", effort=Effort(max_tokens=4096))
    assert made.longest(1) == 4096
    for tokens in (150, 600, 2048, 4096):
        assert made.at(1).tower(np.array([tokens]))[0] == pytest.approx(tower(tokens), rel=0.06)
    assert made.held["model_type"] == "llava"


def test_pictures_of_one_size_are_timed_several_at_a_time() -> None:
    """And the largest that there is, where sizes differ up to a cap; the last has as many tokens as were asked for."""
    one_size = prompter_of(lambda size: 576)
    assert [one.pictures for one in one_size.pictured(4096, 1)] == [1, 2, 4, 8]
    assert [one.pictures for one in one_size.pictured(576, 1)] == [1]
    capped = prompter_of(lambda size: min(size // 28, 20) ** 2).pictured(1500, 1)
    assert [(one.pictures, one.visual) for one in capped[-3:]] == [(1, 400), (2, 800), (4, 1600)]
    assert max(one.visual for one in capped[:-3]) < 400
    steps = prompter_of(lambda size: 64 * max(1, size // 448) ** 2).pictured(500, 1)  # a tile at a time
    assert [(one.pictures, one.visual) for one in steps] == [(1, 64), (1, 256), (1, 576)]
    assert prompter_of(lambda size: 16).pictured(4096, 1)[-1].pictures == 16


def test_the_tower_is_timed_at_lower_resolutions() -> None:
    """Where small pictures have as many visual tokens as large ones; elsewhere their own sizes are timed."""
    tower = Prompter(*vispco.load_model("demo")).smaller(batch=2)
    shapes = [(one.visual, tuple(one.inputs["pixel_values"].shape)) for one in tower]
    assert shapes == [(n * n, (2, 3, 16 * n, 16 * n)) for n in (3, 4, 6, 7)]
    assert [one.visual for one in Prompter(*vispco.load_model("demo-qwen")).smaller(1)] == [4, 16, 36, 49]
    assert prompter_of(lambda size: (size // 28) ** 2).smaller(1) == []
    limited = prompter_of(lambda size: 280)

    def make(pictures: int, words: int, batch: int, size: int = SIZE, share: float = 1.0) -> Prompted:
        if share < 0.25:
            raise ConfigError("too few")
        return Prompted({}, round(280 * share), 1)

    limited.make = make  # type: ignore[method-assign,assignment]
    assert [one.visual for one in limited.smaller(1)] == [70, 140, 210]


def test_a_check_draws_sizes_of_pictures() -> None:
    """Up to what the profile has room for, and none that was measured; pictures of one size by their number."""
    prompter = prompter_of(lambda size: (size // 28) ** 2)
    measured = {one.size for one in prompter.pictured(2000, 1)}
    usual, *others = _prompts(prompter, 2000, 1, random.Random(0), ragged=False)
    assert usual.size == SIZE
    assert measured.isdisjoint(one.size for one in others)
    assert 1000 < max(one.length for one in others) <= 2000
    several = _prompts(prompter_of(lambda size: 64), 300, 2, random.Random(0), ragged=True)
    assert several[0].pictures == 1
    assert several[-1].pictures == 4
    assert all(one.length <= 300 for one in several)
    assert len(_prompts(prompter_of(lambda size: 64), 60, 1, random.Random(0), ragged=False)) == 3


def test_a_check_says_where_it_runs_on_another_machine() -> None:
    """Of the same kind, which is no reason to refuse; threads are of a processor."""
    model, profile = TINY["llava"].model(), planted_profile()
    name, threads = device_name(torch.device("cpu")), torch.get_num_threads()
    here = profile.model_copy(update={"device": "cpu", "device_name": name, "threads": threads})
    assert other_machine(model, here) == other_machine(model, profile) == ""
    for change, told in (
        ({"device_name": "Some CPU"}, "Some CPU, "),
        ({"threads": threads + 1}, f"{threads + 1} th"),
    ):
        said = other_machine(model, here.model_copy(update=change))
        assert told in said
        assert f"this is {name or 'a processor'}, {threads} threads" in said


def test_ranks_are_among_schedules_on_the_same_pictures() -> None:
    """A large picture takes longer than a small one whatever is pruned, which is no merit of a profile."""
    rows = [Check("a", "prefill_ms", n, 1, n + p, n + m, n) for n in (1, 100) for p, m in ((3, 1), (2, 2), (1, 3))]
    found = summary(rows)
    assert found["rank_correlation"] == pytest.approx(-1.0)
    assert found["ratio_error"] > 0


@pytest.mark.slow
def test_profile_command_and_check(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    small = ("--max-tokens", 100, "--repeats", 3)
    code, out, err = cli("profile", "demo", *small, "-o", file)
    assert code == 0, err
    assert out.strip() == str(file)
    made = read_profile(file)
    made.check_model("demo", described("demo").shape)
    assert set(made.batches) == {1}
    assert set(made.batches[1].methods) == {"fastv"}
    code, out, err = cli("profile", "demo", "--check", "--schedules", 3, "--repeats", 3, "-o", file, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert [row["cost"] for row in told] == ["prefill_ms", "latency_ms"]
    assert all(len(row["rows"]) == 3 and row["rows"][0]["predicted"] > 0 for row in told)
    assert cli("profile", "demo", "--check", "--method", "divprune", "-o", file)[2].startswith(
        "vispco: the profile of 'demo' has no times of method 'divprune'"
    )
    assert made.held["model_type"] == "llava"
    data = json.loads(file.read_text())
    data["held"]["quantization"] = "quanto weights=int8"
    (tmp_path / "held.json").write_text(json.dumps(data))
    assert "measured with quantization quanto weights=int8, and the model now has none" in " ".join(
        cli("profile", "demo", "--check", "-o", tmp_path / "held.json")[2].split()
    )
    for key, other in (("dtype", "bfloat16"), ("attention", "eager"), ("device", "cuda")):
        (tmp_path / "held.json").write_text(json.dumps({**json.loads(file.read_text()), key: other}))
        assert f"measured with {key} {other}" in cli("profile", "demo", "--check", "-o", tmp_path / "held.json")[2]
    assert "more than --max-tokens 20" in cli("profile", "demo", "--max-tokens", 20, "-o", tmp_path / "b.json")[2]
    other = tmp_path / "study.json"
    other.write_text("{}")
    assert cli("profile", "demo", "-o", other)[0] == 2
    assert other.read_text() == "{}"


# --- a finished experiment under another cost -------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Any:
    (tmp_path / "old.db").write_bytes((Path(__file__).parent / "data" / "version-1.db").read_bytes())
    store = Store(f"sqlite:///{tmp_path}/old.db", create=False)
    yield store
    store.engine.dispose()


def test_an_old_experiment_is_redrawn_in_milliseconds(old: Store) -> None:
    profile = planted_profile(described("demo").shape, (), "demo")
    plain, told = Comparison(old, "old"), Repriced(old, "old", "prefill_ms", profile)
    pricing = Pricing(plain, profile)
    for before, search in zip(plain.searches, told.searches, strict=True):
        expected = {}
        for trial in before.trials:
            price = pricing.of("prefill_ms", before, trial)
            assert price is not None
            expected[trial.number] = price.share
        assert {t.number: t.values[1] for t in search.trials if t.values} == pytest.approx(expected)
        assert [t.number for t in told.front(search)] == [t.number for t in front(search.trials)]
    record = told.to_dict()
    assert record["cost"] == "prefill_ms"
    assert plain.to_dict().keys() <= record.keys()
    flops = {(s.name, t.number): t.values[1] for s in plain.searches for t in s.trials if t.values}
    for search in record["searches"]:
        for point in search["front"]:
            assert point["flops_ratio"] == flops[search["name"], point["trial"]]
            assert point["cost_ratio"] != point["flops_ratio"]
    assert record["floor"] < min(record["budgets"])


def test_compare_under_another_cost(cli: Cli, old: Store, tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    profile.write_text(planted_profile(described("demo").shape, (), "demo").to_json())
    code, out, err = cli("compare", "old", "--storage", old.url, "--cost", "prefill_ms", "--profile", profile)
    assert (code, err) == (0, "")
    assert "a share of prefill_ms" in out
    code, out, _ = cli("compare", "old", "--storage", old.url, "--cost", "kv_bytes", "--json")
    assert json.loads(out)["cost"] == "kv_bytes"
    wrong = tmp_path / "wrong.json"
    wrong.write_text(planted_profile(model="other").to_json())
    cases = {
        ("--cost", "prefill_ms"): "measure a profile",
        ("--cost", "prefil_ms"): "did you mean 'prefill_ms'",
        (
            "--cost",
            "prefill_ms",
            "--profile",
            wrong,
        ): "the profile is of 'other' with 6 decoder layers, and 'demo' has 8",
        ("--cost", "kv_bytes", "--anytime"): "redraw the comparison",
    }
    for options, message in cases.items():
        code, _, err = cli("compare", "old", "--storage", old.url, *options)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1


def test_a_decision_lands_on_the_edge_of_a_staircase(old: Store) -> None:
    """Of schedules that cost the same milliseconds, the most accurate is taken: tokens up to the edge are free."""
    profile = planted_profile(described("demo").shape, (), "demo")
    comparison = Comparison(old, "old")
    pricing = Pricing(comparison, profile)
    shared = 0
    for drop in range(5, 60, 5):
        chosen = decide(comparison, Question(float(drop), "prefill_ms"), pricing)["chosen"]
        flops = set()
        for search in comparison.searches:
            for trial in search.trials:
                price = pricing.of("prefill_ms", search, trial)
                assert price is not None
                assert trial.values is not None
                if price.share <= chosen["cost_ratio"]:
                    assert trial.values[0] <= chosen["accuracy"]
                if price.share == pytest.approx(chosen["cost_ratio"]):
                    flops.add(trial.values[1])
        shared += len(flops) > 1
    assert shared
