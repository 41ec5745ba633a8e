"""The command line: parse, call, format. stdout carries results, stderr everything else."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from vispco.cli.output import print_json, print_rows
from vispco.errors import ConfigError, VispcoError

app = typer.Typer(
    name="vispco",
    help="Find where and how hard to prune visual tokens in a vision-language model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

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
Workers = Annotated[Optional[int], typer.Option(min=1, help="Measure in so many processes of this machine (Ray).")]
RayAddress = Annotated[
    Optional[str],
    typer.Option("--ray", help="Measure on this Ray cluster: host:port or auto; with --workers, on at most so many."),
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


def plugins_first(arguments: list[str]) -> list[str]:
    """Command-line arguments with every ``--plugin FILE`` before the command, which is where typer takes it."""
    first: list[str] = []
    rest = list(arguments)
    while any(word == "--plugin" or word.startswith("--plugin=") for word in rest):
        at = next(n for n, word in enumerate(rest) if word == "--plugin" or word.startswith("--plugin="))
        size = 1 if "=" in rest[at] else 2
        first += rest[at : at + size]
        del rest[at : at + size]
    return [*first, *rest]


def _executor(problem: Any, workers: int | None, ray: str | None) -> Any:
    if workers is None and ray is None:
        return nullcontext()
    from vispco.evaluation.ray_workers import RayWorkers

    return closing(RayWorkers(problem, workers, address=ray))


def _run(
    load: Callable[[], Any],
    storage: str | None,
    only: list[str] | None,
    fresh: bool,
    workers: int | None,
    ray: str | None,
) -> None:
    from vispco.analysis.comparison import compare
    from vispco.cli.comparison import print_comparison
    from vispco.cli.progress import TerminalProgress
    from vispco.running import Run
    from vispco.search.gradient.team import follow, is_follower, launched, leading, leave
    from vispco.storage.store import open_store, read_results

    if is_follower():
        follow()
        leave()
    progress = TerminalProgress()
    with leading() as team:
        problem = load()
        name = problem.study.experiment
        with open_store(storage) as store:
            with _executor(problem, workers, ray) as executor:
                driver = Run(problem, store, progress, executor, team)
                try:
                    added = driver.run(only, fresh=fresh, announce=True)
                except VispcoError:
                    if driver.failures:  # what the others have found is worth seeing
                        with read_results(store):
                            print_comparison(compare(store, [name]))
                    raise
            progress.say(f"{name}: {added} new trials" if added else f"{name}: finished before, nothing to do")
            with read_results(store):
                print_comparison(compare(store, [name]))
    if launched():
        leave()


@app.command()
def run(
    study: StudyFile,
    storage: Storage = None,
    search: Only = None,
    overrides: Set = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the experiment's trials first.")] = False,
    workers: Workers = None,
    ray: RayAddress = None,
) -> None:
    """Run an experiment file; started again, it resumes or says that it is finished."""
    from vispco.problem import Problem

    _run(lambda: Problem.from_yaml(study, overrides), storage, search, fresh, workers, ray)


@app.command()
def resume(
    experiment: str,
    storage: Storage = None,
    search: Only = None,
    workers: Workers = None,
    ray: RayAddress = None,
) -> None:
    """Continue an experiment from the database alone."""
    from vispco.problem import Problem
    from vispco.storage.store import open_store

    def load() -> Problem:
        with open_store(storage, read_only=True) as store:
            text = store.require_experiment(experiment)["spec_text"]
        return Problem.from_text(text, f"study stored for {experiment!r}")

    _run(load, storage, search, False, workers, ray)


@app.command("ls")
def ls(
    what: Annotated[
        str, typer.Argument(help="experiments, models, methods, support, schedules, tasks or searches")
    ] = "experiments",
    storage: Storage = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """List what there is."""
    from vispco.cli.listing import listing

    print_rows(listing(what, storage), as_json=as_json, as_csv=as_csv)


@app.command()
def status(
    experiment: Annotated[Optional[str], typer.Argument()] = None,
    workers: Annotated[bool, typer.Option("--workers", help="Only who works on what.")] = False,
    storage: Storage = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """What is done, what runs, and who holds it."""
    from vispco.cli.listing import print_status, status_rows, worker_rows
    from vispco.storage.store import open_store

    with open_store(storage, read_only=True) as store:
        rows, working = status_rows(store, experiment), worker_rows(store, experiment)
    if workers:
        print_rows(working, as_json=as_json, as_csv=as_csv, empty="nobody works")
        return
    if as_json or as_csv:
        print_rows(rows, as_json=as_json, as_csv=as_csv)
    else:
        print_status(rows, working)


@app.command()
def compare(
    experiments: Annotated[list[str], typer.Argument(help="One or more experiments.")],
    against: Annotated[
        Optional[str], typer.Option(metavar="ENTRY", help="Differences of all entries to this one, over seeds.")
    ] = None,
    score: Annotated[
        Optional[str], typer.Option(help="With --against: budget_score, or score_within_budget, its old name.")
    ] = None,
    anytime: Annotated[bool, typer.Option("--anytime", help="What each entry had found by which cost.")] = False,
    per_task: Annotated[bool, typer.Option("--per-task", help="Each search's choices, task by task.")] = False,
    violations: Annotated[
        bool, typer.Option("--violations", help="How gradient searches held their budgets, seed by seed.")
    ] = False,
    with_published: Annotated[
        bool, typer.Option("--with-published", help="The paper's tables beside the choices for its budgets.")
    ] = False,
    per_target: Annotated[
        bool, typer.Option("--per-target", help="What is left on servers that run less than everything.")
    ] = False,
    cost: CostName = None,
    profile: ProfileFile = None,
    search: Annotated[
        Optional[list[str]], typer.Option(help="Only this search, or entry with all its seeds; may be repeated.")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Fronts, indicators, costs and per-budget winners; or entries over their seeds."""
    from vispco.storage.store import open_store

    asked = {
        "--against": against is not None,
        "--anytime": anytime,
        "--per-task": per_task,
        "--violations": violations,
        "--with-published": with_published,
        "--per-target": per_target,
    }
    if sum(asked.values()) > 1:
        several = " and ".join(name for name, given in asked.items() if given)
        raise ConfigError(f"{several} are tables of their own; ask for one at a time")
    if score is not None and against is None:
        raise ConfigError(f"--score {score} says what --against compares; name an entry: --against grid")
    if search and any(asked.values()) and not per_task:
        raise ConfigError("--search is of the comparison and --per-task only; leave the other table out")
    if (cost or profile) and any(asked.values()) and not per_task:
        raise ConfigError("--cost and --profile redraw the comparison and --per-task only; leave the other table out")
    rows_of: Callable[[dict[str, Any]], list[dict[str, Any]]]
    show: Callable[[dict[str, Any]], None]
    with open_store(storage, read_only=True) as store:
        if against is not None:
            from vispco.analysis.seeds import compare_against
            from vispco.cli.over_seeds import against_rows, print_against

            found = compare_against(store, experiments, against, score or "budget_score")
            rows_of, show = against_rows, print_against
        elif anytime:
            from vispco.analysis.anytime import compare_anytime
            from vispco.cli.over_seeds import anytime_rows, print_anytime

            found = compare_anytime(store, experiments)
            rows_of, show = anytime_rows, print_anytime
        elif per_target:
            from vispco.analysis.targets import compare_targets
            from vispco.cli.targets import print_targets, target_rows

            found = compare_targets(store, experiments)
            rows_of, show = target_rows, print_targets
        elif violations:
            from vispco.analysis.violations import compare_violations
            from vispco.cli.violations import print_violations, violation_rows

            found = compare_violations(store, experiments)
            rows_of, show = violation_rows, print_violations
        elif with_published:
            from vispco.analysis.published_results import compare_published
            from vispco.cli.published import print_published, published_rows

            found = compare_published(store, experiments)
            rows_of, show = published_rows, print_published
        else:
            from vispco.analysis.comparison import compare as compare_experiments
            from vispco.cli.comparison import only, print_comparison, print_tasks, search_rows, task_rows

            if cost or profile:
                from vispco.cli.choosing import repriced

                found = repriced(store, experiments, cost, profile)
            else:
                found = compare_experiments(store, experiments)
            found = only(found, search) if search else found
            rows_of, show = (task_rows, print_tasks) if per_task else (search_rows, print_comparison)
    if as_json:
        print_json(found)
        return
    parts = found.get("experiments", [found])
    if as_csv:
        print_rows([row for part in parts for row in rows_of(part)], as_csv=True)
        return
    for number, part in enumerate(parts):
        if number:
            print()
        show(part)


