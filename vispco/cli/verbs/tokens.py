"""Draw the tokens that survive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from vispco.cli.app import app
from vispco.cli.options import Set, StudyFile


@app.command()
def tokens(
    study: StudyFile,
    schedule: Annotated[str, typer.Option(help="A schedule's text, an exported file, or a published name.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Picture to write.")] = Path("tokens.png"),
    sample: Annotated[int, typer.Option(help="Number of the held-out sample.")] = 0,
    image: Annotated[Optional[list[Path]], typer.Option(help="Your own picture instead of a sample.")] = None,
    question: Annotated[str, typer.Option(help="What to ask of your own picture.")] = "Describe the picture.",
    method: Annotated[Optional[str], typer.Option(help="Method [default: the schedule's own, or the study's].")] = None,
    overrides: Set = None,
) -> None:
    """Write a picture of the patches that survive at each pruning layer."""
    from vispco.cli.tokens import write_tokens
    from vispco.problem import Problem

    problem = Problem.from_yaml(study, overrides)
    print(write_tokens(problem, schedule, output, sample=sample, images=image, question=question, method=method))
