"""Check an experiment file, its price, and the installation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from vispco.cli.app import app
from vispco.cli.options import Csv, Json, Set, Storage, StudyFile
from vispco.cli.output import print_rows


@app.command()
def validate(study: StudyFile, overrides: Set = None) -> None:
    """Check an experiment file: keys, names, options, model, splits, budgets and floor. Measures nothing."""
    from vispco.cli.checks import validate_study

    print_rows(validate_study(study, overrides))


@app.command("plan")
def plan_study(
    study: StudyFile,
    profile: Annotated[
        Optional[Path], typer.Option(help="Hardware profile of the machine that will run it [default: the study's].")
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """What a study will take: trials, PFLOPs, minutes and memory per entry, here or on the machine of a profile. Runs
    at most one batch of each task, measures nothing."""
    from vispco.costs.profile import read_profile
    from vispco.experiment.estimate import estimate, machine
    from vispco.experiment.validation import validate
    from vispco.problem import Problem

    problem = Problem.from_yaml(study, overrides)
    if profile is not None:
        problem.profile = read_profile(profile)
    validate(problem)
    rows = estimate(problem)
    print(machine(problem), file=sys.stderr)
    print_rows(rows, as_json=as_json, as_csv=as_csv)


@app.command()
def doctor(storage: Storage = None, as_json: Json = False, as_csv: Csv = False) -> None:
    """Versions, devices, storage and offline mode."""
    from vispco.cli.checks import doctor_rows

    print_rows(doctor_rows(storage), as_json=as_json, as_csv=as_csv)