@app.command()
def layers(
    experiment: str,
    what: Annotated[str, typer.Option(help="With --csv: learned, sensitivity or gradient.")] = "learned",
    storage: Storage = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """What was learned layer by layer, and what pruning at each layer costs."""
    from vispco.analysis.comparison import Comparison
    from vispco.analysis.layers import layer_record
    from vispco.cli.layers import layer_rows, print_layers
    from vispco.storage.store import open_store

    with open_store(storage, read_only=True) as store:
        found = layer_record(Comparison(store, experiment))
    if as_json:
        print_json(found)
    elif as_csv:
        print_rows(layer_rows(found, what), as_csv=True)
    else:
        print_layers(found)


@app.command()
def report(
    experiment: str,
    output: Annotated[Path, typer.Option("-o", "--output", help="HTML file to write.")] = Path("report.html"),
    tokens: Annotated[
        int, typer.Option(min=0, max=50, help="Show the surviving tokens of so many samples; runs the model.")
    ] = 0,
    storage: Storage = None,
) -> None:
    """Write one self-contained HTML page."""
    from vispco.dashboards.report import write_report
    from vispco.storage.store import open_store

    with open_store(storage, read_only=True) as store:
        write_report(store, experiment, output, tokens=tokens)
    print(output.resolve())


@app.command()
def plot(
    experiment: str,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write: .pdf, .svg or .png.")] = Path(
        "front.pdf"
    ),
    what: Annotated[str, typer.Option(help="front, choices, cost, schedules or trajectory.")] = "front",
    split: Annotated[str, typer.Option(help="With front: held_out or search.")] = "held_out",
    search: Annotated[
        Optional[str], typer.Option(help="With schedules or trajectory: of which search [default: the first].")
    ] = None,
    width: Annotated[float, typer.Option(min=1.0, max=20.0, help="In inches; one column of a paper is 3.3.")] = 3.3,
    storage: Storage = None,
) -> None:
    """Write one figure for a paper."""
    from vispco.cli.plot import write_plot
    from vispco.storage.store import open_store

    with open_store(storage, read_only=True) as store:
        written = write_plot(store, experiment, output, what, split=split, search=search, width=width)
    print(written)


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
        Optional[int], typer.Option(min=1, help="So many, drawn evenly over categories [default: all].")
    ] = None,
    limit: Annotated[Optional[str], typer.Option(help="The first so many, or a share, as lmms-eval counts.")] = None,
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


