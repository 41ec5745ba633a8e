"""Copy, remove and import experiments."""

from __future__ import annotations

import sys
from typing import Annotated, Optional

import typer

from vispco.cli.app import app
from vispco.cli.options import Csv, Json, Storage
from vispco.cli.output import print_rows


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help="Database URL to read.")],
    destination: Annotated[str, typer.Argument(help="Database URL to write; created if there is none.")],
    experiment: Annotated[
        Optional[list[str]], typer.Option("--experiment", help="Only this one; may be repeated [default: all].")
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Copy experiments between databases; started again, it goes on or says that all is there."""
    from dataclasses import asdict

    from vispco.storage.copying import copy_experiments
    from vispco.storage.store import open_store

    with open_store(source, read_only=True) as read, open_store(destination) as written:
        rows = [asdict(done) for done in copy_experiments(read, written, experiment)]
    print_rows(rows, as_json=as_json, as_csv=as_csv, empty="no experiments to copy")


@app.command("rm")
def remove_experiment(
    name: Annotated[
        str, typer.Argument(metavar="EXPERIMENT[/ENTRY[@SEED]]", help="By name: all of it, an entry, or one seed.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    storage: Storage = None,
) -> None:
    """Delete an experiment, an entry or one of its seeds; measured schedules stay in the cache."""
    from vispco.cli.removing import remove
    from vispco.storage.store import open_store

    with open_store(storage, create=False) as store:
        print(remove(store, name, sure=yes))


@app.command("import")
def import_study(
    study: Annotated[str, typer.Argument(help="Name of an Optuna study.")],
    into: Annotated[str, typer.Option("--into", help="Experiment to compare it in.")],
    source: Annotated[
        Optional[str], typer.Option("--from", help="Database URL of the study [default: the experiment's].")
    ] = None,
    entry: Annotated[Optional[str], typer.Option("--as", help="Name of the entry [default: the study's].")] = None,
    accuracy: Annotated[Optional[int], typer.Option(help="Objective that is the accuracy, from 0.")] = None,
    cost: Annotated[Optional[int], typer.Option(help="Objective that is the flops_ratio, from 0.")] = None,
    storage: Storage = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Take any Optuna study with an accuracy and a flops_ratio into an experiment, to compare with."""
    from dataclasses import asdict

    from vispco.storage.importing import import_trials
    from vispco.storage.store import open_store

    with open_store(storage, create=False) as store:
        done = import_trials(store, study, into, source=source, entry=entry, accuracy=accuracy, cost=cost)
    for note in done.notes:
        print(note, file=sys.stderr)
    row = asdict(done)
    del row["notes"]
    print_rows([row], as_json=as_json, as_csv=as_csv)
