"""Write a schedule, or an assembled model, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from vispco.cli.app import app
from vispco.cli.options import BatchSize, CostName, Limit, ProfileFile, Storage, StudyTokens, Sure, TaskDrop
from vispco.cli.output import print_json
from vispco.errors import ConfigError

QUESTION = ("cost", "limit", "max_task_drop", "sure", "profile", "answer_tokens", "batch")


@app.command()
def export(
    context: typer.Context,
    experiment: str,
    budget: Annotated[
        Optional[float], typer.Option(help="Upper bound on the cost, as a share of the unpruned model's.")
    ] = None,
    max_drop: Annotated[
        Optional[float], typer.Option(help="Instead of a budget: what `vispco choose` chooses.", show_default=False)
    ] = None,
    cost: CostName = None,
    limit: Limit = None,
    max_task_drop: TaskDrop = None,
    sure: Sure = 0.95,
    profile: ProfileFile = None,
    answer_tokens: StudyTokens = None,
    batch: BatchSize = None,
    output: Annotated[Optional[Path], typer.Option("-o", "--output", help="File [default: print it].")] = None,
    target: Annotated[
        Optional[str],
        typer.Option(help="Of --budget: only schedules that run there, as that server takes them [default: any]."),
    ] = None,
    storage: Storage = None,
) -> None:
    """Write the schedule for a budget, or for a loss of accuracy, as a file for vispco.prune or for a server."""
    import json

    import yaml

    from vispco.analysis.comparison import Comparison
    from vispco.cli.choosing import decided, pricing, question
    from vispco.exporting import export_decision, export_schedule, server_settings
    from vispco.outputs import JSON, SETTINGS, SETTINGS_HEAD, json_with, write_output
    from vispco.pruning.schedule_file import FORMAT
    from vispco.storage.store import open_store

    if (budget is None) == (max_drop is None):
        raise ConfigError("give one of --budget, a share of the unpruned compute, and --max-drop, points of accuracy")
    asked_with = [f"--{name.replace('_', '-')}" for name in QUESTION if _is_given(context, name)]
    if budget is not None and asked_with:
        belong = "belong" if len(asked_with) > 1 else "belongs"
        raise ConfigError(f"{', '.join(asked_with)} {belong} to --max-drop; leave out --budget")
    if max_drop is not None and target is not None:
        raise ConfigError(f"--target {target} belongs to --budget; leave out --max-drop")
    with open_store(storage, read_only=True) as store:
        comparison = Comparison(store, experiment)
        if max_drop is None:
            assert budget is not None
            found = export_schedule(comparison, budget, target)
        else:
            asked = question(max_drop, cost, limit or [], max_task_drop or [], sure, comparison.cost)
            priced = pricing(comparison, profile, answer_tokens, batch)
            found = export_decision(comparison, decided(comparison, asked, priced))
    settings = server_settings(found, target) if target is not None else {}
    if settings:
        text = f"{SETTINGS_HEAD}: {experiment}\n{yaml.safe_dump(settings, sort_keys=False)}"
        if output is None:
            print(text, end="")
            return
        write_output(output, text, SETTINGS)
    elif output is None:
        print_json(found)
        return
    else:
        write_output(output, json.dumps(found, indent=1) + "\n", JSON, own=json_with("format", FORMAT))
    print(output.resolve())


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@app.command("export-model")
def export_model(
    model: Annotated[str, typer.Argument(help="A model of this package that is assembled on first use: smol.")],
    folder: Annotated[Path, typer.Argument(help="Where to write it; new or empty.")],
) -> None:
    """Write an assembled model as an ordinary transformers checkpoint folder."""
    from vispco.models.smol.assemble import export_model as write

    if model != "smol":
        raise ConfigError(f"model {model!r} is a folder or a hub id already; export-model takes smol")
    print(write(folder))
