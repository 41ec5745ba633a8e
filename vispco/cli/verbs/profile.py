"""Measure a hardware profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from vispco.cli.app import app
from vispco.cli.options import Adapter, AnswerTokens, Json, Quantization


@app.command("profile")
def profile_model(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or demo.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write; with --check, to read.")] = Path(
        "profile.json"
    ),
    check: Annotated[
        bool, typer.Option("--check", help="Measure schedules that the profile has not seen, and print the error.")
    ] = False,
    method: Annotated[
        Optional[list[str]], typer.Option(help="Whose scoring is timed; may be repeated [default: fastv].")
    ] = None,
    batch: Annotated[
        Optional[list[int]], typer.Option(min=1, help="Prompts that run together; may be repeated [default: 1].")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=16, help="Longest prompt that is timed.")] = 1024,
    repeats: Annotated[int, typer.Option(min=3, help="Of each measurement; the median counts.")] = 15,
    edge_seconds: Annotated[float, typer.Option(min=0, help="How long edges of the staircase are searched.")] = 60.0,
    schedules: Annotated[int, typer.Option(min=3, help="With --check: how many.")] = 30,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="With --check: the prompts of a batch differ in length.")
    ] = False,
    answer_tokens: AnswerTokens = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16; auto: by device.")] = "auto",
    attention: Annotated[str, typer.Option(help="sdpa, eager or flash_attention_2.")] = "sdpa",
    adapter: Adapter = None,
    quantization: Quantization = None,
    as_json: Json = False,
) -> None:
    """Measure what a model's layers, scoring, vision tower and decode steps cost on this device."""
    from vispco.cli.evaluating import quantization_given
    from vispco.cli.profiling import check_file, write_profile
    from vispco.costs.measuring import Effort

    place: dict[str, Any] = {"device": device, "dtype": dtype, "attn_implementation": attention}
    place |= {"adapter": adapter, "quantization": quantization_given(quantization)}
    effort = Effort(repeats=repeats, max_tokens=max_tokens, edge_seconds=edge_seconds)
    if check:
        asked = (method or ["fastv"], batch or [1], schedules, answer_tokens, effort, as_json, ragged)
        check_file(model, output, place, *asked)
    else:
        print(write_profile(model, output, place, method or ["fastv"], batch or [1], effort))
