"""What programs hand over: no schedule, no method, no counts, a model that marks no picture. One line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vispco
from conftest import SMALL, make_batch
from vispco.errors import ConfigError, ModelError, ScheduleError
from vispco.evaluation.prepared import check_prunable, prepare_split
from vispco.problem import Problem


@pytest.mark.parametrize("schedule", [3, 0.5, b"step(layer=2, keep=0.5)", [0.5], {"layer": 2}, object(), vispco.Step])
def test_no_schedule(tiny_llava: Any, schedule: Any) -> None:
    with (
        pytest.raises(ScheduleError, match=r"^schedule is .*which is no schedule; write for example vispco.Step"),
        vispco.prune(tiny_llava, schedule=schedule),
    ):
        pass


@pytest.mark.parametrize("method", [5, 0.5, b"fastv", ["fastv"], object])
def test_no_method(tiny_llava: Any, method: Any) -> None:
    with (
        pytest.raises(ConfigError, match=r"^method is .*; give a method's name or a method object"),
        vispco.prune(tiny_llava, method=method, schedule=vispco.Step(1, 0.5)),
    ):
        pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: vispco.Ratios("a"),
        lambda: vispco.Ratios(3),
        lambda: vispco.Ratios([None]),
        lambda: vispco.Ratios([float("nan")]),
        lambda: vispco.Ratios([10**400]),
        lambda: vispco.MultiStep(3, 0.5),
        lambda: vispco.MultiStep("23", "10"),
        lambda: vispco.Step("2", 0.5),
        lambda: vispco.Step(2, "0.5"),
        lambda: vispco.Step(2, None),
        lambda: vispco.Linear(start=10**400, width=1, keep=0.5),
        lambda: vispco.Linear(start="1", width=1, keep=0.5),
    ],
)
def test_no_numbers(make: Callable[[], Any]) -> None:
    with pytest.raises(ScheduleError) as error:
        make()
    assert len(str(error.value)) < 250


class Given:
    """A policy that gives the same counts for whatever it is asked."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change = change

    def counts(self, n_visual: Any, layers: int, context: Any = None) -> Any:
        plain = np.repeat(np.asarray(n_visual)[:, None], layers, axis=1)
        plain[:, 1:] //= 2
        return self.change(plain)


@pytest.mark.parametrize(
    "change",
    [
        lambda counts: counts.astype(np.uint8),
        lambda counts: counts.astype(np.uint64),
        lambda counts: counts.astype(np.float64),
        lambda counts: counts.tolist(),
    ],
    ids=["uint8", "uint64", "float", "list"],
)
def test_whole_numbers_of_any_type_are_counts(tiny_llava: Any, change: Callable[[Any], Any]) -> None:
    batch = make_batch([(3, 1, 5)])
    with vispco.prune(tiny_llava, method="fastv", schedule=Given(change)) as session:
        tiny_llava(**batch)
    assert session.counts.tolist() == [[16, 8, 8, 8]]


@pytest.mark.parametrize(
    "change",
    [
        lambda counts: np.where(counts < 16, np.nan, counts),
        lambda counts: np.where(counts < 16, np.inf, counts),
        lambda counts: counts / 3,
        lambda counts: [["a"] * 4],
        lambda counts: None,
        lambda counts: [[1, 2], [3]],
        lambda counts: counts - 100,
        lambda counts: counts[:, ::-1].astype(np.uint8),
        lambda counts: counts[:, :2],
        lambda counts: 16,
    ],
    ids=["NaN", "inf", "thirds", "words", "None", "ragged", "negative", "rising uint8", "short", "one number"],
)
def test_no_counts(tiny_llava: Any, change: Callable[[Any], Any]) -> None:
    with (
        pytest.raises(ScheduleError, match=r"the policy gave "),
        vispco.prune(tiny_llava, method="fastv", schedule=Given(change)),
    ):
        tiny_llava(**make_batch([(3, 1, 5)]))


def test_validate_says_that_nothing_can_be_pruned(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration whose image token is not the one that the processor writes."""
    problem = Problem.from_text(SMALL)
    wrong = 99_999
    with monkeypatch.context() as patch:
        patch.setattr(type(problem.adapter), "visual_token_ids", lambda self: (wrong,))
        with pytest.raises(ModelError, match=rf"^nothing can be pruned on task 'mosaic-vqa': .* .number {wrong} by"):
            check_prunable(problem, prepare_split(problem, "search"))
        (tmp_path / "study.yaml").write_text(SMALL)
        code, out, err = cli("validate", tmp_path / "study.yaml")
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert err.startswith("vispco: nothing can be pruned on task 'mosaic-vqa'")
    check_prunable(problem, prepare_split(problem, "search"))
