"""What an experiment file asks to be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vispco.config import SearchConfig, Study, check_options
from vispco.errors import ConfigError
from vispco.registry import suggest
from vispco.search import SEARCHES
from vispco.search.base import Search
from vispco.storage.store import Store


@dataclass(frozen=True)
class Planned:
    """One study to run: an entry at one seed."""

    entry: str
    config: SearchConfig
    seed: int
    study: str
    options: Any


def study_name(experiment: str, entry: str, seed: int | None) -> str:
    return f"{experiment}/{entry}" if seed is None else f"{experiment}/{entry}@{seed}"


def plan(study: Study, only: Sequence[str] | None = None) -> list[Planned]:
    """The studies of an experiment, entries that others take their compute from first.

    Raises:
        ConfigError: unknown entry, kind or option; a compute reference to nothing or in a circle.
    """
    for name in only or []:
        if name not in study.searches:
            raise ConfigError(f"no search entry {name!r}; {suggest(name, list(study.searches))}")
    options = {}
    for name, entry in study.searches.items():
        cls: type[Search] = SEARCHES[entry.kind]
        options[name] = check_options(cls.Options, name, entry.kind, entry.options)
    ordered: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ConfigError(f"searches take their compute from each other in a circle: {' -> '.join([*path, name])}")
        for key in ("compute", "spent"):
            source = getattr(options[name], key, None)
            if isinstance(source, str):
                if source not in study.searches:
                    raise ConfigError(
                        f"searches.{name}.{key} names no entry: {source!r}; {suggest(source, list(study.searches))}"
                    )
                visit(source, (*path, name))
        if name not in ordered:
            ordered.append(name)

    for name in study.searches:
        visit(name, ())
    planned = []
    for name in ordered:
        if only and name not in only:
            continue
        entry = _with_family(name, study.searches[name])
        for seed in entry.seeds if entry.seeds is not None else [None]:
            planned.append(Planned(name, entry, seed or 0, study_name(study.experiment, name, seed), options[name]))
    return planned


def plan_in(store: Store, study: Study, only: Sequence[str] | None = None) -> list[Planned]:
    """The studies of this run. Seed 0 of an entry is one study, whether or not the file lists its seeds: an entry
    that began without seeds goes on where it is."""
    stored = store.experiment(study.experiment)
    known = stored.studies if stored else {}
    planned = []
    for item in plan(study, only):
        listed = study.searches[item.entry].seeds is not None
        other = study_name(study.experiment, item.entry, None if listed else 0)
        goes_on = item.seed == 0 and item.study not in known and other in known
        planned.append(replace(item, study=other) if goes_on else item)
    return planned


def _with_family(name: str, entry: SearchConfig) -> SearchConfig:
    """The entry with the family of its kind of search, where that has only one."""
    fixed = SEARCHES[entry.kind].fixed_family
    if fixed is not None and entry.family not in (None, fixed):
        raise ConfigError(
            f"searches.{name}.family = {entry.family!r}: schedules of kind {entry.kind!r} belong to family {fixed!r}; "
            "remove family:"
        )
    return entry if fixed is None else entry.model_copy(update={"family": fixed})


def resolutions(study: Study) -> list[float]:
    """Resolutions that some entry searches, without the model's own."""
    listed = {share for entry in study.searches.values() for share in entry.resolution or study.resolution or []}
    return sorted(listed - {study.model.resolution}, reverse=True)
