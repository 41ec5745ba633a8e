"""``vispco rm``: delete an experiment, an entry, or one seed of it."""

from __future__ import annotations

import sys

import typer

from vispco.errors import ConfigError
from vispco.registry import suggest
from vispco.storage.store import Store


def matching(store: Store, name: str) -> list[str]:
    """Studies that ``EXPERIMENT``, ``EXPERIMENT/ENTRY`` or ``EXPERIMENT/ENTRY@SEED`` stands for.

    Raises:
        StorageError: no such experiment.
        ConfigError: it has no such entry.
    """
    experiment, _, entry = name.partition("/")
    noted = store.require_experiment(experiment).studies
    known = list(dict.fromkeys([*store.study_names(experiment), *noted]))
    if not entry:
        return known
    found = [study for study in known if study == name or study.startswith(f"{name}@")]
    if not found:
        raise ConfigError(f"nothing is called {name!r}; {suggest(name, known)}")
    return found


def remove(store: Store, name: str, *, sure: bool) -> str:
    """Delete after asking; returns what was done. Measured evaluations stay, so that another run finds them.

    Raises:
        ConfigError: nobody can be asked, or the answer is no.
        LockedError: the experiment is being run.
    """
    experiment, _, entry = name.partition("/")
    studies = matching(store, name)
    present = set(store.study_names(experiment))
    trials = sum(len(store.trial_log(study).trials()) for study in studies if study in present)
    what = f"{name}: {trials} trials in {len(studies)} {'study' if len(studies) == 1 else 'studies'}"
    if not sure:
        if not sys.stdin.isatty():
            raise ConfigError(f"this deletes {what}; say --yes, since nobody can be asked here")
        if not typer.confirm(f"Delete {what}?", err=True):
            raise ConfigError("nothing was deleted")
    with store.lock(experiment):
        if entry:
            for study in studies:
                store.delete_study(experiment, study)
        else:
            store.delete_experiment(experiment)
    return f"deleted {what}"
