"""Every family from a local folder with its real processor: loaded by name, measured by the evaluator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend

import vispco
from conftest import SMALL
from processors import PROCESSORS, gemma3, llava
from vispco.errors import ModelError
from vispco.evaluation.prepared import prepare
from vispco.models.loading import DEMOS, weights_hash
from vispco.pruning.needs import missing
from vispco.pruning.schedules import MultiStep
from vispco.search.gradient.distillation import Calibration
from vispco.survivors import survivors
from vispco.tasks.base import Sample
from vispco.tasks.rendering import render_prompt
from vispco.testing import checks
from vispco.testing.tiny import TINY

AT_ONCE = ("llava", "qwen2_5_vl", "gemma3", "mistral3")  # the others are slow


@pytest.fixture(
    params=[name if name in AT_ONCE else pytest.param(name, marks=pytest.mark.slow) for name in TINY],
    scope="module",
)
def folder(request: Any, tmp_path_factory: Any) -> Path:
    """A checkpoint folder as `save_pretrained` of model and processor writes it."""
    made: Path = tmp_path_factory.mktemp(request.param)
    model = TINY[request.param].build()
    processor = PROCESSORS[request.param](model)
    model.save_pretrained(made)
    processor.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def problem(folder: Path) -> vispco.Problem:
    return vispco.Problem.from_text(SMALL.replace("model: demo", f"model: {folder}"))


def test_the_command_line_on_a_folder(folder: Path, cli: Any, tmp_path: Path) -> None:
    method = "divprune" if "qwen3_5" in folder.name else "fastv"
    study = tmp_path / "study.yaml"
    study.write_text(
        f"experiment: folder\nmodel: {folder}\nmethod: {method}\nbudgets: 3\nsearches: {{grid: {{kind: grid}}}}\n"
        "tasks: [{name: mosaic-vqa, splits: {search: 4, held_out: 4}}]\n"
    )
    code, _, errors = cli("validate", study)
    assert code == 0, errors
    code, printed, errors = cli("eval", study, "--schedule", "step(layer=1, keep=0.5)", "--json")
    assert code == 0, errors
    assert 0.4 < json.loads(printed)["flops_ratio"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_vl_moe", "qwen3_5_moe", "glm4v_moe"])
def test_a_study_of_a_model_with_experts(name: str, cli: Any, tmp_path: Path) -> None:
    """A mixture-of-experts decoder on the embedded task, from its folder to a report and an exported schedule."""
    model = TINY[name].build()
    processor = PROCESSORS[name](model)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    study, storage = tmp_path / "study.yaml", ("--storage", f"sqlite:///{tmp_path}/experts.db")
    study.write_text(
        f"experiment: experts\nmodel: {tmp_path / 'model'}\nmethod: divprune\nbudgets: 3\ndefaults: []\n"
        "searches: {grid: {kind: grid}, tpe: {kind: tpe, trials: 12, batch: 4}}\n"
        "tasks: [{name: mosaic-vqa, splits: {search: 8, held_out: 8}}]\n"
    )
    exported = tmp_path / "best.json"
    for command in (
        ("run", study, *storage),
        ("report", "experts", "-o", tmp_path / "experts.html", *storage),
        ("export", "experts", "--budget", "0.7", "-o", exported, *storage),
        ("eval", study, "--schedule", exported, "--json"),
    ):
        code, printed, errors = cli(*command)
        assert code == 0, (command[0], errors)
    assert json.loads(printed)["flops_ratio"] <= 0.7


# Measured figures of the package's own models are of pixels that Pillow scaled.
@pytest.mark.parametrize("name", [*DEMOS, pytest.param("smol", marks=pytest.mark.slow)])
def test_pictures_of_the_demos_are_read_with_pillow(name: str) -> None:
    pytest.importorskip("torchvision")
    _, processor = vispco.load_model(name)
    assert isinstance(processor.image_processor, PilBackend)


def test_a_folder_is_loaded_and_measured(problem: Any) -> None:
    evaluator = vispco.Evaluator(problem)
    schedule = MultiStep((1, 3), (0.5, 0.2))
    for method in ("fastv", "fitprune", "sparsevlm", "random"):
        chosen = vispco.make_method(method)
        if missing(chosen, problem.adapter):
            continue
        found = evaluator.evaluate([schedule], "search", chosen)[0]
        assert found.flops_ratio == evaluator.flops_ratio(schedule, "search", chosen)
        assert 0.3 < found.flops_ratio < 1
        assert found.keep_ratio[1] == pytest.approx(0.5, abs=0.05)
    part = evaluator.prepared("search")[0]
    assert (part.n_visual > 0).all()
    # Features computed once stand in for pixels: the plain model on the processor's own output agrees.
    batch, model = part.batches[0], problem.model
    samples = [part.samples[row] for row in batch.rows]
    inputs = problem.processor(
        images=[list(sample.images) for sample in samples],
        text=[render_prompt(problem.processor, sample) for sample in samples],
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    with torch.no_grad():
        plain = model(**inputs).logits[:, -1]
        given = model(**problem.adapter.with_features(batch.inputs, batch.features)).logits[:, -1]
    assert torch.allclose(plain, given, atol=1e-5)


def test_a_prompt_begins_once() -> None:
    """Gemma 3's chat template and its tokenizer both write the token that begins a text."""
    processor = gemma3(TINY["gemma3"].build())
    sample = Sample("1", "1", [Image.new("RGB", (32, 32))], "what color is the shape", ())
    begins = "{{ bos_token }}" + processor.chat_template
    for template, tokenizer_adds in ((begins, True), (processor.chat_template, True), (begins, False)):
        processor.chat_template = template
        processor.tokenizer.add_bos_token = tokenizer_adds
        text = render_prompt(processor, sample)
        ids = processor(images=[sample.images], text=[text])["input_ids"][0]
        assert list(ids).count(processor.tokenizer.bos_token_id) == 1, (template, tokenizer_adds)
        assert ids[0] == processor.tokenizer.bos_token_id


