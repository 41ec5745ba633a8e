"""The model's own generation settings in evaluations: followed as ``generate`` does, or refused before measuring."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast
from transformers.generation.stopping_criteria import StopStringCriteria

import vispco
from conftest import SMALL, fresh
from vispco.errors import ConfigError, MeasurementError, ModelError
from vispco.evaluation.decoding import answer_length
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.units import UnitRunner
from vispco.experiment.run import Run
from vispco.problem import Problem
from vispco.pruning.schedules import keep_all
from vispco.search.gradient import distillation as calibration
from vispco.storage.store import open_store
from vispco.tasks.mosaic_vqa import MosaicVQA

TOKENS = 3


@pytest.fixture(scope="module")
def few() -> Problem:
    torch.manual_seed(0)
    return Problem.from_text(SMALL.replace("search: 12", "search: 4").replace("calibration: 16", "calibration: 4"))


@pytest.fixture(autouse=True)
def settings(few: Problem, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The demo's settings, to be changed; it is made to go on talking after its one word."""
    config = copy.deepcopy(few.model.generation_config)
    config.eos_token_id, config.pad_token_id = None, 0
    monkeypatch.setattr(few.model, "generation_config", config)
    monkeypatch.setattr(MosaicVQA, "max_new_tokens", TOKENS)
    monkeypatch.setattr(MosaicVQA, "score", lambda self, sample, answer: (sum(answer.encode()) % 97) / 97)
    yield config
    assert few.model.generation_config is config, "an evaluation leaves its settings to the model"


def answers(problem: Problem, schedule: Any) -> list[str]:
    evaluator = Evaluator(problem)
    evaluator.evaluate([schedule])
    return [evaluator.runner.answers["search", "mosaic-vqa", row] for row in range(4)]


def by_hand(problem: Problem, schedule: Any) -> list[str]:
    """One sample after the other, from the pixels, by ``generate`` in a prune block."""
    found = []
    for sample in problem.tasks[0].samples("search"):
        inputs = problem.processor(images=list(sample.images), text=f"<image> {sample.question}", return_tensors="pt")
        with vispco.prune(problem.model, method="fastv", schedule=schedule):
            output = problem.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        tokens = output[0, inputs["input_ids"].shape[1] :]
        found.append(problem.processor.tokenizer.decode(tokens, skip_special_tokens=True))
    return found


FOLLOWED: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3},
    "beams that like long answers": {"num_beams": 2, "length_penalty": 3.0, "early_stopping": True},
    "repetition_penalty": {"repetition_penalty": 5.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "suppress_tokens": {"suppress_tokens": [4, 5, 6]},
    "sequence_bias": {"sequence_bias": [[[5], 30.0]]},
}


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("schedule", [keep_all(), vispco.Step(2, 0.25)], ids=str)
def test_followed(name: str, schedule: Any, few: Problem, settings: Any) -> None:
    plain = Evaluator(few).context("search", few.default_method)
    for key, value in FOLLOWED[name].items():
        setattr(settings, key, value)
    assert answers(few, schedule) == by_hand(few, schedule)
    changed = Evaluator(few).context("search", few.default_method)
    assert changed["decoding"] == FOLLOWED[name] != plain["decoding"]


@pytest.mark.parametrize("talks", [False, True], ids=["greedy", "with another setting"])
def test_stop_strings(talks: bool, few: Problem, settings: Any) -> None:
    """The answer ends with the first token that completes one of them."""
    if talks:
        settings.suppress_tokens = few.processor.tokenizer.all_special_ids
    schedule = vispco.Step(2, 0.25)
    whole = answers(few, schedule)
    stop = whole[0].split()[0]
    settings.stop_strings = [stop, "nowhere"]
    expected = []
    for text in whole:
        words = text.split(" ")
        ends = [number for number in range(1, len(words) + 1) if stop in " ".join(words[:number])]
        expected.append(" ".join(words[: ends[0]] if ends else words))
    assert answers(few, schedule) == expected
    assert not talks or expected != whole


def test_stop_strings_end_as_transformers_ends_them() -> None:
    """Byte-level tokens, of which one may hold the end of the stop string and more."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["a", "b", "ab", "ba", "\u0120a", "aab", "c", "\u0120"]
    plain = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain)
    generator = torch.Generator().manual_seed(0)
    for stop in ("aba", "b a", "c", "bb"):
        criterion = StopStringCriteria(tokenizer, [stop])
        for _ in range(50):
            tokens = torch.randint(len(words), (8,), generator=generator).tolist()
            ends = (n for n in range(1, 9) if bool(criterion(torch.tensor([tokens[:n]]), None)[0]))
            config = type("Config", (), {"stop_strings": stop})
            assert answer_length(config, tokenizer, tokens) == next(ends, 8), (stop, tokens)


SAME: dict[str, Any] = {
    "prompt_lookup_num_tokens": 3,
    "return_dict_in_generate": True,
    "output_scores": True,
    "num_return_sequences": 2,
    "cache_implementation": "static",
    "use_cache": False,
    "do_sample": True,
    "temperature": 9.0,
    "max_length": 3,
}


def test_what_changes_no_answer_is_left_out(few: Problem, settings: Any) -> None:
    """Plainly, and where another setting asks for the model's own ``generate``."""
    schedule = vispco.Step(2, 0.25)
    for more in ({}, {"repetition_penalty": 5.0}):
        for key, value in more.items():
            setattr(settings, key, value)
        expected = answers(few, schedule)
        for key, value in SAME.items():
            before = getattr(settings, key, None)
            setattr(settings, key, value)
            assert answers(few, schedule) == expected, key
            setattr(settings, key, before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_time", 0.1),
        ("guidance_scale", 1.5),
        ("penalty_alpha", 0.6),
        ("dola_layers", "low"),
        ("num_beam_groups", 2),
    ],
)
def test_refused_before_measuring(name: str, value: Any, few: Problem, settings: Any) -> None:
    setattr(settings, name, value)
    with pytest.raises(
        ConfigError, match=rf"generation setting {name} = .* cannot be followed in an evaluation; remove"
    ):
        Evaluator(few).evaluate([keep_all()])


