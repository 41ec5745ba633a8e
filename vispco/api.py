"""What the command line does, from Python: run an experiment, write its report, export a schedule, count FLOPs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vispco.errors import ConfigError, ScheduleError

if TYPE_CHECKING:
    from vispco.analysis.comparison import Comparison
    from vispco.experiment.progress import Progress
    from vispco.problem import Problem
    from vispco.pruning.methods.base import Method
    from vispco.pruning.schedules import Schedule


def run(
    study: str | Path | Problem,
    *,
    storage: str | None = None,
    searches: Sequence[str] | None = None,
    overrides: Sequence[str] | None = None,
    fresh: bool = False,
    workers: int | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Bring an experiment to its end, as ``vispco run`` does, and return its results.

    Interrupted and called again it resumes; finished it only reads.

    Args:
        study: path of an experiment file, or a :class:`Problem`, which may hold a model and tasks of your own.
        storage: database URL; default ``VISPCO_STORAGE`` or ``sqlite:///vispco.db``.
        searches: names of the entries to run; default all.
        overrides: as of ``--set``, such as ``"tasks.0.splits.search=128"``.
        fresh: delete the experiment's trials first.
        workers, ray: measure in this many processes, or on a Ray cluster.
        progress: shows what is done; default nothing.

    Raises:
        ConfigError: the study is wrong, or differs from what the database holds under its name.
        LockedError: another process runs it.
    """
    from vispco.analysis.comparison import Comparison
    from vispco.experiment.run import Run
    from vispco.problem import Problem
    from vispco.storage.store import Store

    if isinstance(study, Problem):
        if overrides:
            raise ConfigError("overrides change a study file; give its path, or change the problem's study")
        problem = study
    else:
        problem = Problem.from_yaml(study, list(overrides or []))
    executor: Any = nullcontext()
    if workers is not None or ray is not None:
        from vispco.evaluation.ray_workers import RayWorkers

        executor = closing(RayWorkers(problem, workers, address=ray))
    store = Store(storage)
    with executor as given:
        Run(problem, store, progress, given).run(searches, fresh=fresh)
    return Comparison(store, problem.study.experiment)


def report(
    experiments: str | Sequence[str],
    output: str | Path = "report.html",
    *,
    tokens: int = 0,
    storage: str | None = None,
    max_drop: float = 1.0,
) -> Path:
    """Write one self-contained HTML page, as ``vispco report`` does; returns its path.

    Args:
        experiments: one name, or several to be shown side by side.
        tokens: show the surviving tokens of this many samples, for which the model is loaded; of one experiment.
        max_drop: points of accuracy that the decision may lose.
        storage: database URL; default ``VISPCO_STORAGE`` or ``sqlite:///vispco.db``.

    Raises:
        StorageError: no such experiment.
        ConfigError: the file cannot be written, or is something else.
    """
    from vispco.dashboards.report import write_report
    from vispco.storage.store import open_store

    with open_store(storage, read_only=True) as store:
        write_report(store, experiments, Path(output), tokens=tokens, max_drop=max_drop)
    return Path(output).resolve()


def export(
    experiment: str,
    output: str | Path | None = None,
    *,
    budget: float | None = None,
    max_drop: float | None = None,
    target: str | None = None,
    storage: str | None = None,
    **question: Any,
) -> dict[str, Any]:
    """The schedule for a budget or for a loss of accuracy, as ``vispco export`` writes it.

    Args:
        output: file to write; :func:`load_schedule` and :func:`prune` read it.
        budget: upper bound on ``flops_ratio``.
        max_drop: instead, points of accuracy that may be lost; ``question`` is then what :func:`choose` takes besides.
        target: only schedules that run there; with ``budget``.
        storage: database URL; default ``VISPCO_STORAGE`` or ``sqlite:///vispco.db``.

    Raises:
        ConfigError: nothing fits, or the arguments contradict each other.
        StorageError: no such experiment.
    """
    from vispco.analysis.comparison import Comparison
    from vispco.choosing import choose
    from vispco.exporting import export_decision, export_schedule
    from vispco.outputs import JSON, json_with, write_output
    from vispco.pruning.schedule_file import FORMAT
    from vispco.storage.store import open_store

    if (budget is None) == (max_drop is None):
        raise ConfigError("give one of budget, a share of the unpruned compute, and max_drop, points of accuracy")
    if budget is not None and question:
        raise ConfigError(f"{', '.join(question)} belong to max_drop; leave out budget")
    if max_drop is not None and target is not None:
        raise ConfigError("target belongs to budget; leave out max_drop")
    with open_store(storage, read_only=True) as store:
        comparison = Comparison(store, experiment)
        if budget is not None:
            found = export_schedule(comparison, budget, target)
        else:
            assert max_drop is not None
            found = export_decision(comparison, choose(experiment, max_drop, storage=storage, **question))
    if output is not None:
        write_output(Path(output), json.dumps(found, indent=1) + "\n", JSON, own=json_with("format", FORMAT))
    return found


def flops_ratio(
    model: Any, schedule: Schedule | str, method: Method | str | None = None, *, visual: int, text: int
) -> float:
    """FLOPs of a pruned prefill over those of the plain one: decoder layers and the method's scoring, exact.

    Args:
        model: a loaded model.
        schedule: a schedule, or its text.
        method: default: the one that an exported schedule names, else ``fastv``.
        visual, text: visual tokens and other tokens of the prompt.

    Raises:
        ScheduleError: the schedule does not fit the model or the method, or is for smaller pictures.
        ModelError: the model lacks what the method needs.
    """
    import numpy as np

    from vispco.costs import flops_ratio as ratio
    from vispco.models.families import adapter_for
    from vispco.pruning.forward.counts import checked_counts
    from vispco.pruning.methods.base import make_method
    from vispco.pruning.needs import check_needs
    from vispco.pruning.schedule_file import ScheduleFile
    from vispco.pruning.schedules import parse_schedule, policy_text, resolution_of

    adapter, visuals = adapter_for(model), np.array([visual])
    shape = adapter.shape()
    given = parse_schedule(schedule) if isinstance(schedule, str) else schedule
    if method is None:
        method = given.make_method() if isinstance(given, ScheduleFile) else "fastv"
    chosen = make_method(method) if isinstance(method, str) else method
    if resolution_of(given) not in (None, 1.0):
        raise ScheduleError(
            f"{policy_text(given)} is for smaller pictures, and visual={visual} says nothing of how many tokens the "
            "whole ones have; give the schedule without its resolution, for a share of the smaller pictures' prefill"
        )
    check_needs(chosen, adapter)
    counts = checked_counts(given.counts(visuals, shape.layers), visuals, shape.layers, chosen)
    return ratio(shape, counts, visuals, np.array([text]), chosen)