def test_the_learned_search_runs_on_every_family(problem: Any) -> None:
    if any(map(problem.adapter.recurrent, range(problem.shape.layers))):
        calibration = Calibration(vispco.Evaluator(problem), vispco.make_method("divprune"), 8, 0)
        with pytest.raises(ModelError, match=r"no mask takes a token out of a recurrence .* grid, random, tpe"):
            calibration.loss(0, torch.tensor([1.0, 0.8, 0.5, 0.3]), 0.1)
        return
    for method in ("fastv", "fitprune", "sparsevlm"):
        calibration = Calibration(vispco.Evaluator(problem), vispco.make_method(method), 8, 0)
        ratios = torch.tensor([1.0, 0.8, 0.5, 0.3], requires_grad=True)
        (gradient,) = torch.autograd.grad(calibration.loss(0, ratios, 0.1), [ratios])
        assert torch.isfinite(gradient).all()
        assert bool((gradient[1:] != 0).any())
        assert np.isfinite(calibration.pruned_loss(MultiStep((1, 3), (0.5, 0.2)), 1))


def kept_cells(problem: Any, sample: Any, method: Any, schedule: Any, layer: int) -> int:
    """Visual tokens of one sample that enter ``layer`` and are cells of a picture, not newlines."""
    model, prompt = problem.model, render_prompt(problem.processor, sample)
    inputs = dict(problem.processor(images=[list(sample.images)], text=[prompt], return_tensors="pt"))
    with torch.no_grad(), vispco.prune(model, method=method, schedule=schedule) as session:
        model(**inputs)
        features = problem.adapter.encode_images(inputs)
    newline = getattr(model.model, "image_newline", torch.tensor(torch.nan))
    places = problem.adapter.visual_mask(inputs["input_ids"], None)[0].nonzero()[:, 0]
    cells = places[~(features == newline).all(dim=1)].tolist()
    return len({*cells} & {*session.kept(layer)[0]})


