"""Races replayed on a recorded table of per-sample scores; evaluator.py records one and prints what came out.

A table holds ``search`` [P, S] and ``held_out`` [P, H], scores of every schedule, ``search_cost`` [P] (flops_ratio),
``names`` [P] (schedules as text) and ``groups`` [S]. Nothing is run, so that a replay costs nothing: each seed draws
its own samples and its own order. Compared are the compute spent with exact sharing alone and with racing on top, and
the schedules that either would have chosen for twelve budgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from vispco.costs import shared_flops
from vispco.evaluation.prepared import block_ends
from vispco.fronts import choose, front
from vispco.models.shapes import ModelShape
from vispco.pruning.methods import make_method
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import parse_schedule
from vispco.search.racing import Race, RacingOptions, shuffled

DEMO = ModelShape(layers=8, hidden=96, heads=6, kv_heads=6, head_dim=16, mlp=256)
BATCH = 64
LESS, WITHIN, OFTEN = 4.0, 0.005, 0.97


@dataclass(frozen=True)
class Table:
    """Scores of P schedules on every sample, and what running them costs.

    ``search`` [P, S] and ``held_out`` [P, H]; ``costs`` [P]; ``groups`` [S]; ``counts`` int [P, S, L] visual tokens
    entering each layer; ``n_visual``, ``n_text`` [S].
    """

    search: NDArray[np.float64]
    held_out: NDArray[np.float64]
    costs: NDArray[np.float64]
    groups: list[str]
    counts: NDArray[np.int64]
    n_visual: NDArray[np.int64]
    n_text: NDArray[np.int64]
    shape: ModelShape = DEMO
    method: Method = field(default_factory=lambda: make_method("fastv"))

    def budgets(self, number: int = 12) -> NDArray[np.float64]:
        """Middles of equal parts of [floor, 1]."""
        floor = self.costs.min()
        return np.asarray(floor + (1 - floor) * (np.arange(number) + 0.5) / number)


def load(path: str, n_visual: int = 64, n_text: int = 10) -> Table:
    """A recorded table of the demo; prompts are taken to have one length."""
    data = np.load(path)
    samples = data["search"].shape[1]
    visual = np.full(samples, n_visual)
    counts = [parse_schedule(str(name)).counts(visual, DEMO.layers) for name in data["names"]]
    return Table(
        search=data["search"].astype(float),
        held_out=data["held_out"].astype(float),
        costs=data["search_cost"],
        groups=[str(group) for group in data["groups"]],
        counts=np.array(counts),
        n_visual=visual,
        n_text=np.full(samples, n_text),
    )


@dataclass(frozen=True)
class Replay:
    """What one race did.

    ``less``: compute of exact sharing alone over that of the race. ``difference``: budget_score with racing minus
    without. ``loss`` [budgets]: search accuracy given up. ``off_front``: stopped ones on the full front;
    ``beyond``: stopped ones that beat every cheaper finished one by more than the margin.
    """

    less: float
    difference: float
    loss: NDArray[np.float64]
    stopped: int
    off_front: int
    beyond: int


def replay_one(seed: int, table: Table, n: int, options: RacingOptions) -> Replay:
    """Race on ``n`` samples in an order drawn from ``seed``."""
    rows = drawn(table, n, seed)
    order = shuffled([[table.groups[row] for row in rows]], seed, whole_groups=False)
    rows = rows[order.row]
    scores, budgets = table.search[:, rows], table.budgets()
    race = Race(table.costs, order, options, budgets, block_ends(n))
    spent, begin = 0, 0
    for stage in race.stages:
        running = ~race.stopped
        spent += tree_flops(table, running, rows[begin:stage])
        race.look(np.where(running[:, None], scores[:, :stage], np.nan))
        begin = stage
    accuracy, held_out = scores.mean(axis=1), table.held_out.mean(axis=1)
    every = trials(accuracy, table.costs, np.ones(len(accuracy), dtype=bool))
    finished = trials(accuracy, table.costs, ~race.stopped)
    chosen = [(choose(every, budget), choose(finished, budget)) for budget in budgets]
    assert all(a is not None and b is not None for a, b in chosen)  # the budgets begin above the cheapest schedule
    full, raced = [a.number for a, _ in chosen], [b.number for _, b in chosen]
    return Replay(
        less=tree_flops(table, np.ones(len(accuracy), dtype=bool), rows) / spent,
        difference=float(held_out[raced].mean() - held_out[full].mean()),
        loss=accuracy[full] - accuracy[raced],
        stopped=int(race.stopped.sum()),
        off_front=sum(bool(race.stopped[trial.number]) for trial in front(every)),
        beyond=sum(
            accuracy[i] > max(t.values[0] for t in finished if t.values[1] <= table.costs[i]) + options.margin
            for i in np.flatnonzero(race.stopped)
        ),
    )


def drawn(table: Table, n: int, seed: int) -> NDArray[np.int64]:
    """Whole groups at random, until there are ``n`` samples."""
    _, member = np.unique(table.groups, return_inverse=True)
    place = np.random.default_rng([seed, 1]).permutation(member.max() + 1)[member]
    return np.sort(np.argsort(place, kind="stable")[:n])


def tree_flops(table: Table, running: NDArray[np.bool_], rows: NDArray[np.int64]) -> int:
    """FLOPs of the running schedules on ``rows``, shared, in batches."""
    total, which = 0, np.flatnonzero(running)
    for begin in range(0, len(rows), BATCH):
        batch = rows[begin : begin + BATCH]
        counts = list(table.counts[np.ix_(which, batch)])
        total += int(shared_flops(table.shape, counts, table.n_visual[batch], table.n_text[batch], table.method).sum())
    return total


def trials(
    accuracy: NDArray[np.float64], costs: NDArray[np.float64], which: NDArray[np.bool_]
) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(number=int(i), values=(accuracy[i], costs[i]), user_attrs={}) for i in np.flatnonzero(which)
    ]


def replay(table: Table, seeds: Sequence[int], n: int, processes: int) -> list[Replay]:
    """A race for each seed, on ``n`` samples of the table."""
    one = partial(replay_one, table=table, n=n, options=RacingOptions())
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        return list(pool.map(one, seeds, chunksize=5))


def good(runs: Sequence[Replay]) -> int:
    """Replays that spent little enough and chose well enough."""
    return sum(run.less >= LESS and abs(run.difference) <= WITHIN for run in runs)


def figures(runs: Sequence[Replay]) -> dict[str, float]:
    """The figures of several replays, as printed."""
    less = np.array([run.less for run in runs])
    difference = np.array([run.difference for run in runs])
    loss = np.array([run.loss for run in runs])
    return {
        "replays": len(runs),
        "compute less by, least": less.min(),
        "compute less by, 5 %": np.quantile(less, 0.05),
        "compute less by, median": np.median(less),
        "compute less by, most": less.max(),
        "budget_score within 0.005": (np.abs(difference) <= WITHIN).sum(),
        "both": good(runs),
        "budget_score, mean difference": difference.mean(),
        "budget_score, largest difference": np.abs(difference).max(),
        "search accuracy lost, mean": loss.mean(),
        "search accuracy lost at one budget, most": loss.max(),
        "stopped, mean": np.mean([run.stopped for run in runs]),
        "stopped of the full front, mean": np.mean([run.off_front for run in runs]),
        "replays with one stopped beyond the margin": sum(run.beyond > 0 for run in runs),
    }