def test_one_token_follows_the_settings_too(few: Problem, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MosaicVQA, "max_new_tokens", 1)
    plain = Evaluator(few)
    (before,) = plain.evaluate([keep_all()])
    words = {few.processor.tokenizer.convert_tokens_to_ids(word) for word in plain.runner.answers.values()}
    settings.suppress_tokens = sorted(words)
    other = Evaluator(few)
    (after,) = other.evaluate([keep_all()])
    assert before.id != after.id
    assert not set(plain.runner.answers.values()) & set(other.runner.answers.values())


# --- what cannot be measured ends no more than it must -------------------------------------------------


def broken(problem: Problem, monkeypatch: pytest.MonkeyPatch, bad: str, error: Exception | None = None) -> None:
    """The model fails wherever the prompt of sample ``bad`` is read."""
    whole = UnitRunner._together

    def fail(self: Any, unit: Any, part: Any, batch: Any, counts: Any) -> Any:
        if bad in batch.names:
            raise error or RuntimeError("index out of range in self")
        return whole(self, unit, part, batch, counts)

    monkeypatch.setattr(UnitRunner, "_together", fail)


def test_a_sample_that_the_model_cannot_run_is_named(few: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(few, monkeypatch, "search/1/0")
    with pytest.raises(MeasurementError, match=r"sample 'search/1/0' cannot be measured: RuntimeError: index out of"):
        Evaluator(few).evaluate([vispco.Step(2, 0.5)])


def test_a_sample_that_is_refused_is_named(few: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(few, monkeypatch, "search/1/0", ModelError("too many pictures; give one"))
    where = r"task 'mosaic-vqa': sample 'search/1/0': too many pictures; give one"
    for _ in range(2):  # the same error again does not collect names
        with pytest.raises(ModelError, match=f"^{where}$"):
            Evaluator(few).evaluate([vispco.Step(2, 0.5)])


def test_a_refusal_ends_its_entry_alone(few: Problem, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    whole = UnitRunner._together

    def refuse(self: Any, unit: Any, part: Any, batch: Any, counts: Any) -> Any:
        if unit.method.name == "random" and "search/1/0" in batch.names:
            raise ModelError("too many pictures; give one")
        return whole(self, unit, part, batch, counts)

    monkeypatch.setattr(UnitRunner, "_together", refuse)
    text = SMALL.partition("searches:")[0].replace("search: 12", "search: 4") + (
        "searches:\n  refused: {kind: random, trials: 1, method: random}\n  other: {kind: random, trials: 1}\n"
    )
    problem = fresh(few, text)
    with open_store(f"sqlite:///{tmp_path}/a.db") as store:
        run = Run(problem, store)
        with pytest.raises(
            ModelError, match="small/refused: task 'mosaic-vqa': sample 'search/1/0': too many pictures"
        ):
            run.run()
        assert set(run.failures) == {"small/refused"}
        assert len(store.trial_log("small/other").complete()) == 1


@pytest.mark.slow
def test_an_entry_that_fails_ends_no_other(few: Problem, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A teacher's answer that holds the visual token: the gradient search ends, with the sample's name."""
    text = SMALL.replace("  grid: {kind: grid}\n", "").replace("compute: lagrangian", "trials: 2")
    text = text.replace("search: 12", "search: 4").replace("trials: 13", "trials: 2")
    problem = fresh(few, text)
    token = problem.adapter.visual_token_ids()[0]
    whole = calibration.generated
    monkeypatch.setattr(calibration, "generated", lambda *given: torch.full_like(whole(*given), token))
    with open_store(f"sqlite:///{tmp_path}/a.db") as store:
        run = Run(problem, store)
        with pytest.raises(
            MeasurementError, match=r"small/lagrangian: sample 'calibration/\S+': .* visual token \d+.*"
        ):
            run.run()
        assert set(run.failures) == {"small/lagrangian"}
        done = {name: len(store.trial_log(f"small/{name}").complete()) for name in ("random", "tpe", "lagrangian")}
        assert done == {"random": 2, "tpe": 2, "lagrangian": 0}
        linked = store.linked("small", "schedule")
        assert linked, "what the others found is confirmed"
        monkeypatch.setattr(calibration, "generated", whole)
        assert Run(problem, store).run() > 0
        assert store.trial_log("small/lagrangian").complete()
