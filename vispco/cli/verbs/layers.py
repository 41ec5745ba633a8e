"""What was learned layer by layer."""

from __future__ import annotations

from typing import Annotated

import typer

from vispco.cli.app import app
from vispco.cli.options import Csv, Json, Storage
from vispco.cli.output import print_json, print_rows


@app.command()
def layers(
    experiment: str,
    what: Annotated[str, typer.Option(help="With --csv: learned, sensitivity or gradient.")] = "learned",
    storage: Storage = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """What was learned layer by layer, and what pruning at each layer costs."""
    from vispco.analysis.comparison import Comparison
    from vispco.analysis.layers import layer_record
    from vispco.cli.layers import layer_rows, print_layers
    from vispco.storage.store import open_store

    with open_store(storage, read_only=True) as store:
        found = layer_record(Comparison(store, experiment))
    if as_json:
        print_json(found)
    elif as_csv:
        print_rows(layer_rows(found, what), as_csv=True)
    else:
        print_layers(found)
