"""Where schedules run: what each server takes, what a study for one may search, and what is left of the gain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import SMALL, Cli
from pages import blocks, sections
from vispco.analysis.comparison import Comparison
from vispco.analysis.targets import compare_targets
from vispco.errors import ConfigError, ModelError, ScheduleError
from vispco.experiment.run import Run
from vispco.experiment.validation import validate
from vispco.exporting import Recommendation, server_settings
from vispco.integrations.vllm.architectures import PREFIX, architecture_of
from vispco.models.loading import demo_folder
from vispco.problem import Problem
from vispco.pruning.methods.base import make_method
from vispco.pruning.schedules import parse_schedule
from vispco.pruning.targets import TARGETS, target_named, targets_of
from vispco.storage.store import Store

STUDY = (
    SMALL.partition("searches:")[0]
    + """
defaults: ["fastv:k2-r75"]
searches:
  steps: {kind: random, trials: 16}
  early: {kind: random, trials: 12, family: constant, method: divprune}
  early-visionzip: {kind: grid, family: constant, method: visionzip}
"""
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('targets')}/t.db"
    Run(Problem.from_text(STUDY), Store(url)).run()
    return url


@pytest.mark.parametrize(
    ("schedule", "method", "expected"),
    [
        ("step(layer=0, keep=0.5)", "divprune", ["transformers", "vllm"]),
        ("step(layer=0, keep=0.5)", "visionzip", ["transformers", "vllm"]),
        ("step(layer=0, keep=0.5)", "vispruner", ["transformers"]),
        ("step(layer=0, keep=0.0)", "divprune", ["transformers"]),
        ("step(layer=2, keep=0.5)", "divprune", ["transformers"]),
        ("step(layer=2, keep=1.0)", "divprune", ["transformers", "vllm"]),
        ("multistep((0, 2), (0.5, 0.25))", "divprune", ["transformers"]),
        ("step(layer=2, keep=0.5)", "fastv", ["transformers"]),
        ("step(layer=0, keep=0.5)", "cdpruner", ["transformers", "openvino-genai"]),
        ("step(layer=0, keep=0.5)", "dart", ["transformers", "tensorrt-edge-llm"]),
    ],
)
def test_where_a_schedule_runs(schedule: str, method: str, expected: list[str]) -> None:
    assert targets_of(parse_schedule(schedule), make_method(method), 8) == expected


def test_what_the_servers_take() -> None:
    early = parse_schedule("step(layer=0, keep=0.25)")
    for target, method, expected in (
        ("transformers", "divprune", {}),
        ("vllm", "random", {"vispco": {"method": "random", "parameters": {"seed": 0}, "keep": 0.25}}),
        ("tensorrt-edge-llm", "dart", {"visualPrune": True, "dartReductionRatio": 0.75}),
        ("openvino-genai", "cdpruner", {"pruning_ratio": 75}),
    ):
        assert TARGETS[target].written(early, make_method(method), 8) == expected
    with pytest.raises(ScheduleError, match="method 'fastv' does not run on target 'vllm'; those that do: divprune, "):
        TARGETS["vllm"].written(early, make_method("fastv"), 8)
    with pytest.raises(ScheduleError, match="drops tokens before layer 0 only and keeps some; search family: constant"):
        TARGETS["vllm"].written(parse_schedule("step(layer=2, keep=0.5)"), make_method("divprune"), 8)
    with pytest.raises(ScheduleError, match="does not run on target 'openvino-genai', which has its own parameters"):
        TARGETS["openvino-genai"].written(early, make_method("cdpruner", {"relevance": "none"}), 8)
    with pytest.raises(ScheduleError, match=r"keep 0\.004 does not run on target 'openvino-genai', which takes whole"):
        TARGETS["openvino-genai"].written(parse_schedule("step(layer=0, keep=0.004)"), make_method("cdpruner"), 8)
    with pytest.raises(ConfigError, match="unknown target 'vlm'; did you mean 'vllm'"):
        target_named("vlm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("target: vlm", "did you mean 'vllm'"),
        ("target: vllm", "searches.steps: method 'fastv' does not run on target 'vllm'"),
        ("target: vllm\nmethod: divprune", "searches.steps: target 'vllm' drops tokens before layer 0 only, so family"),
        ("family: constant", "searches.steps: method 'fastv' reads the layer before, and family 'constant'"),
    ],
)
def test_a_study_that_cannot_run_there_is_refused(change: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(Problem.from_text(f"{STUDY}{change}\n"))
    assert message in str(refused.value)


@pytest.mark.parametrize("kind", ["lagrangian", "on_budget", "nsga2", "gp", "tpe", "random", "grid"])
def test_searches_that_can_and_cannot_drop_before_the_decoder(kind: str) -> None:
    options = {"nsga2": ", trials: 4", "gp": ", trials: 4", "tpe": ", trials: 4", "random": ", trials: 4"}
    text = f"{STUDY.partition('searches:')[0]}family: constant\nmethod: divprune\ntarget: vllm\nsearches:\n"
    problem = Problem.from_text(f"{text}  one: {{kind: {kind}{options.get(kind, '')}}}\n")
    if kind in ("lagrangian", "on_budget"):
        with pytest.raises(
            ConfigError, match=f"kind {kind!r} cannot use family 'constant'.*use gp, grid, halving, nsga2"
        ):
            validate(problem)
    else:
        validate(problem)


def test_the_target_is_no_part_of_what_is_searched() -> None:
    """It may be set on an experiment that has trials, and old databases know nothing of it."""
    plain, other = (Problem.from_text(STUDY + more).study for more in ("", "target: openvino-genai\n"))
    assert plain.spec_hash() == other.spec_hash()
    assert plain.identity() == other.identity()


def test_export_for_vllm_is_its_configuration(cli: Cli, ran: str, tmp_path: Path) -> None:
    file = tmp_path / "vllm.yaml"
    code, _, err = cli("export", "small", "--budget", 0.6, "--target", "vllm", "-o", file, "--storage", ran)
    assert code == 0, err
    settings = yaml.safe_load(file.read_text())
    code, out, _ = cli("export", "small", "--budget", 0.6, "--storage", ran)
    anywhere = json.loads(out)
    assert anywhere["targets"][0] == "transformers"
    given = settings["hf-overrides"]["vispco"]
    assert settings == {
        "model": str(demo_folder()),
        "served-model-name": "demo",
        "hf-overrides": {"architectures": ["VispcoLlavaForConditionalGeneration"], "vispco": given},
    }
    assert given["method"] in ("divprune", "visionzip")
    # The recommendation among those that run there, as if the others had not been measured.
    comparison = Comparison(Store(ran), "small")
    alone = Recommendation(comparison, TARGETS["vllm"])
    assert {search.entry for _, search in alone.pairs} == {"early", "early-visionzip"}
    chosen = alone.within(0.6)
    assert chosen is not None
    assert chosen[0].user_attrs["schedule"] == f"step(layer=0, keep={given['keep']!r})"
    assert chosen[1].method == given["method"]


def test_the_file_on_the_page_is_what_export_writes() -> None:
    _, block = blocks("docs/serve.md", "yaml", "vLLM")
    shown = yaml.safe_load(block)
    overrides = shown["hf-overrides"]
    schedule = parse_schedule(f"step(layer=0, keep={overrides['vispco']['keep']})")
    method = make_method(overrides["vispco"]["method"], overrides["vispco"]["parameters"])
    architecture = {"architectures": [PREFIX + "LlavaForConditionalGeneration"]}
    assert {**architecture, **TARGETS["vllm"].written(schedule, method, 32)} == overrides
    assert shown.keys() == {"model", "hf-overrides"}


def test_the_study_on_the_page_is_one_for_vllm() -> None:
    text, block = blocks("docs/serve.md", "yaml", "vLLM")
    model = yaml.safe_load(block)["model"]
    assert text.count(f"model: {model}\n") == 1
    problem = Problem.from_text(text.replace(f"model: {model}\n", "model: demo\n"))
    validate(problem)
    assert problem.study.target == "vllm"
    assert f"vispco export {problem.study.experiment} " in sections("docs/serve.md")["vLLM"]


def test_a_model_of_another_family_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """Else a study would be measured whose schedules its server cannot load."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}'
    )
    text = f"{STUDY.partition('searches:')[0]}family: constant\nmethod: divprune\nsearches: {{one: {{kind: grid}}}}\n"
    other = text.replace("model: demo\n", f"model: {tmp_path}\n")
    assert other != text
    validate(Problem.from_text(f"{other}target: openvino-genai\n".replace("method: divprune", "method: cdpruner")))
    with pytest.raises(ModelError, match=r"does not serve architecture 'Gemma3.*use target transformers"):
        validate(Problem.from_text(f"{other}target: vllm\n"))


