"""Models with a PEFT adapter or with quantised weights: loaded, pruned, in a study, and told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import vispco
from conftest import SMALL, make_batch
from pages import blocks
from processors import llava
from vispco.config import parse_study
from vispco.errors import ConfigError, ModelError
from vispco.evaluation.evaluator import Evaluator
from vispco.experiment.run import Run
from vispco.models.families import adapter_for
from vispco.problem import Problem
from vispco.pruning.schedules import Step
from vispco.storage.store import Store
from vispco.testing import checks
from vispco.testing.tiny import LAYERS, TINY

peft = pytest.importorskip("peft")
BATCH = make_batch([(3, 1, 5)])
SCHEDULE = Step(1, 0.25)
INT8 = {"quant_method": "quanto", "weights": "int8"}


def save_adapter(folder: Path, model: Any, **more: Any) -> Path:
    """A LoRA with weights that count, as PEFT writes it."""
    torch.manual_seed(1)
    config = peft.LoraConfig(**{"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **more})
    peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model = TINY["llava"].build()
    model.save_pretrained(folder)
    llava(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapter"), vispco.load_model(str(base))[0])


def dropping_equals_hiding(model: Any) -> None:
    with vispco.prune(model, schedule=SCHEDULE) as session:
        logits = model(**BATCH, use_cache=False).logits
    kept = [session.kept(layer) for layer in range(LAYERS)]
    assert [len(layer[0]) for layer in kept] == [16, 4, 4, 4]
    with checks.hidden_from(adapter_for(model).model, BATCH, kept):
        wanted = model(**BATCH, use_cache=False).logits
    where = checks.text_places(adapter_for(model).model, BATCH)
    assert float((logits - wanted)[where].abs().max()) <= 1e-4


@torch.no_grad()
def test_an_adapter_is_that_of_peft(base: Path, adapter: Path) -> None:
    plain, _ = vispco.load_model(str(base))
    without = plain(**BATCH).logits
    theirs = peft.PeftModel.from_pretrained(plain, adapter).eval()(**BATCH).logits
    model, _ = vispco.load_model(str(base), adapter=str(adapter))
    assert torch.equal(model(**BATCH).logits, theirs)
    assert not torch.allclose(theirs, without, atol=1e-2)
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "lora" in name)
    # Updates can be merged, so they cost nothing.
    assert adapter_for(model).shape() == adapter_for(vispco.load_model(str(base))[0]).shape()
    dropping_equals_hiding(model)


def damaged(adapter: Path, folder: Path, kind: str) -> str:
    """A copy of the adapter that must not be taken."""
    weights, config = (
        load_file(adapter / "adapter_model.safetensors"),
        json.loads((adapter / "adapter_config.json").read_text()),
    )
    if kind == "other names":
        weights = {name.replace("language_model", "text_model"): tensor for name, tensor in weights.items()}
    elif kind == "half":
        weights = dict(list(weights.items())[::2])
    elif kind == "other size":
        weights = {name: torch.cat([tensor, tensor], dim=1) for name, tensor in weights.items()}
    elif kind == "other layers":
        config["target_modules"] = ["c_attn"]
    elif kind == "pickle":
        torch.save(weights, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if kind != "pickle":
        save_file(weights, folder / "adapter_model.safetensors")
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("other names", "weights for base_model.*the adapter that was trained for this model"),
        ("half", "has no weights for base_model"),
        ("other size", "cannot load adapter .*size mismatch"),
        ("other layers", "cannot load adapter .*c_attn"),
        ("pickle", "has no adapter_model.safetensors; weights are read from safetensors files only"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    base: Path, adapter: Path, tmp_path: Path, kind: str, said: str
) -> None:
    with pytest.raises(ModelError, match=said) as refused:
        vispco.load_model(str(base), adapter=damaged(adapter, tmp_path, kind))
    assert "\n" not in str(refused.value)


def test_other_adapters_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load adapter '/no/such'"):
        vispco.load_model(str(base), adapter="/no/such")
    tuned = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, token_dim=32, num_transformer_submodules=1,
        num_attention_heads=4, num_layers=4,
    )  # fmt: skip
    peft.get_peft_model(vispco.load_model(str(base))[0], tuned).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="PROMPT_TUNING puts tokens of its own before the prompt"):
        vispco.load_model(str(base), adapter=str(tmp_path))


# --- in a study --------------------------------------------------------------------------------------

STUDY = SMALL.replace("model: demo", "model: {name: demo, adapter: ADAPTER}")


@pytest.fixture(scope="module")
def demo_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("demo"), vispco.load_model("demo")[0], target_modules=["q_proj"])


def context(text: str) -> Any:
    problem = Problem.from_text(text)
    return Evaluator(problem).context("search", problem.default_method)


def test_results_with_adapters_are_told_apart(demo_adapter: Path, tmp_path: Path) -> None:
    """Also where only the adapter's scale differs, or another adapter lies in the same folder."""
    study = STUDY.replace("ADAPTER", str(tmp_path))
    save_file(load_file(demo_adapter / "adapter_model.safetensors"), tmp_path / "adapter_model.safetensors")
    config = json.loads((demo_adapter / "adapter_config.json").read_text())
    found = [context(SMALL)]
    for scale in (config["lora_alpha"], 4 * config["lora_alpha"]):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": scale}))
        found.append(context(study))
        assert context(study) == found[-1]
    assert found[0] != found[1] != found[2] != found[0]


