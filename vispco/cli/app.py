"""The command line's root: its help, ``--debug`` and ``--plugin``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(
    name="vispco",
    help="Find where and how hard to prune visual tokens in a vision-language model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    plugin: Annotated[
        Optional[list[Path]],
        typer.Option(
            help="Python file that registers methods, tasks, ... of your own; may be repeated, and follow the command."
        ),
    ] = None,
) -> None:
    if debug:
        os.environ["VISPCO_DEBUG"] = "1"
    if plugin:
        from vispco.plugin_files import load_plugin

        for path in plugin:
            load_plugin(path)
