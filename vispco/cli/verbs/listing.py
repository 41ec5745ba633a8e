"""List what there is, and what is done."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from vispco.cli.app import app
from vispco.cli.options import Csv, Json, Storage
from vispco.cli.output import print_rows


@app.command("ls")
def ls(
    what: Annotated[
        str, typer.Argument(help="experiments, models, methods, support, schedules, tasks or searches")
    ] = "experiments",
    storage: Storage = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """List what there is."""
    from vispco.cli.listing import listing, print_models

    rows = listing(what, storage)
    if what == "models" and not (as_json or as_csv):
        print_models(rows)
        return
    print_rows(rows, as_json=as_json, as_csv=as_csv)


@app.command()
def status(
    experiment: Annotated[Optional[str], typer.Argument()] = None,
    workers: Annotated[bool, typer.Option("--workers", help="Only who works on what.")] = False,
    storage: Storage = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """What is done, what runs, and who holds it."""
    from vispco.cli.listing import print_status, status_rows, worker_rows
    from vispco.storage.store import open_store

    with open_store(storage, read_only=True) as store:
        rows, working = status_rows(store, experiment), worker_rows(store, experiment)
    if workers:
        print_rows(working, as_json=as_json, as_csv=as_csv, empty="nobody works")
        return
    if as_json or as_csv:
        print_rows(rows, as_json=as_json, as_csv=as_csv)
    else:
        print_status(rows, working)