def test_a_study_with_an_adapter_runs(demo_adapter: Path, tmp_path: Path, cli: Any) -> None:
    """Gradients too, and what it measures is the model with its adapter."""
    learned = "  lagrangian: {kind: lagrangian, dual_steps: 2, primal_steps: 2, batch: 8, check: 8, measure: 2}\n"
    text = STUDY.replace("ADAPTER", str(demo_adapter)).partition("  grid:")[0] + learned
    url = f"sqlite:///{tmp_path}/a.db"
    Run(Problem.from_text(text), Store(url)).run()
    model, processor = vispco.load_model("demo", adapter=str(demo_adapter))
    given = Evaluator(Problem.from_text(SMALL, model=model, processor=processor)).unpruned("search")
    code, out, err = cli("compare", "small", "--json", "--storage", url)
    assert code == 0, err
    assert json.loads(out)["unpruned"]["accuracy"] == given.accuracy
    plain = Evaluator(Problem.from_text(SMALL)).unpruned("search")
    assert plain.scores["mosaic-vqa"].tolist() != given.scores["mosaic-vqa"].tolist(), "the adapter counts"


def test_a_study_without_one_is_as_before() -> None:
    plain = parse_study(SMALL)
    named = parse_study(SMALL.replace("model: demo", "model: {name: demo, adapter: null, quantization: null}"))
    assert plain.identity() == named.identity()
    assert "adapter" not in plain.identity()["model"]
    other = parse_study(STUDY)
    assert other.identity() != plain.identity()
    assert other.spec_hash() != plain.spec_hash() == named.spec_hash()


def test_the_page_shows_a_model_that_a_study_takes() -> None:
    (block,) = blocks("docs/own.md", "yaml", "Your model")
    model = parse_study(SMALL.replace("model: demo", block.strip())).model
    assert model.adapter == "my-lora"
    assert model.quantization == {"quant_method": "bitsandbytes", "load_in_4bit": True}


# --- quantised ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_quantised_models_are_pruned(base: Path, adapter: Path) -> None:
    given = INT8
    plain, _ = vispco.load_model(str(base))
    model, _ = vispco.load_model(str(base), quantization=given)
    assert not torch.equal(model(**BATCH).logits, plain(**BATCH).logits), "weights are quantised"
    dropping_equals_hiding(model)
    both, _ = vispco.load_model(str(base), quantization=given, adapter=str(adapter))
    assert not torch.allclose(both(**BATCH).logits, model(**BATCH).logits, atol=1e-2)
    dropping_equals_hiding(both)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weights": "int8"}, "quant_method"),
        ({"quant_method": "quantum"}, "Unknown quantization type, got quantum"),
        ({"quant_method": "quanto", "weights": "int3"}, "int3"),
        ({"quant_method": "quanto", "weigths": "int8"}, "'quanto' has no option 'weigths'"),
        ({"quant_method": "awq"}, "needs a package|cannot load|quantization"),
    ],
)
def test_quantisation_that_cannot_be_done_is_refused(base: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=said) as refused:
        vispco.load_model(str(base), quantization=given)
    assert "\n" not in str(refused.value)