@app.command()
def choose(
    experiment: str,
    max_drop: MaxDrop = 1.0,
    cost: CostName = None,
    limit: Limit = None,
    max_task_drop: TaskDrop = None,
    sure: Sure = 0.95,
    profile: ProfileFile = None,
    answer_tokens: StudyTokens = None,
    batch: BatchSize = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the choice on the held-out split if it was not; runs the model.")
    ] = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """The decision: the cheapest schedule within a loss of accuracy, and whether held-out samples confirm it."""
    from vispco.analysis.comparison import Comparison
    from vispco.cli.choosing import cost_of, decided, pricing, print_decision, question
    from vispco.storage.store import open_store

    with open_store(storage, create=False, read_only=not measure) as store:
        comparison = Comparison(store, experiment)
        asked = question(max_drop, cost, limit or [], max_task_drop or [], sure, cost_of(comparison))
        found = decided(comparison, asked, pricing(comparison, profile, answer_tokens, batch), measure=measure)
    if as_json:
        print_json(found)
    else:
        print_decision(found)


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
    schedules: Annotated[int, typer.Option(min=3, help="With --check: how many.")] = 30,
    answer_tokens: AnswerTokens = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16; auto: by device.")] = "auto",
    attention: Annotated[str, typer.Option(help="sdpa, eager or flash_attention_2.")] = "sdpa",
    as_json: Json = False,
) -> None:
    """Measure what a model's layers, scoring, vision tower and decode steps cost on this device."""
    from vispco.cli.profiling import check_file, write_profile
    from vispco.costs.measuring import Effort

    place = {"device": device, "dtype": dtype, "attn_implementation": attention}
    effort = Effort(repeats=repeats, max_tokens=max_tokens)
    if check:
        check_file(model, output, place, method or ["fastv"], batch or [1], schedules, answer_tokens, effort, as_json)
    else:
        print(write_profile(model, output, place, method or ["fastv"], batch or [1], effort))


