"""The plug-in for lmms-eval: against the installed package where there is one, else against its interface.

The interface is what lmms-eval 0.7.3 calls: requests with ``args``, ``task_dict``, ``cache_hook``.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import vispco
from hub_copies import COPIES, picture, write_copy
from pages import blocks, sections
from processors import llava
from vispco.errors import UserError
from vispco.integrations.lmms_eval import MODEL, manifest
from vispco.pruning.session import PruningSession
from vispco.tasks.base import ALIASES, Sample, make_task
from vispco.tasks.rendering import render_prompt
from vispco.testing.tiny import TINY

INSTALLED = importlib.util.find_spec("lmms_eval") is not None
ROOT = Path(__file__).parent.parent
SCHEDULE = "step(layer=1, keep=0.25)"


class Hook:
    def add_partial(self, kind: str, asked: Any, answer: str) -> None:
        return None


class Lmms:
    """What lmms-eval's base class gives a model."""

    is_simple = True

    def __init__(self) -> None:
        self.cache_hook, self.task_dict = Hook(), {}


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def model_class() -> Iterator[Any]:
    """The plug-in's class, on a stand-in for lmms-eval where that is not installed."""
    name = MODEL.rpartition(".")[0]
    with pytest.MonkeyPatch.context() as patch:
        if not INSTALLED:
            for module in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
                patch.setitem(sys.modules, module, ModuleType(module))
            given = {"lmms_eval.api.model": {"lmms": Lmms}, "lmms_eval.models.registry_v2": {"ModelManifest": Manifest}}
            for module, names in given.items():
                made = ModuleType(module)
                vars(made).update(names)
                patch.setitem(sys.modules, module, made)
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module(name).VispcoModel
    if not INSTALLED:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model = TINY["llava"].build()
    model.save_pretrained(path)
    llava(model).save_pretrained(path)
    return path


DOCS = [{"question": f"what color is {'the ' * number}shape ?", "image": number} for number in range(5)]
TASKS = {"mine": {"test": DOCS}}


def visuals(doc: Any) -> list[Any]:
    return [picture(doc["image"])]


def requests(settings: dict[str, Any], count: int = len(DOCS)) -> list[Any]:
    return [
        SimpleNamespace(args=(DOCS[number]["question"], dict(settings), visuals, number, "mine", "test"))
        for number in range(count)
    ]


def plain_inputs(model: Any, number: int, text: str = "") -> Any:
    prompt = render_prompt(model.processor, Sample("", "", visuals(DOCS[number]), text or DOCS[number]["question"], ()))
    return model.processor(images=[visuals(DOCS[number])], text=[prompt], return_tensors="pt")


@pytest.mark.parametrize("schedule", [None, SCHEDULE, f"'{SCHEDULE}'"])
def test_answers_are_those_of_generate(model_class: Any, folder: Path, schedule: str | None) -> None:
    for size in (1, 3):
        model = model_class(str(folder), schedule=schedule, device="cpu", batch_size=size)
        model.task_dict = TASKS
        found = model.generate_until(requests({"max_new_tokens": 4, "temperature": 0, "until": ["\n\n"]}))
        expected = []
        for number in range(len(DOCS)):
            inputs = plain_inputs(model, number)
            if schedule is None:
                tokens = model.model.generate(**inputs, max_new_tokens=4, do_sample=False)
            else:
                with vispco.prune(model.model, schedule=vispco.parse_schedule(SCHEDULE)) as session:
                    tokens = model.model.generate(**inputs, max_new_tokens=4, do_sample=False)
                assert session.counts.tolist() == [[16, 4, 4, 4]]
            new = tokens[0, inputs["input_ids"].shape[1] :]
            expected.append(model.processor.tokenizer.decode(new, skip_special_tokens=True))
        assert found == expected
    assert len(set(found)) > 1
    assert not model.model._forward_pre_hooks, "no trace is left"


def test_pruning_changes_what_is_said(model_class: Any, folder: Path) -> None:
    said = []
    for schedule in (None, "step(layer=1, keep=0)"):
        model = model_class(str(folder), schedule=schedule, device="cpu", batch_size=5)
        model.task_dict = TASKS
        said.append(model.generate_until(requests({"max_new_tokens": 6})))
    assert said[0] != said[1]


