"""``vispco report``: one self-contained HTML page; works from a file and without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vispco.dashboards.page import render, render_several

from vispco.analysis.anytime import anytime
from vispco.analysis.attainment import attainment_bands
from vispco.analysis.comparison import Comparison
from vispco.analysis.decision import Question, decide
from vispco.analysis.headline import answer
from vispco.analysis.layers import layer_record, trajectory_budgets
from vispco.analysis.pricing import Pricing
from vispco.analysis.seeds import against
from vispco.analysis.violations import violations
from vispco.costs.base import COSTS, make_cost
from vispco.errors import ConfigError, StorageError, VispcoError
from vispco.exporting import export_steps
from vispco.outputs import HTML, check_output, write_output
from vispco.storage.opening import DEFAULT_URL, redact
from vispco.storage.store import Store


def write_report(
    store: Store, experiments: str | Sequence[str], output: Path, *, tokens: int = 0, max_drop: float = 1.0
) -> None:
    """Write the page of one experiment, or of several.

    Args:
        tokens: on how many held-out samples the surviving tokens are shown, for which the model is loaded and run; of
            one experiment.
        max_drop: points of accuracy that the decision may lose.

    Raises:
        StorageError: no such experiment, or one without results.
        ConfigError: the file cannot be written or holds something else, ``max_drop`` is no number of points, or no
            schedule can be exported to be shown on samples.
        ModelError: ``tokens`` without the model at hand.
    """
    Question(max_drop)  # refuses what is no number of points
    names = [experiments] if isinstance(experiments, str) else list(dict.fromkeys(experiments))
    if tokens and len(names) > 1:
        raise ConfigError(f"--tokens {tokens} is for one experiment, and {len(names)} were named; make a page for each")
    comparisons = [Comparison(store, name) for name in names]
    check_output(output, HTML)
    if len(comparisons) > 1:
        write_output(output, render_several([report_record(one, max_drop) for one in comparisons]), HTML)
        return
    pictures = []
    if tokens:
        from vispco.dashboards.tokens import sample_pictures

        pictures = sample_pictures(comparisons[0], tokens)
    write_output(output, render(report_record(comparisons[0], max_drop, tokens), pictures), HTML)


def report_record(comparison: Comparison, max_drop: float = 1.0, tokens: int = 0) -> dict[str, Any]:
    """All that the page shows; ``comparison`` is the object of ``vispco compare --json``."""
    told, (decided, undecided) = comparison.to_dict(), decision(comparison, max_drop)
    return {
        "comparison": told,
        "model": comparison.stored.identity.get("model", {}).get("name"),
        "tasks": list(told["unpruned"]["tasks"]),
        "decision": decided,
        "undecided": undecided,
        "max_drop": max_drop,
        "tokens": tokens,
        "prices": prices(comparison, decided),
        "answer": answer(comparison),
        "points": comparison.points(),
        "paths": gradient_paths(comparison),
        "violations": violations(comparison),
        "seeds": over_seeds(comparison),
        "layers": layer_record(comparison),
        "export": export_steps(comparison),
        "storage": "" if comparison.store.url == DEFAULT_URL else redact(comparison.store.url),
        "study": comparison.stored.spec_text,
        "provenance": provenance(comparison),
    }


def decision(comparison: Comparison, max_drop: float = 1.0) -> tuple[dict[str, Any] | None, str]:
    """The decision for a loss of so many points, in the experiment's cost; None where there is none, and why."""
    try:
        return decide(comparison, Question(max_drop, comparison.facts.get("cost", "flops"))), ""
    except (ConfigError, StorageError) as error:
        return None, str(error)


def prices(comparison: Comparison, decided: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What the decision's schedule costs under every cost that can be computed, the study's own first.

    Costs in time need a profile; an experiment that did not store its prompts' lengths has its own cost only.
    """
    if decided is None or decided["chosen"]["search"] is None:
        return []
    chosen = decided["chosen"]
    search = next(search for search in comparison.searches if search.name == chosen["search"])
    trial = next(trial for trial in search.trials if trial.number == chosen["trial"])
    pricing, found = Pricing(comparison), []
    for name in sorted(COSTS, key=lambda name: name != decided["cost"]):
        if make_cost(name).larger_is_better or not (pricing.exact or name == decided["cost"]):
            continue
        try:
            price, whole = pricing.of(name, search, trial), pricing.unpruned(name)
        except VispcoError:
            continue
        if price is not None:
            per = make_cost(name).per(pricing.batch)
            row = {"per": per, "absolute": price.absolute, "share": price.share, "unpruned": whole}
            found.append({"cost": name, "unit": make_cost(name).unit, **row})
    return found


def over_seeds(comparison: Comparison) -> dict[str, Any]:
    """What is said of entries rather than of single runs; None where there is no grid to relate to."""
    grid = comparison.grid()
    return {
        "against": against(comparison, grid.entry) if grid else None,
        "bands": attainment_bands(comparison),
        "anytime": anytime(comparison) if comparison.grid_flops() else None,
    }


def gradient_paths(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Search -> ``steps`` of each of its budgets, and ``budgets`` by key, of gradient searches."""
    found = {}
    for search in comparison.searches:
        steps = {key: rows for key, rows in comparison.store.trajectory(search.study).items() if _is_gradient(rows)}
        if steps:
            # As the search numbers them, from the largest to the smallest; trials know better, as budgets may be added.
            known = {f"budget-{n}": b for n, b in enumerate(sorted(comparison.budgets, reverse=True))}
            found[search.name] = {"steps": steps, "budgets": {**known, **trajectory_budgets(comparison, search)}}
    return found


def _is_gradient(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Other searches store other things there."""
    return bool(rows) and all("violation" in row for row in rows)


def provenance(comparison: Comparison) -> dict[str, Any]:
    """Where the numbers come from."""
    stored = comparison.stored
    entries: dict[str, dict[str, Any]] = {}
    for facts in comparison.facts["studies"].values():
        known = entries.setdefault(
            facts["entry"],
            {
                "entry": facts["entry"],
                "kind": facts["kind"],
                "method": facts.get("method"),
                "family": facts.get("family"),
                "seeds": [],
            },
        )
        known["seeds"].append(facts.get("seed"))
    for entry in entries.values():
        entry["seeds"] = ", ".join("-" if seed is None else str(seed) for seed in entry["seeds"])
    unpruned = comparison.reference("unpruned", "held_out")
    return {
        **stored.provenance,
        "spec_hash": stored.spec_hash,
        "accounting": comparison.facts["accounting"],
        "evaluation": unpruned.id if unpruned else None,
        "created": stored.created.isoformat(" ", "seconds"),
        "entries": list(entries.values()),
    }
