"""Write one figure for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from vispco.cli.app import app
from vispco.cli.options import Storage


@app.command()
def plot(
    experiment: str,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write: .pdf, .svg or .png.")] = Path(
        "front.pdf"
    ),
    what: Annotated[str, typer.Option(help="front, choices, cost, schedules or trajectory.")] = "front",
    split: Annotated[str, typer.Option(help="With front: held_out or search.")] = "held_out",
    search: Annotated[
        Optional[str], typer.Option(help="With schedules or trajectory: of which search [default: the first].")
    ] = None,
    width: Annotated[float, typer.Option(min=1.0, max=20.0, help="In inches; one column of a paper is 3.3.")] = 3.3,
    storage: Storage = None,
) -> None:
    """Write one figure for a paper."""
    from vispco.cli.plot import write_plot
    from vispco.storage.store import open_store

    with open_store(storage, read_only=True) as store:
        written = write_plot(store, experiment, output, what, split=split, search=search, width=width)
    print(written)
