"""Run and resume experiments."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Annotated, Any

import typer

from vispco.cli.app import app
from vispco.cli.options import Only, RayAddress, Set, Storage, StudyFile, Workers
from vispco.errors import VispcoError


def _executor(problem: Any, workers: int | None, ray: str | None) -> Any:
    if workers is None and ray is None:
        return nullcontext()
    from vispco.evaluation.ray_workers import RayWorkers

    return closing(RayWorkers(problem, workers, address=ray))


def _run(
    load: Callable[[], Any],
    storage: str | None,
    only: list[str] | None,
    fresh: bool,
    workers: int | None,
    ray: str | None,
) -> None:
    from vispco.analysis.comparison import compare
    from vispco.cli.comparison import print_comparison
    from vispco.cli.progress import TerminalProgress
    from vispco.experiment.run import Run
    from vispco.search.gradient.team import follow, is_follower, launched, leading, leave
    from vispco.storage.store import open_store, read_results

    if is_follower():
        follow()
        leave()
    progress = TerminalProgress()
    with leading() as team:
        problem = load()
        name = problem.study.experiment
        with open_store(storage) as store:
            with _executor(problem, workers, ray) as executor:
                driver = Run(problem, store, progress, executor, team)
                try:
                    added = driver.run(only, fresh=fresh, announce=True)
                except VispcoError:
                    if driver.failures:  # what the others have found is worth seeing
                        with read_results(store):
                            print_comparison(compare(store, [name]))
                    raise
            progress.say(f"{name}: {added} new trials" if added else f"{name}: finished before, nothing to do")
            with read_results(store):
                print_comparison(compare(store, [name]))
    if launched():
        leave()


@app.command()
def run(
    study: StudyFile,
    storage: Storage = None,
    search: Only = None,
    overrides: Set = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the experiment's trials first.")] = False,
    workers: Workers = None,
    ray: RayAddress = None,
) -> None:
    """Run an experiment file; started again, it resumes or says that it is finished."""
    from vispco.problem import Problem

    _run(lambda: Problem.from_yaml(study, overrides), storage, search, fresh, workers, ray)


@app.command()
def resume(
    experiment: str,
    storage: Storage = None,
    search: Only = None,
    workers: Workers = None,
    ray: RayAddress = None,
) -> None:
    """Continue an experiment from the database alone."""
    from vispco.problem import Problem
    from vispco.storage.store import open_store

    def load() -> Problem:
        with open_store(storage, read_only=True) as store:
            text = store.require_experiment(experiment).spec_text
        return Problem.from_text(text, f"study stored for {experiment!r}")

    _run(load, storage, search, False, workers, ray)