def test_tokens_are_drawn_for_every_family(problem: Any) -> None:
    sample, method = problem.tasks[0].samples("held_out")[0], vispco.make_method("stride")
    schedule = MultiStep((1, 3), (0.5, 0.0))
    found = survivors(problem, sample, method, schedule)
    assert sorted(found.kept) == [0, 1, 3]
    for layer, views in found.kept.items():
        assert sum(int(view.sum()) for view in views) == kept_cells(problem, sample, method, schedule, layer)
    assert all(view.all() for view in found.kept[0])
    assert not any(view.any() for view in found.kept[3])
    assert len(found.pictures) == len(found.kept[0])
    assert found.pictures[0].width > 0


def test_text_only_samples_beside_pictures(problem: Any) -> None:
    """A batch of the real processor with a sample that has no picture."""

    class Mixed(type(problem.tasks[0])):  # type: ignore[misc]
        def samples(self, split: str) -> list[Sample]:
            red = Image.new("RGB", (40, 40), "red")
            return [Sample(str(n), str(n), (red,) * n, "what color is it?", ("red",)) for n in (1, 0, 2)]

    part = prepare(problem, Mixed({"search": 3}), "search")
    one, none, two = part.n_visual.tolist()
    assert one > 0
    assert none == 0
    # Of several pictures together, LLaVA-OneVision sees thumbnails only.
    assert two == (2 * (9 + 1) if problem.model.config.model_type == "llava_onevision" else 2 * one)


def test_what_cannot_be_loaded_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load model") as error:
        vispco.load_model(str(tmp_path))
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match="unknown dtype 'float12'"):
        vispco.load_model("demo", dtype="float12")


# An offloaded Gemma 3 fails in transformers itself, without pruning: a weight of its projector stays behind.
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_offloaded_weights(name: str) -> None:
    """accelerate moves weights in and out around every module; tokens and logits are those of the whole model."""
    from accelerate import cpu_offload

    tiny = TINY[name]
    batch, schedule = tiny.batch([(3, 1, 5), (1, 1, 9)]), MultiStep((1, 3), (0.5, 0.2))
    offloaded = cpu_offload(tiny.build(), execution_device="cpu")
    assert next(offloaded.parameters()).is_meta
    for method in ("fastv", "fitprune", "sparsevlm"):
        found = []
        for model in (tiny.model(), offloaded):
            with torch.no_grad(), vispco.prune(model, method=method, schedule=schedule):
                found.append((model(**batch).logits, model.generate(**batch, max_new_tokens=4, do_sample=False)))
        # Weights that come in anew lie elsewhere in memory, and some kernels sum by alignment.
        torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-4)
        assert torch.equal(found[0][1], found[1][1])
    with pytest.raises(ModelError, match="are offloaded"):
        weights_hash(offloaded)


def test_placed_by_accelerate(tmp_path: Path) -> None:
    model = TINY["llava"].build()
    model.save_pretrained(tmp_path)
    llava(model).save_pretrained(tmp_path)
    loaded, _ = vispco.load_model(str(tmp_path), device="auto")
    batch = TINY["llava"].batch([(3, 1, 5)])
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.filterwarnings("ignore")
def test_quantised_weights() -> None:
    """int8 weights: nothing changes at keep 1, and a pruned forward is as near to float as the plain one."""
    from torch.ao.quantization import quantize_dynamic

    tiny = TINY["llava"]
    quantised = quantize_dynamic(tiny.build(), {torch.nn.Linear}, dtype=torch.qint8)
    batch = tiny.batch([(3, 1, 5)])
    checks.check_keep_one(quantised, batch, vispco.make_method("fastv"))
    with torch.no_grad(), vispco.prune(quantised, method="fastv", schedule=MultiStep((1, 3), (0.5, 0.2))) as session:
        logits = quantised(**batch).logits
        assert quantised.generate(**batch, max_new_tokens=3).shape[1] == batch["input_ids"].shape[1] + 3
    with torch.no_grad(), vispco.prune(tiny.model(), method="fastv", schedule=MultiStep((1, 3), (0.5, 0.2))) as exact:
        reference = tiny.model()(**batch).logits
    assert len(set(session.kept(1)[0]) & set(exact.kept(1)[0])) >= 7
    assert float((logits - reference)[:, -1].abs().mean()) < 0.2
