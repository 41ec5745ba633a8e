"""Write the HTML report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vispco.cli.app import app
from vispco.cli.options import MaxDrop, Storage


@app.command()
def report(
    experiments: list[str],
    output: Annotated[Path, typer.Option("-o", "--output", help="HTML file to write.")] = Path("report.html"),
    tokens: Annotated[
        int, typer.Option(min=0, max=50, help="Show the surviving tokens of this many samples; runs the model.")
    ] = 0,
    max_drop: MaxDrop = 1.0,
    storage: Storage = None,
) -> None:
    """Write one self-contained HTML page, of one experiment or of several side by side."""
    from vispco.dashboards.report import write_report
    from vispco.storage.store import open_store

    with open_store(storage, read_only=True) as store:
        write_report(store, experiments, output, tokens=tokens, max_drop=max_drop)
    print(output.resolve())