def test_models_from_the_hub_keep_their_name(tmp_path: Path) -> None:
    """Only a folder that export puts in a model's place needs another name for clients."""
    (tmp_path / "config.json").write_text('{"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}')
    found = {"method": "divprune", "method_parameters": {}, "schedule": "step(layer=0, keep=0.5)", "keep_ratio": [0.5]}
    assert server_settings({**found, "model": str(tmp_path)}, "vllm").keys() == {"model", "hf-overrides"}


def test_export_says_what_it_cannot(cli: Cli, ran: str) -> None:
    for target, part in (
        (
            "openvino-genai",
            "none of its schedules runs on target 'openvino-genai', run a study with target: openvino-genai, "
            "family: constant and method: cdpruner",
        ),
        ("vlm", "unknown target 'vlm'"),
    ):
        code, _, err = cli("export", "small", "--budget", 0.6, "--target", target, "--storage", ran)
        assert (code, part in err) == (2, True), err


def test_architectures(tmp_path: Path) -> None:
    assert architecture_of(str(demo_folder("demo-qwen"))) == "VispcoQwen2_5_VLForConditionalGeneration"
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ModelError, match="does not serve architecture 'LlamaForCausalLM'"):
        architecture_of(str(tmp_path))
    with pytest.raises(ModelError, match="cannot read the configuration"):
        architecture_of(str(tmp_path / "none"))


