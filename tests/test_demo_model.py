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
from vispco.models.demo.train import data_hash
from vispco.models.loading import DEMO
from vispco.problem import Problem


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


def test_the_training_record() -> None:
    record: dict[str, Any] = json.loads((Path(DEMO) / "training.json").read_text())
    assert record["data_sha256"] == data_hash()
    assert {"seed", "stages", "torch"} <= record.keys()
    assert {"color_3_hops", "exists", "count_like", "mean"} <= record["accuracy_on_calibration_pictures"].keys()
