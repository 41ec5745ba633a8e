"""Serve optuna-dashboard."""

from __future__ import annotations

from typing import Annotated

import typer

from vispco.cli.app import app
from vispco.cli.options import Storage


@app.command()
def dashboard(
    storage: Storage = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
) -> None:
    """Serve optuna-dashboard on this database."""
    from vispco.dashboards.optuna.launcher import serve

    serve(storage, host, port)
