"""Scores that compare a pruned model's answers with the plain model's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

import vispco
from conftest import SMALL
from test_tasks import loaded
from vispco.config import parse_study
from vispco.errors import ConfigError
from vispco.evaluation.agreement import agreed, lengths, likelihood
from vispco.pruning.schedules import Ratios, Step, keep_all, parse_schedule

STOP = [2]


def test_agreement_by_hand() -> None:
    plain = torch.tensor([[5, 6, 7, 2, 0], [5, 6, 7, 8, 9], [2, 0, 0, 0, 0]])
    assert lengths(plain, STOP).tolist() == [4, 5, 1]
    assert agreed(plain, plain, STOP).tolist() == [1, 1, 1]
    other = torch.tensor([[5, 6, 9, 2, 0], [4, 6, 7, 8, 9], [2, 1, 1, 1, 1]])
    assert agreed(other, plain, STOP).tolist() == [0.5, 0, 1]
    assert agreed(plain[:, :2], plain, STOP) == pytest.approx([2 / 4, 2 / 5, 1])


def test_likelihood_by_hand() -> None:
    """Probabilities 1/2 and 1/8 of the two tokens up to the stop, 1/3 of three; what comes behind does not count."""
    plain = torch.tensor([[1, 2, 0], [0, 1, 0]])
    logits = torch.zeros(2, 3, 3)
    logits[0, 0] = torch.tensor([0.25, 0.5, 0.25]).log()
    logits[0, 1] = torch.tensor([0.5, 0.375, 0.125]).log()
    logits[0, 2] = torch.tensor([-9.0, 9.0, 0.0])
    assert likelihood(logits, plain, STOP) == pytest.approx([0.25, 1 / 3])


def problem(copies: Any, score: str, **more: Any) -> vispco.Problem:
    splits = {"calibration": 1, "search": 2, "held_out": 1}
    options = {"path": copies("vizwiz"), "max_new_tokens": 4}
    tasks = [{"name": "vizwiz", "splits": splits, "options": options}]
    text = yaml.safe_dump(yaml.safe_load(SMALL) | {"tasks": tasks, "score": score, **more})
    model, processor = loaded("llava")
    return vispco.Problem(parse_study(text), text, model=model, processor=processor)


SCHEDULES = [keep_all(), Step(1, 0.25), Step(2, 0.0), Ratios([0.0] * 4)]


@pytest.fixture(scope="module")
def alone(copies: Any) -> dict[str, list[list[float]]]:
    """Both scores of every schedule and sample, each computed alone by ``generate`` and a forward over the answer."""
    asked = problem(copies, "task")
    model, processor = asked.model, asked.processor
    stop = model.generation_config.eos_token_id
    found: dict[str, list[list[float]]] = {"agreement": [], "likelihood": []}
    inputs = []
    for sample in asked.tasks[0].samples("search"):
        text = f"<image> {sample.prompt}"
        inputs.append(processor(images=list(sample.images), text=[text], return_tensors="pt"))
    for schedule in SCHEDULES:
        scores: dict[str, list[float]] = {"agreement": [], "likelihood": []}
        for given in inputs:
            n = given["input_ids"].shape[1]
            with torch.no_grad():
                plain = model.generate(**given, max_new_tokens=4, do_sample=False)[:, n:]
                with vispco.prune(model, method="fastv" if schedule.keep_ratio(4)[0] else "stride", schedule=schedule):
                    answer = model.generate(**given, max_new_tokens=4, do_sample=False)[:, n:]
                    cache = model(**given, use_cache=True)
                    logits = [cache.logits[:, -1:]]
                    for token in plain[0, :-1]:
                        mask = torch.ones(1, n + len(logits), dtype=torch.long)
                        logits.append(
                            model(
                                input_ids=token.view(1, 1),
                                attention_mask=mask,
                                past_key_values=cache.past_key_values,
                            ).logits
                        )
            stops = [] if stop is None else [stop]
            scores["agreement"].append(float(agreed(answer, plain, stops)[0]))
            scores["likelihood"].append(float(likelihood(torch.cat(logits, dim=1), plain, stops)[0]))
        for name, values in scores.items():
            found[name].append(values)
    return found


@pytest.mark.parametrize("score", ["agreement", "likelihood"])
def test_scores_are_those_of_each_sample_alone(copies: Any, alone: Any, score: str) -> None:
    asked = problem(copies, score)
    evaluator = vispco.Evaluator(asked)
    # A method that reads the layer before cannot drop tokens before layer 0, but for all of them.
    found = evaluator.evaluate(SCHEDULES, "search")
    for evaluation, expected in zip(found, alone[score], strict=True):
        assert list(evaluation.scores["vizwiz"]) == pytest.approx(expected, abs=1e-4)
        assert evaluation.accuracy == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    accuracies = [evaluation.accuracy for evaluation in found]
    assert accuracies[0] == max(accuracies)
    assert len({round(value, 6) for value in accuracies}) > 1
    if score == "agreement":
        assert accuracies[0] == 1
    assert vispco.Evaluator(problem(copies, "task")).ids(SCHEDULES, "search") != [e.id for e in found]


def test_scores_in_a_study(copies: Any) -> None:
    plain, other = problem(copies, "task").study, problem(copies, "agreement").study
    assert "score" not in plain.identity()
    assert other.identity()["score"] == "agreement"
    assert plain.spec_hash() != other.spec_hash()
    with pytest.raises(ConfigError, match="score"):
        problem(copies, "bleu")
    smaller = parse_schedule("step(layer=0, keep=1.0, resolution=0.5)")
    with pytest.raises(ConfigError, match=r"equal pictures; a schedule at resolution 0\.5 shows smaller ones"):
        vispco.Evaluator(problem(copies, "agreement")).evaluate([smaller])
    with pytest.raises(ConfigError, match="agreement compares answers to equal pictures; remove resolution"):
        problem(copies, "agreement", resolution=[1.0, 0.5])
