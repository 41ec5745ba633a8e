"""Rows of ``vispco ls`` and ``vispco status``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from vispco.cli.output import page_width, print_table
from vispco.errors import ConfigError
from vispco.registry import suggest
from vispco.storage.reading import StudySummary, local, snapshot, study_ids, summaries
from vispco.storage.store import Store, open_store


def _first_line(value: Any) -> str:
    return (value.__doc__ or "").strip().splitlines()[0] if value.__doc__ else ""


def listing(what: str, storage: str | None) -> list[dict[str, Any]]:
    """Rows of one kind.

    Raises:
        ConfigError: unknown kind.
    """
    if what == "experiments":
        with open_store(storage, read_only=True) as store:
            return [experiment_row(store, name) for name in store.experiment_names()]
    if what == "models":
        from vispco.models.families import ADAPTERS, register_builtin
        from vispco.models.loading import DEMOS, demo_folder

        register_builtin()
        rows = [(name, _model_type(demo_folder(name)), name, about) for name, (_, about) in DEMOS.items()]
        for name in ADAPTERS:
            family = ADAPTERS[name]
            about = (", ".join(family.model_types), ", ".join(family.examples), _module_line(family))
            rows.append((f"family {name}", *about))
        return [dict(zip(("model", "model_type", "for_example", "about"), row, strict=True)) for row in rows]
    if what == "methods":
        from vispco.pruning.methods import METHODS

        return [{"method": name, "about": _module_line(METHODS[name])} for name in METHODS]
    if what == "support":
        from vispco.testing.support import support_rows

        return list(support_rows())
    if what == "schedules":
        from vispco.pruning.families import FAMILIES
        from vispco.pruning.published import PUBLISHED

        families = [{"schedule": f"family {name}", "about": _first_line(FAMILIES[name])} for name in FAMILIES]
        return [*families, *({"schedule": name, "about": known.about()} for name, known in PUBLISHED.items())]
    if what == "tasks":
        from vispco.tasks.base import TASKS, register_builtin

        register_builtin()
        return [{"task": name, "about": _module_line(TASKS[name])} for name in TASKS]
    if what == "searches":
        from vispco.search import SEARCHES

        return [{"search": name, "about": _first_line(SEARCHES[name])} for name in SEARCHES]
    kinds = ["experiments", "models", "methods", "support", "schedules", "tasks", "searches"]
    raise ConfigError(f"nothing called {what!r} to list; {suggest(what, kinds)}")


def print_models(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each model and family; what is longer is in the rows as CSV and JSON."""
    shown = [{"model": row["model"], "what": str(row["about"]).partition(":")[0]} for row in rows]
    print_table(shown, page_width())
    print("\n--csv, --json: model types, examples on the Hub, details")


def _module_line(cls: Any) -> str:
    import sys

    return _first_line(sys.modules[cls.__module__])


def _model_type(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["model_type"])


def experiment_row(store: Store, name: str) -> dict[str, Any]:
    stored = store.require_experiment(name)
    found = _summaries(store, name)
    return {
        "experiment": name,
        "model": stored.identity["model"]["name"],
        "studies": len(found),
        "trials": sum(summary.states.get(TrialState.COMPLETE, 0) for summary in found.values()),
        "created": str(stored.created)[:16],
        "held_by": store.holders().get(name, "-"),
    }


def status_rows(store: Store, experiment: str | None) -> list[dict[str, Any]]:
    """One row per study; of all experiments if none is named."""
    holders = store.holders()
    rows = []
    for name in [experiment] if experiment else store.experiment_names():
        known = store.require_experiment(name).facts
        facts, cost = known.get("studies", {}), known.get("cost", "flops")
        done = _summaries(store, name)
        for study in [*facts, *(s for s in done if s not in facts)]:
            summary = done.get(study, StudySummary({}, None, None))
            rows.append(
                {
                    "study": study,
                    "kind": facts.get(study, {}).get("kind", "-"),
                    "cost": cost,
                    "complete": summary.states.get(TrialState.COMPLETE, 0),
                    "pruned": summary.states.get(TrialState.PRUNED, 0),
                    "failed": summary.states.get(TrialState.FAIL, 0),
                    "best_accuracy": summary.best_accuracy,
                    "last_trial": str(local(summary.last))[:19] if summary.last else "-",
                    "held_by": holders.get(name, "-"),
                }
            )
    return rows


def print_status(rows: Sequence[Mapping[str, Any]], working: Sequence[Mapping[str, Any]]) -> None:
    """Tables for a terminal of 80 columns: what says nothing in any row is left out, seconds too."""
    shown = [{**row, "last_trial": row["last_trial"][:16]} for row in rows]
    for name in ("pruned", "failed", "held_by", "cost"):
        if all(row[name] in (0, "-", "flops") for row in shown):
            for row in shown:
                del row[name]
    if shown:
        print_table(shown, page_width())
        print("\nstates count trials; best_accuracy is of the search split, from 0 to 1")
    else:
        print("nothing yet")
    if working:
        print()
        print_table(working, page_width())


def worker_rows(store: Store, experiment: str | None) -> list[dict[str, Any]]:
    """Who works on what: one row per worker of the experiments that are being run."""
    holders, now = store.holders(), time.time()
    return [
        {
            "experiment": name,
            "worker": row["worker"],
            "process": f"{row['pid']} on {row['host']}",
            "doing": row["doing"],
            "seconds": max(0, round(now - row["since"])),
            "done": row["done"],
            "seen": max(0, round(now - row["seen"])),
        }
        for name in ([experiment] if experiment else store.experiment_names())
        if name in holders
        for row in store.workers(name)
    ]


def _summaries(store: Store, experiment: str) -> dict[str, StudySummary]:
    """Study name -> summary, in the order of creation."""
    with snapshot(store.engine) as connection:
        ids = study_ids(connection, experiment)
        found = summaries(connection, list(ids.values()))
    return {name: found[key] for name, key in ids.items()}
