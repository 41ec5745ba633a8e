"""``vispco eval`` without a study: the evaluator's numbers by their published names, and the protocol beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vispco
from conftest import SMALL, Cli, Told, fresh
from hub_copies import COPIES, write_copy
from processors import llava, qwen
from test_tasks import _offline, study  # noqa: F401
from vispco.cli.evaluating import print_plain
from vispco.config import content_hash
from vispco.errors import ConfigError, DataError, ModelError
from vispco.evaluation import plain
from vispco.evaluation.letters import letter_tokens, likeliest_letters
from vispco.evaluation.plain import evaluate_plain, plain_task, standard_error
from vispco.experiment.run import Run
from vispco.pruning.schedules import Step, keep_all
from vispco.storage.store import Store
from vispco.tasks.aggregation import parts
from vispco.tasks.base import make_task
from vispco.tasks.rendering import render_prompt
from vispco.testing.tiny import TINY

DEMO = {"name": "demo"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random LLaVA in a folder, with its processor."""
    path = tmp_path_factory.mktemp("model")
    model = TINY["llava"].build()
    model.save_pretrained(path)
    llava(model).save_pretrained(path)
    return path


# --- the command -----------------------------------------------------------------------------------------


def test_numbers_and_protocol(cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_copy(tmp_path / "pope", COPIES["pope"]())
    before = sorted(tmp_path.rglob("*"))
    command = ["eval", "--model", folder, "--task", "pope", "--option", f"path={data}", "--option", "max_new_tokens=2"]
    code, out, err = cli(*command, "--json", "--log-samples", tmp_path / "said.jsonl")
    assert code == 0, err
    found = json.loads(out)
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert len(rows) == found["protocol"]["samples"] == 6
    # What the model says by itself, scored by the task.
    task = make_task("pope", {"search": 6}, {"path": str(data)})
    model, processor = vispco.load_model(str(folder))
    said = []
    for sample in task.samples("search"):
        prompt = render_prompt(processor, sample)
        inputs = processor(images=[list(sample.images)], text=[prompt], return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=2, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        said.append(processor.tokenizer.decode(tokens[0], skip_special_tokens=True))
    assert [row["answer"] for row in rows] == said
    scores = np.array([task.score(s, a) for s, a in zip(task.samples("search"), said, strict=True)])
    assert found["metrics"] == pytest.approx(task.metrics(task.samples("search"), scores, said))
    assert {"pope_accuracy", "pope_f1_score", "pope_yes_ratio"} <= set(found["metrics"])
    protocol = found["protocol"]
    assert protocol["first_prompt"] == render_prompt(processor, task.samples("search")[0])
    assert protocol["first_prompt"].endswith("Answer the question using a single word or phrase.")
    assert protocol["data"] == [f"{data} (test)"]
    assert (protocol["scorer"], protocol["answer_by"], protocol["max_new_tokens"]) == ("standard", "generate", 2)
    assert (protocol["decoding"], protocol["dtype"], protocol["min_pixels"]) == ("greedy", "float32", None)
    assert protocol["model_hash"] == vispco.models.loading.weights_hash(model)
    assert {"vispco", "torch", "transformers"} <= set(protocol["versions"])
    assert found["pruning"] is None
    assert found["costs"]["flops_ratio"] == 1
    code, out, _ = cli(*command, "--schedule", "step(layer=1, keep=0.25)", "--method", "random", "--samples", 4)
    assert code == 0
    shown = dict(line.split(maxsplit=1) for line in out.splitlines() if line)
    assert (shown["samples"], shown["method"], shown["schedule"]) == ("4", "random", "step(layer=1, keep=0.25)")
    assert {"pope_f1_score", "versions", "model_hash", "post_prompt"} <= set(shown)
    assert max(map(len, out.splitlines())) < 260
    after = {path.name for path in tmp_path.rglob("*")} - {path.name for path in before}
    assert after == {"said.jsonl"}, "nothing is stored"


def test_options_of_the_task(cli: Cli, folder: Path, tmp_path: Path) -> None:
    data = write_copy(tmp_path / "chartqa", COPIES["chartqa"]())
    command = ["eval", "--model", folder, "--task", "chartqa", "--json", "--option", f"path={data}"]
    _, out, err = cli(*command, "--limit", 3, "--option", "columns.question=question", "--option", "max_new_tokens=1")
    found = json.loads(out)["protocol"]
    assert (found["samples"], found["limit"], found["max_new_tokens"]) == (3, 3, 1), err
    _, out, _ = cli(*command, "--limit", 0.5)
    assert json.loads(out)["protocol"]["samples"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure without --model and --task"),
        (["--model", "demo"], "without --task"),
        (["--task", "textvqa"], "without --model"),
        (["s.yaml", "--model", "demo"], "--model belongs to --model and --task, and a study was given"),
        (["s.yaml", "--device", "cuda"], "write --set model.device=cuda"),
        (["s.yaml", "--limit", "3"], "write --set tasks.0.options.limit=100"),
        (["s.yaml", "--log-samples", "x"], "--log-samples belongs to --model and --task"),
        (["--model", "demo", "--task", "pope", "--split", "search"], "write --option split=NAME"),
        (["--model", "demo", "--task", "pope", "--set", "a=b"], "write --option key=value"),
        (["--model", "demo", "--task", "pope", "--method", "fastv"], "not how many; add --schedule"),
        (["--model", "demo", "--task", "mosaic-vqa"], "say how many: --samples 500"),
        (["--model", "demo", "--task", "popw"], "unknown task 'popw'"),
        (["--model", "demo", "--task", "pope", "--option", "path"], "'path' is not key=value"),
        (["--model", "demo", "--task", "pope", "--option", "a=1", "--option", "a.b=2"], "'a' has a value already"),
        (["--model", "demo", "--task", "pope", "--option", "a=1", "--option", "a=2"], "a is given twice"),
        (["--model", "demo", "--task", "pope", "--option", "pth=1"], "no option 'pth'; did you mean 'path'"),
        (["--model", "demo", "--task", "pope", "--option", "limit=1", "--limit", "2"], "say the same"),
        (["--model", "demo", "--task", "pope", "--limit", "-2"], "limit"),
        (["--model", "/nowhere/x", "--task", "mosaic-vqa", "--samples", "2"], "cannot load model '/nowhere/x'"),
        (["--model", "demo", "--dtype", "f12", "--task", "mosaic-vqa", "--samples", "2"], "unknown dtype 'f12'"),
        (["--model", "demo", "--attention", "fast", "--task", "mosaic-vqa", "--samples", "2"], "'sdpa', 'eager'"),
        (
            ["--model", "demo", "--device", "cuda:9", "--task", "mosaic-vqa", "--samples", "2"],
            "cannot use device 'cuda:9'",
        ),
        (["--model", "demo", "--device", "gpu", "--task", "mosaic-vqa", "--samples", "2"], "cannot use device 'gpu'"),
    ],
)
def test_wrong_combinations(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("eval", *arguments)
    lines = [line for line in err.splitlines() if not line.startswith("mosaic-vqa: ")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_study_without_schedule_is_the_plain_model(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SMALL)
    code, out, err = cli("eval", tmp_path / "s.yaml", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["flops_ratio"] == 1
    assert set(found["keep_ratio"]) == {1.0}


# --- the function ----------------------------------------------------------------------------------------


def test_parts_add_up(problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few samples at a time give what the evaluator gives for all together."""
    given = (problem.model, problem.processor)
    schedule = "step(layer=2, keep=0.25)"
    at_once = evaluate_plain(DEMO, plain_task("mosaic-vqa", {}, 12), schedule=schedule, loaded=given)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(plain, "TOGETHER", 5)
    found = evaluate_plain(
        DEMO, plain_task("mosaic-vqa", {}, 12), schedule=schedule, loaded=given, watch=lambda *done: seen.append(done)
    )
    assert seen == [(5, 12), (10, 12), (12, 12)]
    assert found.answers == at_once.answers
    assert (found.metrics, found.accuracy) == (at_once.metrics, at_once.accuracy)
    assert found.costs == pytest.approx(at_once.costs)
    assert found.pruning == at_once.pruning
    known = vispco.Evaluator(problem).evaluate([Step(2, 0.25)], "held_out", vispco.make_method("fastv"))[0]
    assert (at_once.accuracy, at_once.costs["flops"]) == (known.accuracy, known.flops)
    assert at_once.costs["flops_ratio"] == pytest.approx(known.flops_ratio)


def test_benchmarks_that_are_no_means(copies: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Groups that are cut in two by what is measured together count all the same; no such number is printed as a
    mean."""
    model = TINY["llava"].build()
    for name, metric in (("mme", "mme_perception_score"), ("mmbench-en", "circular")):
        task = plain_task(name, {"path": copies(name), "max_new_tokens": 1})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plain, "TOGETHER", 3)
            found = evaluate_plain({"name": "tiny"}, task, loaded=(model, llava(model)))
        groups = [sample.group_id for sample in found.samples]
        assert found.standard_error == standard_error(parts(task.rule or "", found.scores, groups), groups)
        assert found.accuracy == pytest.approx(parts(task.rule or "", found.scores, groups).mean())
        assert metric in found.metrics
        print_plain(found)
        shown = capsys.readouterr().out
        assert f"accuracy ({task.rule})  " in shown
        assert "mean score" not in shown
        assert found.protocol["samples"] == len(found.answers) == task.available("held_out")


def test_standard_error_counts_groups() -> None:
    scores = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    assert standard_error(scores, list("abcdef")) == pytest.approx(np.sqrt(scores.var(ddof=1) / 6))
    # Three pairs with equal scores are three observations.
    paired = standard_error(np.repeat([1.0, 0.0, 1.0], 2), list("aabbcc"))
    assert paired == pytest.approx(np.sqrt(np.var([1, 0, 1], ddof=1) / 3))
    assert standard_error(scores, ["a"] * 6) is None


def test_pixel_limits_are_those_in_force(copies: Any) -> None:
    model = TINY["qwen2_5_vl"].build()
    task = plain_task("chartqa", {"path": copies("chartqa"), "max_pixels": 512, "max_new_tokens": 1}, 2)
    found = evaluate_plain({"name": "tiny"}, task, loaded=(model, qwen(model)))
    assert (found.protocol["min_pixels"], found.protocol["max_pixels"]) == (256, 512)


# --- answers by likelihood ---------------------------------------------------------------------------------


def lettered(family: str) -> tuple[Any, Any]:
    """A small model whose tokenizer knows option letters, and likes them."""
    model = TINY[family].build()
    processor = (llava if family == "llava" else qwen)(model)
    processor.tokenizer.add_tokens(list("ABCDE"))
    ids = processor.tokenizer.convert_tokens_to_ids(list("ABCDE"))
    assert max(ids) < model.config.get_text_config().vocab_size
    with torch.no_grad():
        model.lm_head.weight[ids] *= 6
    return model, processor


CHOICE = ("a-okvqa", "seed-bench", "mmbench-en", "scienceqa", "ai2d")


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_likelihood_and_generation_agree(copies: Any, family: str) -> None:
    """Wherever a generated answer begins with an option's letter, likelihood names the same."""
    model, processor = lettered(family)
    compared = differed = 0
    for name in CHOICE:
        for schedule in (None, "step(layer=1, keep=0.25)"):
            found = {}
            for way in ("generate", "likelihood"):
                tokens = {"max_new_tokens": 1} if way == "generate" else {}
                task = plain_task(name, {"path": copies(name), "answer_by": way, **tokens})
                found[way] = evaluate_plain({"name": "t"}, task, schedule=schedule, loaded=(model, processor))
            pairs = zip(*(found[way].answers for way in ("generate", "likelihood")), strict=True)
            for sample, (said, letter) in zip(found["generate"].samples, pairs, strict=True):
                assert letter in sample.lettered
                if said.strip() in sample.lettered:
                    compared += 1
                    assert said.strip() == letter, (name, sample.id)
                else:
                    differed += 1
            assert found["likelihood"].protocol["answer_by"] == "likelihood"
            assert found["likelihood"].protocol["max_new_tokens"] == 1
    assert compared >= 10, "the check must see letters"
    assert differed >= 1, "and answers that are none"


def test_likelihood_is_the_plain_models(copies: Any) -> None:
    """Against one forward of the model itself."""
    model, processor = lettered("llava")
    task = plain_task("scienceqa", {"path": copies("scienceqa"), "answer_by": "likelihood"})
    found = evaluate_plain({"name": "t"}, task, loaded=(model, processor))
    for sample, answer in zip(found.samples, found.answers, strict=True):
        prompt = render_prompt(processor, sample)
        inputs = processor(images=[list(sample.images)], text=[prompt], return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        worth = {letter: float(logits[processor.tokenizer.convert_tokens_to_ids(letter)]) for letter in sample.lettered}
        assert answer == max(worth, key=worth.__getitem__)


def test_a_letter_is_worth_its_best_token() -> None:
    class Tokenizer:
        """As in Llama: a letter behind a blank is another token than one within a word."""

        vocabulary = {"A": [7], " A": [3], "\nA": [9, 7], "B": [8], " B": [4], "\nB": [9, 8]}
        texts = {7: "A", 3: " A", 8: "B", 4: " B", 9: "\n"}

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            assert not add_special_tokens
            return self.vocabulary.get(text, [9, 0])

        def decode(self, ids: list[int]) -> str:
            return self.texts.get(ids[0], "?")

    tokenizer = Tokenizer()
    assert letter_tokens(tokenizer, "A") == (3, 7)
    logits = torch.zeros(3, 10)
    logits[0, 4], logits[0, 7] = 2.0, 1.0
    logits[1, 3], logits[1, 8] = 5.0, 4.0
    logits[2, 8] = 1.0
    assert likeliest_letters(logits, [2, 2, 1], tokenizer) == ["B", "A", "A"]
    with pytest.raises(ModelError, match=r"no token for the option letter 'C'.*answer_by: generate"):
        likeliest_letters(logits, [3, 2, 2], tokenizer)


def test_likelihood_is_stored_apart(copies: Any) -> None:
    ways = [
        make_task("ai2d", {"search": 2}, {"path": copies("ai2d"), "answer_by": way})
        for way in ("generate", "likelihood")
    ]
    first, second = (task.fingerprint() for task in ways)
    assert first != second
    assert "answer_by" not in first, "what was stored before is found again"
    texts = [
        study("llava", [{"name": "ai2d", "splits": dict.fromkeys(vispco.tasks.base.SPLITS, 1), "options": options}])
        for options in (
            {"path": copies("ai2d"), "max_new_tokens": 1},
            {"path": copies("ai2d"), "answer_by": "likelihood"},
        )
    ]
    method = vispco.make_method("fastv")
    hashes = {content_hash(vispco.Evaluator(problem).context("search", method)) for problem in texts}
    assert len(hashes) == 2


def test_where_likelihood_does_not_apply(copies: Any, problem: Any) -> None:
    def samples(name: str, **options: Any) -> Any:
        return make_task(name, {"search": 2}, {"path": copies(name), "answer_by": "likelihood", **options}).samples(
            "search"
        )

    with pytest.raises(DataError, match=r"row 0 of .*needs options, and there are none; use answer_by: generate"):
        samples("textvqa")
    with pytest.raises(DataError, match="needs options"):
        samples("mmmu")  # whose open questions have none
    with pytest.raises(ConfigError, match="max_new_tokens 5 with answer_by: likelihood"):
        samples("ai2d", max_new_tokens=5)
    with pytest.raises(ConfigError, match="'generate' or 'likelihood'"):
        samples("ai2d", answer_by="guess")
    # The demo reads words, not letters.
    task = plain_task("ai2d", {"path": copies("ai2d"), "answer_by": "likelihood"})
    with pytest.raises(ModelError, match="no token for the option letter 'A'"):
        evaluate_plain(DEMO, task, loaded=(problem.model, problem.processor))


def test_unpruned_is_the_default(problem: Any) -> None:
    found = evaluate_plain(DEMO, plain_task("mosaic-vqa", {}, 12), loaded=(problem.model, problem.processor))
    assert found.accuracy == vispco.Evaluator(problem).evaluate([keep_all()], "held_out")[0].accuracy


def test_prompts_that_the_model_cannot_read_are_warned_of(cli: Cli, tmp_path: Path, problem: Any) -> None:
    """Once by ``eval``, by ``validate`` and by a run; nothing is said where what is written after questions is left
    out. The demo then answers mosaics as it does those of its own task."""
    rows = []
    for number, sample in enumerate(problem.tasks[0].samples("search")):
        sample.images[0].save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": sample.question, "answer": sample.answers[0]})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", "--model", "demo", "--task", "vqa-json", "--option", f"path={data}", "--json"]
    _, out, err = cli(*command)
    assert json.loads(out)["accuracy"] == 0
    assert err.count("task 'vqa-json': the model's tokenizer does not know 4") == 1
    _, out, err = cli(*command, "--option", "post_prompt=")
    assert json.loads(out)["accuracy"] == vispco.Evaluator(problem).unpruned("search").accuracy > 0
    assert "tokenizer" not in err
    given = "{calibration: 2, search: 4, held_out: 4}"
    text = f"experiment: own\nmodel: demo\ntasks: [{{name: vqa-json, splits: {given}, options: {{path: {data}}}}}]\n"
    asked = tmp_path / "study.yaml"
    asked.write_text(f"{text}budgets: 1\nsearches: {{random: {{kind: random, trials: 1}}}}\n")
    assert "does not know" in cli("validate", asked)[1]
    assert "does not know" in cli("eval", asked)[2]
    store, told = Store(f"sqlite:///{tmp_path}/a.db"), Told()
    Run(fresh(problem, asked.read_text()), store, told).run()
    assert sum("does not know" in line for line in told.said) == 1
    store.engine.dispose()
