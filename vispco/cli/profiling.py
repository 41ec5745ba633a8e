"""``vispco profile`` and its ``--check``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vispco.cli.output import print_json, print_rows
from vispco.costs.checking import Check, check_profile, other_machine, summary
from vispco.costs.measuring import Effort, measure_profile
from vispco.costs.profile import FORMAT, busy, read_profile
from vispco.models.loading import load_model
from vispco.outputs import JSON, check_output, json_with, write_output


def write_profile(
    name: str, output: Path, place: dict[str, Any], methods: Sequence[str], batches: Sequence[int], effort: Effort
) -> Path:
    """Measure a profile and write it; returns where."""
    own = json_with("format", FORMAT)
    check_output(output, JSON, own=own)
    model, processor = load_model(name, **place)
    made = measure_profile(
        model,
        processor,
        name,
        methods=methods,
        batches=batches,
        effort=effort,
        say=lambda text: print(f"{name}: {text}", file=sys.stderr),
    )
    write_output(output, made.to_json(), JSON, own=own)
    if said := busy(max(timings.noise() for timings in made.batches.values())):
        print(f"{name}: {said}", file=sys.stderr)
    return output.resolve()


def check_file(
    name: str,
    file: Path,
    place: dict[str, Any],
    methods: Sequence[str],
    batches: Sequence[int],
    schedules: int,
    answer_tokens: int,
    effort: Effort,
    as_json: bool,
    ragged: bool = False,
) -> None:
    """Predict schedules from a profile, measure them, and print by how much it is wrong."""
    known = read_profile(file)
    model, processor = load_model(name, **place)
    if said := other_machine(model, known):
        print(f"{name}: {said}", file=sys.stderr)
    told: list[tuple[dict[str, Any], list[Check]]] = []
    for method in methods:
        for batch in batches:
            checks = check_profile(
                model,
                processor,
                known,
                method=method,
                batch=batch,
                schedules=schedules,
                answer_tokens=answer_tokens,
                effort=effort,
                ragged=ragged,
            )
            for cost in ("prefill_ms", "latency_ms"):
                rows = [check for check in checks if check.cost == cost]
                facts = {"cost": cost, "method": method, "batch": batch, "schedules": len(rows)}
                told.append(({**facts, **summary(rows)}, rows))
    if as_json:
        print_json([{**row, "rows": [asdict(one) for one in rows]} for row, rows in told])
    else:
        print_rows([row for row, _ in told])
