"""Compare the searches of experiments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Optional

import typer

from vispco.cli.app import app
from vispco.cli.options import CostName, Csv, Json, ProfileFile, Storage
from vispco.cli.output import print_json, print_rows
from vispco.errors import ConfigError


@app.command()
def compare(
    experiments: Annotated[list[str], typer.Argument(help="One or more experiments.")],
    against: Annotated[
        Optional[str], typer.Option(metavar="ENTRY", help="Differences of all entries to this one, over seeds.")
    ] = None,
    score: Annotated[
        Optional[str], typer.Option(help="With --against: budget_score, or score_within_budget, its old name.")
    ] = None,
    anytime: Annotated[bool, typer.Option("--anytime", help="What each entry had found by which cost.")] = False,
    per_task: Annotated[bool, typer.Option("--per-task", help="Each search's choices, task by task.")] = False,
    violations: Annotated[
        bool, typer.Option("--violations", help="How gradient searches held their budgets, seed by seed.")
    ] = False,
    with_published: Annotated[
        bool, typer.Option("--with-published", help="The paper's tables beside the choices for its budgets.")
    ] = False,
    per_target: Annotated[
        bool, typer.Option("--per-target", help="What is left on servers that run less than everything.")
    ] = False,
    cost: CostName = None,
    profile: ProfileFile = None,
    search: Annotated[
        Optional[list[str]], typer.Option(help="Only this search, or entry with all its seeds; may be repeated.")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Fronts, indicators, costs and per-budget winners; or entries over their seeds."""
    from vispco.analysis.comparison import Comparison, together
    from vispco.storage.store import open_store

    asked = {
        "--against": against is not None,
        "--anytime": anytime,
        "--per-task": per_task,
        "--violations": violations,
        "--with-published": with_published,
        "--per-target": per_target,
    }
    if sum(asked.values()) > 1:
        several = " and ".join(name for name, given in asked.items() if given)
        raise ConfigError(f"{several} are tables of their own; ask for one at a time")
    if score is not None and against is None:
        raise ConfigError(f"--score {score} says what --against compares; name an entry: --against grid")
    if search and any(asked.values()) and not per_task:
        raise ConfigError("--search is of the comparison and --per-task only; leave the other table out")
    if (cost or profile) and any(asked.values()) and not per_task:
        raise ConfigError("--cost and --profile redraw the comparison and --per-task only; leave the other table out")
    rows_of: Callable[[dict[str, Any]], list[dict[str, Any]]]
    show: Callable[[dict[str, Any]], None]
    with open_store(storage, read_only=True) as store:

        def each(table: Callable[[Comparison], dict[str, Any]]) -> dict[str, Any]:
            return together([table(Comparison(store, name)) for name in experiments])

        if against is not None:
            from vispco.analysis import seeds
            from vispco.cli.over_seeds import against_rows, print_against

            found = each(lambda one: seeds.against(one, against, score or "budget_score"))
            rows_of, show = against_rows, print_against
        elif anytime:
            from vispco.analysis import anytime as over_cost
            from vispco.cli.over_seeds import anytime_rows, print_anytime

            found = each(over_cost.anytime)
            rows_of, show = anytime_rows, print_anytime
        elif per_target:
            from vispco.analysis.targets import compare_targets
            from vispco.cli.targets import print_targets, target_rows

            found = compare_targets(store, experiments)
            rows_of, show = target_rows, print_targets
        elif violations:
            from vispco.analysis.violations import compare_violations
            from vispco.cli.violations import print_violations, violation_rows

            found = compare_violations(store, experiments)
            rows_of, show = violation_rows, print_violations
        elif with_published:
            from vispco.analysis.published_results import beside_published
            from vispco.cli.published import print_published, published_rows

            found = each(beside_published)
            rows_of, show = published_rows, print_published
        else:
            from vispco.analysis.comparison import compare as compare_experiments
            from vispco.analysis.rows import search_rows, task_rows
            from vispco.cli.comparison import only, print_comparison, print_tasks

            if cost or profile:
                from vispco.cli.choosing import repriced

                found = repriced(store, experiments, cost, profile)
            else:
                found = compare_experiments(store, experiments)
            found = only(found, search) if search else found
            rows_of, show = (task_rows, print_tasks) if per_task else (search_rows, print_comparison)
    if as_json:
        print_json(found)
        return
    parts = found.get("experiments", [found])
    if as_csv:
        print_rows([row for part in parts for row in rows_of(part)], as_csv=True)
        return
    for number, part in enumerate(parts):
        if number:
            print()
        show(part)