@pytest.mark.parametrize("beams", [1, 2])
def test_random_tokens_follow_the_sample_not_its_question(model_class: Any, folder: Path, beams: int) -> None:
    """One question about many pictures is asked with another choice of tokens of each, whatever the batch."""
    same = {"mine": {"test": [{"question": "what is this ?", "image": 0}] * 4}}
    kept: dict[int, list[Any]] = {}
    for size in (1, 2, 4):
        model = model_class(str(folder), schedule=SCHEDULE, method="random", device="cpu", batch_size=size)
        model.task_dict, kept[size] = same, []
        inside = model.pruned

        @contextmanager
        def watched(samples: Any, size: int = size, inside: Any = inside) -> Iterator[Any]:
            with pytest.MonkeyPatch.context() as patch:
                given = PruningSession._begin_prefill

                def begin(session: Any, *arguments: Any) -> None:
                    given(session, *arguments)
                    sessions.append(session)

                sessions: list[Any] = []
                patch.setattr(PruningSession, "_begin_prefill", begin)
                with inside(samples):
                    yield
                kept[size] += [places for session in sessions for places in session.kept(1)]

        model.pruned = watched
        questions = [
            SimpleNamespace(
                args=("what is this ?", {"max_new_tokens": 1, "num_beams": beams}, visuals, n, "mine", "test")
            )
            for n in range(4)
        ]
        model.generate_until(questions)
        assert len(kept[size]) == 4 * beams
    assert kept[1] == kept[2] == kept[4]
    assert len(set(map(tuple, kept[1]))) == 4


def test_settings_of_a_task(model_class: Any, folder: Path) -> None:
    """Requests with other settings run apart, keep their place, and end where the task says."""
    model = model_class(str(folder), device="cpu", batch_size=4)
    model.task_dict = TASKS
    told: list[Any] = []
    model.cache_hook = SimpleNamespace(add_partial=lambda *given: told.append(given))
    short, long = requests({"max_new_tokens": 1}), requests({"max_new_tokens": 5})
    mixed = [pair[i % 2] for i, pair in enumerate(zip(short, long, strict=True))]
    found = model.generate_until(mixed)
    alone = [model.generate_until([request])[0] for request in mixed]
    assert found == alone
    assert len(told) == 10
    stop = next(answer.split()[1] for answer in model.generate_until(long) if len(answer.split()) > 1)
    for until in (stop, [stop]):
        cut = model.generate_until(requests({"max_new_tokens": 5, "until": until}))
        assert cut == [answer.split(stop)[0] if stop in answer else answer for answer in model.generate_until(long)]


@pytest.mark.parametrize("schedule", [None, SCHEDULE])
def test_likelihood_of_a_continuation(model_class: Any, folder: Path, schedule: str | None) -> None:
    model = model_class(str(folder), schedule=schedule, device="cpu")
    model.task_dict = TASKS
    tokenizer, seen = model.processor.tokenizer, 0
    for number in range(len(DOCS)):
        inputs = plain_inputs(model, number)
        with model.pruned([]):
            tokens = model.model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        new = tokens[0, inputs["input_ids"].shape[1] :].tolist()
        greedy = tokenizer.decode(new)
        if tokenizer(greedy, add_special_tokens=False)["input_ids"] != new:
            continue  # a random model may say tokens that are no text
        seen += 1
        for target, is_greedy in ((greedy, True), ("red circle", False)):
            given: Any = target if number else (lambda doc, target=target: target)
            request = SimpleNamespace(args=(DOCS[number]["question"], given, visuals, number, "mine", "test"))
            ((loss, was_greedy),) = model.loglikelihood([request])
            assert was_greedy == is_greedy
            if schedule is None:
                ids = tokenizer(target, add_special_tokens=False, return_tensors="pt")["input_ids"]
                longer = model.adapter.with_text(dict(inputs), ids)
                with torch.no_grad():
                    logits = model.model(**longer).logits[0, -ids.shape[1] - 1 : -1]
                expected = torch.nn.functional.cross_entropy(logits, ids[0])
                assert loss == pytest.approx(float(expected), abs=1e-4)
    assert seen >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "fastv"}, "add schedule=best.json"),
        ({"batch_size": "auto"}, "batch_size 'auto'.*give a number"),
        ({"schedule": "step(layer=9, keep=0.5)"}, "layers 0 to 3"),
        ({"schedule": "nowhere.json"}, "No such file"),
        ({"schedule": SCHEDULE, "method": "fastw"}, "did you mean 'fastv'"),
        ({"max_pixels": 400}, "pictures of any size equal"),
        ({"device": "gpu"}, "cannot use device 'gpu'"),
    ],
)
def test_mistakes_are_said_before_any_data_are_loaded(
    model_class: Any, folder: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        model_class(str(folder), **{"device": "cpu", **arguments})
    assert "\n" not in str(error.value)


def test_what_is_no_picture_is_refused(model_class: Any, folder: Path) -> None:
    model = model_class(str(folder), device="cpu")
    model.task_dict = TASKS
    film = SimpleNamespace(args=("what ?", {}, lambda doc: ["film.mp4"], 0, "mine", "test"))
    with pytest.raises(UserError, match="task 'mine' shows str, and vispco takes pictures only"):
        model.generate_until([film])
    words = SimpleNamespace(args=("what color ?", {"max_new_tokens": 1}, lambda doc: [], 0, "mine", "test"))
    assert len(model.generate_until([words])) == 1


def test_the_entry_point(model_class: Any) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"vispco": "vispco.integrations.lmms_eval:manifest"}
    told = manifest()
    assert (told.model_id, told.simple_class_path, told.chat_class_path) == ("vispco", MODEL, None)
    assert f"{model_class.__module__}.{model_class.__name__}" == MODEL
    assert model_class.is_simple


@pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed")
def test_lmms_eval_itself_gives_what_vispco_eval_gives(cli: Any, folder: Path, tmp_path: Path) -> None:
    """Its own ChartQA task on a local copy, by its own command, plain and pruned."""
    import lmms_eval

    data = write_copy(tmp_path / "chartqa", COPIES["chartqa"]())
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    theirs = Path(lmms_eval.__file__).parent / "tasks/chartqa"
    (tasks / "utils.py").write_text((theirs / "utils.py").read_text())
    text = (theirs / "chartqa.yaml").read_text()
    text = text.replace("lmms-lab-encoder/ChartQA", str(data)).replace('task: "chartqa"', "task: chartqa_copy")
    (tasks / "chartqa_copy.yaml").write_text(text.replace("dataset_kwargs:\n  token: True\n", ""))
    exported = {"format": "vispco-schedule", "version": 2, "method": "fastv", "schedule": SCHEDULE}
    (tmp_path / "best.json").write_text(json.dumps(exported))
    for more in ("", f",schedule={tmp_path}/best.json"):
        command = [sys.executable, "-m", "lmms_eval", "--model", "vispco", "--device", "cpu", "--tasks", "chartqa_copy"]
        command += ["--model_args", f"pretrained={folder}{more}", "--include_path", str(tasks), "--batch_size", "1"]
        command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        (results,) = (tmp_path / "out").rglob("*results.json")
        (logged,) = (tmp_path / "out").rglob("*samples*.jsonl")
        found = json.loads(results.read_text())["results"]["chartqa_copy"]
        rows = sorted((json.loads(line) for line in logged.read_text().splitlines()), key=lambda row: row["doc_id"])
        ours = ["eval", "--model", folder, "--task", "chartqa", "--option", f"path={data}", "--json"]
        ours += ["--log-samples", tmp_path / "said.jsonl", "--batch-size", 1]
        code, out, err = cli(*ours, *(["--schedule", tmp_path / "best.json"] if more else []))
        assert code == 0, err
        said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
        theirs_said = [row["filtered_resps"] for row in rows]
        theirs_said = [one if isinstance(one, str) else one[0] for one in theirs_said]
        assert theirs_said == [row["answer"].strip() for row in said]
        assert [row["input"] for row in rows] == [row["prompt"] for row in said]
        for name, value in json.loads(out)["metrics"].items():
            assert found[f"{name},none"] == pytest.approx(value)
        for path in (results, logged):
            path.unlink()


def test_the_page_names_the_arguments(model_class: Any) -> None:
    page = sections("docs/paper.md")["In lmms-eval"]
    arguments = set(inspect.signature(model_class).parameters)
    rows = re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == arguments - {"max_batch_size"}
    assert "`max_batch_size` is ignored" in page
    longest = importlib.import_module(model_class.__module__).LONGEST
    assert f"after {longest:,} tokens" in page
    (commands,) = blocks("docs/paper.md", "bash", "In lmms-eval")
    for line in commands.splitlines()[1:]:
        words = shlex.split(line)
        given = words[words.index("--model_args") + 1]
        assert {item.split("=")[0] for item in given.split(",")} <= arguments
        for task in words[words.index("--tasks") + 1].split(","):
            assert make_task(task, {"search": 1}).name == ALIASES.get(task, task)
