"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

Storage = Annotated[
    Optional[str],
    typer.Option(help="Database URL [default: VISPCO_STORAGE or sqlite:///vispco.db]", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Adapter = Annotated[Optional[str], typer.Option(help="PEFT adapter in the model: hub id or folder.")]
Quantization = Annotated[
    Optional[str], typer.Option(help="Of its weights while loading: '{quant_method: quanto, weights: int8}'.")
]
Set = Annotated[Optional[list[str]], typer.Option("--set", help="Override a key: --set tasks.0.splits.search=128")]
Only = Annotated[Optional[list[str]], typer.Option("--search", help="Run only this entry; may be repeated.")]
Workers = Annotated[Optional[int], typer.Option(min=1, help="Measure in this many processes of this machine (Ray).")]
RayAddress = Annotated[
    Optional[str],
    typer.Option("--ray", help="Measure on this Ray cluster: host:port or auto; with --workers, on at most this many."),
]
MaxDrop = Annotated[float, typer.Option(help="Points of accuracy below the unpruned model that may be lost.")]
CostName = Annotated[
    Optional[str], typer.Option(help="What is to be least: flops, kv_bytes, prefill_ms, ... [default: the study's].")
]
Limit = Annotated[
    Optional[list[str]],
    typer.Option(help="On another cost: kv_bytes=0.5, a share of the unpruned, or prefill_ms=120ms; may be repeated."),
]
TaskDrop = Annotated[
    Optional[list[str]],
    typer.Option(help="Points that a task may lose: 2 for every task, or NAME=2; may be repeated."),
]
Sure = Annotated[float, typer.Option(help="Confidence of the confirmation.")]
ProfileFile = Annotated[
    Optional[Path], typer.Option(help="Hardware profile [default: the one stored with the experiment].")
]
AnswerTokens = Annotated[int, typer.Option(min=1, help="Of an answer, for total_flops and latency_ms.")]
StudyTokens = Annotated[
    Optional[int],
    typer.Option("--answer-tokens", min=1, help="Of an answer, for total_flops and latency_ms [default: the study's]."),
]
BatchSize = Annotated[
    Optional[int], typer.Option("--batch", min=1, help="Prompts that run together [default: the study's].")
]
StudyFile = Annotated[Path, typer.Argument(help="Experiment file (YAML).")]