def test_what_survives_on_each_target(cli: Cli, ran: str) -> None:
    """Against the definition: the score of the best that runs there, over the score of the published default."""
    (found,) = compare_targets(Store(ran), ["small"])["experiments"]
    rows = {row["target"]: row for row in found["targets"]}
    comparison = Comparison(Store(ran), "small")

    def score(entries: tuple[str, ...]) -> float:
        total: list[float] = []
        for budget in comparison.budgets:
            fitting: list[Any] = [
                ((-trial.values[0], trial.values[1]), search, trial)
                for search in comparison.searches
                if search.entry in entries
                for trial in search.trials
                if trial.values[1] <= budget + 1e-9
                and (entries != ("early", "early-visionzip") or "keep=0.0)" not in trial.user_attrs["schedule"])
            ]
            best = min(fitting, key=lambda one: one[0])
            measured = comparison.held_out(best[1], best[2])
            assert measured is not None
            total.append(measured.accuracy)
        return sum(total) / len(total)

    assert rows["transformers"]["score"] == pytest.approx(score(("steps", "early", "early-visionzip")))
    assert rows["vllm"]["score"] == pytest.approx(score(("early", "early-visionzip")))
    assert rows["openvino-genai"]["schedules"] == 0
    assert rows["openvino-genai"]["survives"] is None
    assert rows["transformers"]["survives"] == (1.0 if rows["transformers"]["score"] > found["baseline"] else None)
    for form in ((), ("--json",), ("--csv",)):
        code, out, err = cli("compare", "small", "--per-target", *form, "--storage", ran)
        assert code == 0, err
        assert "openvino-genai" in out