@app.command()
def export(
    experiment: str,
    budget: Annotated[Optional[float], typer.Option(help="Upper bound on flops_ratio.")] = None,
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
        typer.Option(help="Only schedules that run there, and what that server takes as YAML [default: any, as JSON]."),
    ] = None,
    storage: Storage = None,
) -> None:
    """Write the schedule for a budget, or for a loss of accuracy, as a file for vispco.prune or for a server."""
    import json

    import yaml

    from vispco.analysis.comparison import Comparison
    from vispco.cli.choosing import cost_of, decided, pricing, question
    from vispco.exporting import export_decision, export_schedule, server_settings
    from vispco.outputs import JSON, SETTINGS, SETTINGS_HEAD, json_with, write_output
    from vispco.pruning.schedule_file import FORMAT
    from vispco.storage.store import open_store

    if (budget is None) == (max_drop is None):
        raise ConfigError("give one of --budget, a share of the unpruned compute, and --max-drop, points of accuracy")
    if budget is not None and (cost or limit or max_task_drop or profile):
        raise ConfigError("--cost, --limit, --max-task-drop and --profile belong to --max-drop; leave out --budget")
    with open_store(storage, read_only=True) as store:
        comparison = Comparison(store, experiment)
        if max_drop is None:
            assert budget is not None
            found = export_schedule(comparison, budget, target)
        else:
            asked = question(max_drop, cost, limit or [], max_task_drop or [], sure, cost_of(comparison))
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


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or demo.")],
    schedule: Annotated[
        list[str],
        typer.Option(
            help="An exported file, a published name or a schedule's text; may be repeated, and begin with NAME=."
        ),
    ],
    name: Annotated[Optional[str], typer.Option(help="Model name for clients [default: MODEL].")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, auto, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16; auto: by device.")] = "auto",
    attention: Annotated[str, typer.Option(help="sdpa, eager or flash_attention_2.")] = "sdpa",
    adapter: Adapter = None,
    quantization: Quantization = None,
    remote_pictures: Annotated[bool, typer.Option("--remote-pictures", help="Fetch pictures over http(s).")] = False,
    local_pictures: Annotated[Optional[Path], typer.Option(help="Folder whose files may be named as pictures.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 1024,
    max_pictures: Annotated[int, typer.Option(min=0, help="Pictures of a request.")] = 8,
    max_megapixels: Annotated[float, typer.Option(help="Size of a picture.")] = 25.0,
    max_body_mb: Annotated[float, typer.Option(help="Size of a request.")] = 20.0,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 256,
) -> None:
    """Serve a model under exported schedules: OpenAI's chat API, on transformers' own server."""
    from vispco.cli.evaluating import quantization_given
    from vispco.cli.serving import serve_model
    from vispco.integrations.transformers_serve.limits import Limits

    limits = Limits(
        tokens=max_tokens,
        pictures=max_pictures,
        megapixels=max_megapixels,
        body_mb=max_body_mb,
        in_flight=max_requests,
        remote=remote_pictures,
        local=local_pictures,
    )
    where: dict[str, Any] = {"device": device, "dtype": dtype, "attention": attention}
    where |= {"adapter": adapter, "quantization": quantization_given(quantization)}
    serve_model(model, schedule, host, port, limits=limits, called=name, **where)


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


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help="Database URL to read.")],
    destination: Annotated[str, typer.Argument(help="Database URL to write; created if there is none.")],
    experiment: Annotated[
        Optional[list[str]], typer.Option("--experiment", help="Only this one; may be repeated [default: all].")
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Copy experiments between databases; started again, it goes on or says that all is there."""
    from dataclasses import asdict

    from vispco.storage.copying import copy_experiments
    from vispco.storage.store import open_store

    with open_store(source, read_only=True) as read, open_store(destination) as written:
        rows = [asdict(done) for done in copy_experiments(read, written, experiment)]
    print_rows(rows, as_json=as_json, as_csv=as_csv, empty="no experiments to copy")


@app.command("rm")
def remove_experiment(
    name: Annotated[
        str, typer.Argument(metavar="EXPERIMENT[/ENTRY[@SEED]]", help="By name: all of it, an entry, or one seed.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    storage: Storage = None,
) -> None:
    """Delete an experiment, an entry or one of its seeds; measured schedules stay in the cache."""
    from vispco.cli.removing import remove
    from vispco.storage.store import open_store

    with open_store(storage, create=False) as store:
        print(remove(store, name, sure=yes))


@app.command("import")
def import_study(
    study: Annotated[str, typer.Argument(help="Name of an Optuna study.")],
    into: Annotated[str, typer.Option("--into", help="Experiment to compare it in.")],
    source: Annotated[
        Optional[str], typer.Option("--from", help="Database URL of the study [default: the experiment's].")
    ] = None,
    entry: Annotated[Optional[str], typer.Option("--as", help="Name of the entry [default: the study's].")] = None,
    accuracy: Annotated[Optional[int], typer.Option(help="Objective that is the accuracy, from 0.")] = None,
    cost: Annotated[Optional[int], typer.Option(help="Objective that is the flops_ratio, from 0.")] = None,
    storage: Storage = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Take any Optuna study with an accuracy and a cost into an experiment, to compare with."""
    from dataclasses import asdict

    from vispco.storage.importing import import_trials
    from vispco.storage.store import open_store

    with open_store(storage, create=False) as store:
        done = import_trials(store, study, into, source=source, entry=entry, accuracy=accuracy, cost=cost)
    for note in done.notes:
        print(note, file=sys.stderr)
    row = asdict(done)
    del row["notes"]
    print_rows([row], as_json=as_json, as_csv=as_csv)


@app.command()
def dashboard(
    storage: Storage = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
) -> None:
    """Serve optuna-dashboard on this database."""
    from vispco.dashboards.optuna.launcher import serve

    serve(storage, host, port)


@app.command()
def validate(study: StudyFile, overrides: Set = None) -> None:
    """Check an experiment file: keys, names, options, model, splits, budgets and floor. Measures nothing."""
    from vispco.cli.checks import validate_study

    print_rows(validate_study(study, overrides))


@app.command("plan")
def plan_study(study: StudyFile, overrides: Set = None, as_json: Json = False, as_csv: Csv = False) -> None:
    """What a study will take: trials, PFLOPs, minutes and memory per entry. Runs one batch, measures nothing."""
    from vispco.estimate import estimate
    from vispco.problem import Problem
    from vispco.running import validate

    problem = Problem.from_yaml(study, overrides)
    validate(problem)
    print_rows(estimate(problem), as_json=as_json, as_csv=as_csv)


@app.command()
def doctor(storage: Storage = None, as_json: Json = False, as_csv: Csv = False) -> None:
    """Versions, devices, storage and offline mode."""
    from vispco.cli.checks import doctor_rows

    print_rows(doctor_rows(storage), as_json=as_json, as_csv=as_csv)


LONGEST_LINE = 1000  # characters of an error, whatever values it quotes


def main() -> None:
    """Entry point: errors become one line; exit 2 for what the user can mend, 1 for failures."""
    import warnings

    import optuna

    from vispco.storage.redaction import redact_text

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(plugins_first(sys.argv[1:]), prog_name="vispco", standalone_mode=False)
        if code == 130:  # which is how typer ends after Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except KeyboardInterrupt:
        print("vispco: stopped; what was finished is in the database, run the same command to go on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        usage = _usage_problem(error)
        if os.environ.get("VISPCO_DEBUG") and usage is None:
            text = traceback.format_exc().rstrip()
        elif usage == "":  # no arguments at all: the help is what is wanted
            text = str(error)
        else:
            if usage is not None:
                said = usage
            elif isinstance(error, VispcoError):
                said = " ".join(str(error).split())
            else:
                what = redact_text(" ".join(f"{type(error).__name__}: {error}".split()))
                said = f"unexpected failure: {what[:500]}; run again with vispco --debug ... for the traceback"
            text = f"vispco: {said if len(said) <= LONGEST_LINE else f'{said[:LONGEST_LINE]}...'}"
        print(redact_text(text), file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, VispcoError) else 1 if usage is None else 2)


def _usage_problem(error: Exception) -> str | None:
    """What typer finds wrong with a command line, in one line; None for other errors, "" where help is the answer."""
    said = getattr(error, "format_message", None)
    if said is None:
        return None
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "vispco"
    return f"{' '.join(said().split()).rstrip('.')}; see {command} --help"
