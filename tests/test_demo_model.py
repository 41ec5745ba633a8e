"""The shipped demo VLM: what it is, what it can do, and that its record is its own."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

import vispco
from conftest import SMALL
from vispco.evaluation.evaluator import Evaluator
from vispco.models.demo import train
from vispco.models.demo.build import build_model
from vispco.models.demo.train import data_hash
from vispco.models.loading import DEMO
from vispco.problem import Problem
from vispco.tasks.mosaic import TASK_MIX


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator(Problem.from_text(SMALL.replace("held_out: 12", "held_out: 512").replace("size: 8", "size: 64")))


def test_it_is_a_stock_llava_of_the_promised_size() -> None:
    model, processor = vispco.load_model("demo")
    assert type(model).__module__ == "transformers.models.llava.modeling_llava"
    assert type(processor).__module__ == "transformers.models.llava.processing_llava"
    assert model.config.text_config.num_hidden_layers >= 8
    assert (DEMO / "model.safetensors").stat().st_size <= 8_000_000
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_accuracy_with_and_without_the_picture(evaluator: Evaluator) -> None:
    assert evaluator.unpruned("held_out").accuracy >= 0.80
    assert evaluator.no_image("held_out").accuracy <= 0.45


def test_every_kind_of_question_is_learned(evaluator: Evaluator) -> None:
    """No kind may hide behind the mean: each is well above what the question alone gives."""
    plain, blind = evaluator.unpruned("held_out"), evaluator.no_image("held_out")
    kinds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    samples = evaluator.prepared("held_out")[0].samples
    for sample, a, b in zip(samples, plain.scores["mosaic-vqa"], blind.scores["mosaic-vqa"], strict=True):
        kinds[sample.extra["kind"]].append((a, b))
    for kind, pairs in kinds.items():
        accuracy = sum(a for a, _ in pairs) / len(pairs)
        assert accuracy >= 0.6, (kind, accuracy)


@pytest.mark.parametrize("mix", [None, TASK_MIX], ids=["see", "questions"])
def test_training_resumes_where_it_was_stopped(
    mix: dict[str, float] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after step 2 of 3 and started again: the weights of a run that was never stopped."""
    monkeypatch.setattr(train, "REPORT_EVERY", 1)
    monkeypatch.setattr(train, "VALIDATION_SCENES", 64)
    stage = train.Stage("s", 3, 2, 1e-3, mix, 2)

    def run(folder: Path, stop: int | None = None) -> Any:
        folder.mkdir(exist_ok=True)
        model: Any = build_model(0).train()
        drawn = train.draw_scenes

        def draw(batch: int, rng: Any) -> Any:
            nonlocal stop
            if stop == 0:
                raise KeyboardInterrupt
            stop = None if stop is None else stop - 1
            return drawn(batch, rng)

        with monkeypatch.context() as patch:
            patch.setattr(train, "draw_scenes", draw)
            train.run_stage(model, stage, 0, folder, "cpu", [])
        return model.state_dict()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop=2)
    whole, resumed = run(tmp_path / "a"), run(tmp_path / "b")
    changed = [name for name, value in build_model(0).state_dict().items() if not torch.equal(value, whole[name])]
    assert changed
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_training_record() -> None:
    record: dict[str, Any] = json.loads((Path(DEMO) / "training.json").read_text())
    assert record["data_sha256"] == data_hash()
    assert {"seed", "stages", "torch"} <= record.keys()
    assert {"color_3_hops", "exists", "count_like", "mean"} <= record["accuracy_on_calibration_pictures"].keys()
