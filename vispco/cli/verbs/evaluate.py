"""Measure one schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from vispco.cli.app import app
from vispco.cli.options import Adapter, Json, Quantization, Set
from vispco.errors import ConfigError


@app.command("eval")
def evaluate(
    study: Annotated[
        Optional[Path], typer.Argument(help="Experiment file (YAML); or none, with --model and --task.")
    ] = None,
    schedule: Annotated[
        Optional[str],
        typer.Option(help="A schedule's text, an exported file, or a published name [default: no pruning]."),
    ] = None,
    method: Annotated[Optional[str], typer.Option(help="Method [default: the schedule's own, or the study's].")] = None,
    split: Annotated[
        Optional[str], typer.Option(help="Of a study: search or held_out [default: held_out].", show_default=False)
    ] = None,
    overrides: Set = None,
    model: Annotated[Optional[str], typer.Option(help="Hub id, local folder, or demo.")] = None,
    task: Annotated[Optional[str], typer.Option(help="Benchmark; lmms-eval's names are known too.")] = None,
    option: Annotated[
        Optional[list[str]],
        typer.Option(help="Of the task: --option path=FOLDER --option split=test; may be repeated."),
    ] = None,
    samples: Annotated[
        Optional[int], typer.Option(min=1, help="This many, drawn evenly over categories [default: all].")
    ] = None,
    limit: Annotated[
        Optional[str], typer.Option(help="The first rows, as a number or a share, as lmms-eval counts.")
    ] = None,
    device: Annotated[Optional[str], typer.Option(help="cpu [default], cuda, cuda:1, auto, ...")] = None,
    dtype: Annotated[Optional[str], typer.Option(help="float32, bfloat16, float16 [default: by device].")] = None,
    attention: Annotated[Optional[str], typer.Option(help="sdpa [default], eager or flash_attention_2.")] = None,
    adapter: Adapter = None,
    quantization: Quantization = None,
    batch_size: Annotated[Optional[int], typer.Option(min=1, help="[default: 8]", show_default=False)] = None,
    log_samples: Annotated[Optional[Path], typer.Option(help="Write each answer to this JSONL file.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a model on a task, or one schedule of a study; nothing is stored."""
    from vispco.cli.evaluating import evaluate_model, evaluate_study, only_of, quantization_given

    alone = {
        "--option": option,
        "--samples": samples,
        "--limit": limit,
        "--device": device,
        "--dtype": dtype,
        "--attention": attention,
        "--adapter": adapter,
        "--quantization": quantization,
        "--batch-size": batch_size,
        "--log-samples": log_samples,
    }
    if study is not None:
        only_of("a study", "--model and --task", {"--model": model, "--task": task, **alone})
        evaluate_study(study, schedule, method, split, overrides, as_json)
        return
    if model is None or task is None:
        missing = " and ".join(name for name, value in (("--model", model), ("--task", task)) if value is None)
        raise ConfigError(f"nothing to measure without {missing}; give a study file, or --model NAME --task NAME")
    only_of("--model and --task", "a study", {"--split": split, "--set": overrides})
    place: dict[str, Any] = {"device": device, "dtype": dtype, "attention": attention}
    place |= {"adapter": adapter, "quantization": quantization_given(quantization)}
    evaluate_model(
        {"name": model, **{key: value for key, value in place.items() if value is not None}},
        task,
        option or [],
        samples=samples,
        limit=limit,
        schedule=schedule,
        method=method,
        batch_size=batch_size or 8,
        log=log_samples,
        as_json=as_json,
    )
