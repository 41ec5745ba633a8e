"""``vispco plot``: read an experiment, draw one figure for a paper, write it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vispco.analysis.attainment import attainment_bands
from vispco.analysis.comparison import Comparison
from vispco.errors import ConfigError
from vispco.registry import suggest
from vispco.storage.store import Store

FIGURES = ("front", "choices", "cost", "schedules", "trajectory")
SPLITS = ("held_out", "search")


def write_plot(
    store: Store,
    experiment: str,
    output: Path,
    what: str = "front",
    *,
    split: str = "held_out",
    search: str | None = None,
    width: float = 3.3,
) -> Path:
    """Write the figure; returns its full path. The suffix of ``output`` is the format.

    Raises:
        StorageError: no such experiment, or one without results.
        ConfigError: unknown figure, split or search, another suffix, no matplotlib, or a file that cannot be written.
    """
    from vispco.dashboards import matplotlib_figures
    from vispco.dashboards.report import gradient_paths

    for given, known, option in ((what, FIGURES, "--what"), (split, SPLITS, "--split")):
        if given not in known:
            raise ConfigError(f"unknown {option} {given!r}; {suggest(given, list(known))}")
    comparison = Comparison(store, experiment)
    told = comparison.to_dict()
    if what == "front":
        points, bands = comparison.points(), attainment_bands(comparison)
        matplotlib_figures.save(lambda: matplotlib_figures.front(told, points, bands, split=split, width=width), output)
    elif what == "choices":
        matplotlib_figures.save(lambda: matplotlib_figures.choices(told, width=width), output)
    elif what == "cost":
        matplotlib_figures.save(lambda: matplotlib_figures.cost(told, width=width), output)
    elif what == "schedules":
        fronts = {found["name"]: found for found in told["searches"] if any(p["keep_ratio"] for p in found["front"])}
        shown = fronts[_chosen(experiment, search, fronts, "schedules")]
        matplotlib_figures.save(lambda: matplotlib_figures.schedules(shown, width=width), output)
    else:
        paths = gradient_paths(comparison)
        path = paths[_chosen(experiment, search, paths, "a trajectory")]
        matplotlib_figures.save(lambda: matplotlib_figures.trajectory(path, width=width), output)
    return output.resolve()


def _chosen(experiment: str, search: str | None, known: Iterable[str], what: str) -> str:
    names = list(known)
    if not names:
        raise ConfigError(f"no search of {experiment!r} has {what} to draw; see vispco status {experiment}")
    if search is not None and search not in names:
        raise ConfigError(f"no search {search!r} with {what} in {experiment!r}; {suggest(search, names)}")
    return search or names[0]
