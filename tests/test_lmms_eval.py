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

import numpy as np
import pytest
import torch

import vispco
from hub_copies import COPIES, picture, write_copy
from pages import blocks, sections
from processors import PROCESSORS, llava
from vispco.errors import UserError
from vispco.evaluation.showing import video_arguments
from vispco.integrations.lmms_eval import MODEL, manifest
from vispco.pruning.session import PruningSession
from vispco.tasks.base import ALIASES, Sample, make_task
from vispco.tasks.rendering import render_prompt
from vispco.tasks.videos import VideoFrames
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
    stops = importlib.import_module(model_class.__module__)._stops
    assert [stops(until) for until in (None, "\n\n", ["\n\n", "###"])] == [[], [], ["###"]]


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


def test_what_is_no_picture_is_refused(model_class: Any, folder: Path, tmp_path: Path) -> None:
    model = model_class(str(folder), device="cpu")
    model.task_dict = TASKS
    sound = SimpleNamespace(args=("what ?", {}, lambda doc: [{"array": [0.0]}], 0, "mine", "test"))
    with pytest.raises(UserError, match="task 'mine' shows dict, and vispco takes pictures and videos only"):
        model.generate_until([sound])
    film = SimpleNamespace(args=("what ?", {}, lambda doc: [tmp_path / "film.mp4"], 0, "mine", "test"))
    with pytest.raises(UserError, match=r"task 'mine': document 0.*film\.mp4"):
        model.generate_until([film])
    stills = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    film = SimpleNamespace(args=("what ?", {}, lambda doc: [stills], 0, "mine", "test"))
    with pytest.raises(UserError, match=r"show: video: .* takes no videos; show pictures"):
        model.generate_until([film])
    words = SimpleNamespace(args=("what color ?", {"max_new_tokens": 1}, lambda doc: [], 0, "mine", "test"))
    assert len(model.generate_until([words])) == 1


# --- videos ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torchvision")
    path = tmp_path_factory.mktemp("video-model")
    model = TINY["qwen2_5_vl"].build()
    processor = PROCESSORS["qwen2_5_vl"](model)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from test_videos import write_video  # skips where there is no PyAV

    return write_video(tmp_path_factory.mktemp("films") / "one.mp4")


class Reader:
    """What decord's VideoReader gives: frames by number, as an array of its own."""

    def __init__(self, frames: Any) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def get_avg_fps(self) -> float:
        return 10.0

    def get_batch(self, numbers: list[int]) -> Any:
        return SimpleNamespace(asnumpy=lambda: self.frames[numbers])


def asked(shown: Any, task: str = "mine") -> Any:
    return SimpleNamespace(args=("what moves ?", {"max_new_tokens": 4}, lambda doc: shown, 0, task, "test"))


@pytest.mark.parametrize("schedule", [None, SCHEDULE])
def test_videos_are_shown_as_vispco_eval_shows_them(
    model_class: Any, video_folder: Path, film: Path, schedule: str | None
) -> None:
    """A file, a reader of it, and its frames in an array: the same frames reach the model's own video processor."""
    model = model_class(str(video_folder), schedule=schedule, method="evs" if schedule else None, max_num_frames=4)
    model.task_dict = TASKS
    frames = VideoFrames(film, 4, "here")
    sample = Sample("", "", frames, "what moves ?", (), show="video")
    inputs = model.processor(
        text=[render_prompt(model.processor, sample)],
        return_tensors="pt",
        **video_arguments([sample], [list(frames)]),
    )
    with torch.no_grad(), model.pruned([sample]):
        tokens = model.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    expected = model.processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    whole = np.stack([np.asarray(frame) for frame in VideoFrames(film, 20, "here")])
    assert model.generate_until([asked([str(film)])]) == [expected]
    for shown in (Reader(whole), torch.from_numpy(whole), whole):
        given = model._inputs([model._sample(asked([shown]).args)])
        assert torch.equal(given["pixel_values_videos"], inputs["pixel_values_videos"])
        assert torch.equal(given["video_grid_thw"], inputs["video_grid_thw"])
        assert float(given["second_per_grid_ts"][0]) == (1.0 if isinstance(shown, Reader) else 10.0)


def test_videos_and_pictures_run_in_one_batch(model_class: Any, video_folder: Path, film: Path) -> None:
    found = []
    for size in (1, 3):
        model = model_class(str(video_folder), batch_size=size, max_num_frames=4)
        model.task_dict = TASKS
        found.append(model.generate_until([asked([str(film)]), asked([picture(1)]), asked([])]))
    assert found[0] == found[1]


def test_frames_may_be_pictures(model_class: Any, folder: Path, film: Path) -> None:
    """Also for a model without a video processor, which reads them one by one."""
    model = model_class(str(folder), device="cpu", show="pictures", max_num_frames=3)
    model.task_dict = TASKS
    frames = list(VideoFrames(film, 3, "here"))
    assert model.generate_until([asked([film])]) == model.generate_until([asked(frames)])
    assert len(model._sample(asked([film, picture(1)]).args).images) == 4


@pytest.mark.parametrize(
    ("arguments", "beside", "message"),
    [
        ({"show": "both"}, [], "show=both: videos are shown as video or as pictures"),
        ({"max_num_frames": 0}, [], "max_num_frames=0: a video shows at least one frame"),
        ({}, [1], "document 0 shows 1 of its 2 visuals as videos.*add show=pictures"),
        ({"max_pixels": 1600}, [], "document 0: min_pixels and max_pixels are for pictures"),
    ],
)
def test_what_goes_not_with_a_video_is_one_line(
    model_class: Any, video_folder: Path, film: Path, arguments: dict[str, Any], beside: list[int], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        model = model_class(str(video_folder), **arguments)
        model.task_dict = TASKS
        model.generate_until([asked([film, *map(picture, beside)])])
    assert "\n" not in str(error.value)


def test_the_entry_point(model_class: Any) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"vispco": "vispco.integrations.lmms_eval:manifest"}
    told = manifest()
    assert (told.model_id, told.simple_class_path, told.chat_class_path) == ("vispco", MODEL, None)
    assert f"{model_class.__module__}.{model_class.__name__}" == MODEL
    assert model_class.is_simple


def run_lmms_eval(home: Path, tasks: Path, task: str, model: str) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics and logged samples of ``task``, whose YAML lies in ``tasks``, by lmms-eval's own command."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "vispco", "--device", "cpu", "--tasks", task]
    command += ["--model_args", model, "--include_path", str(tasks), "--batch_size", "1"]
    command += ["--output_path", str(home / "out"), "--log_samples"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "home")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    written = list((home / "out").rglob("*results.json"))  # it may fail and return 0
    assert len(written) == 1, done.stderr[-3000:]
    (results,) = written
    (logged,) = (home / "out").rglob("*samples*.jsonl")
    found = json.loads(results.read_text())["results"][task]
    rows = sorted((json.loads(line) for line in logged.read_text().splitlines()), key=lambda row: row["doc_id"])
    for path in (results, logged):
        path.unlink()
    return found, rows


def run_ours(cli: Any, home: Path, *arguments: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The same by ``vispco eval``."""
    code, out, err = cli("eval", "--json", "--log-samples", home / "said.jsonl", "--batch-size", 1, *arguments)
    assert code == 0, err
    return json.loads(out)["metrics"], [json.loads(line) for line in (home / "said.jsonl").read_text().splitlines()]


def check_same(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> None:
    """Prompts and answers."""
    said = [row["filtered_resps"] for row in theirs]
    assert [one if isinstance(one, str) else one[0] for one in said] == [row["answer"].strip() for row in ours]
    assert [row["input"] for row in theirs] == [row["prompt"] for row in ours]


def exported(home: Path, method: str) -> Path:
    path = home / "best.json"
    path.write_text(json.dumps({"format": "vispco-schedule", "version": 2, "method": method, "schedule": SCHEDULE}))
    return path


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
    best = exported(tmp_path, "fastv")
    for schedule in (None, best):
        more = f",schedule={schedule}" if schedule else ""
        found, rows = run_lmms_eval(tmp_path, tasks, "chartqa_copy", f"pretrained={folder}{more}")
        ours = ["--model", folder, "--task", "chartqa", "--option", f"path={data}"]
        metrics, said = run_ours(cli, tmp_path, *ours, *(["--schedule", schedule] if schedule else []))
        check_same(rows, said)
        for name, value in metrics.items():
            assert found[f"{name},none"] == pytest.approx(value)


@pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed")
@pytest.mark.parametrize(
    ("name", "metric", "videos"),
    [("mlvu_dev", "mlvu_percetion_score", "mlvu"), ("videomme", "videomme_perception_score", "videomme/data")],
)
def test_lmms_eval_itself_shows_videos_as_vispco_eval_does(
    cli: Any, video_folder: Path, tmp_path: Path, name: str, metric: str, videos: str
) -> None:
    """Its own MLVU and Video-MME on files that are made here, pruned: the same prompts and answers."""
    import datasets
    import lmms_eval

    from test_videos import ML, MME, write_video

    both = ("one", "two")
    for number, video in enumerate(both):
        write_video(tmp_path / "home" / videos / f"{video}.mp4", 20 + 10 * number)
    more = {
        "domain": "Sports Competition",
        "sub_category": "Football",
        "task_type": "Counting Problem",
        "question_id": "1",
    }
    rows = {
        "mlvu_dev": [{**ML, "video_name": f"{video}.mp4"} for video in both],
        "videomme": [{**MME, **more, "videoID": video} for video in both],
    }[name]
    data, tasks = tmp_path / "data", tmp_path / "tasks"
    datasets.Dataset.from_list(rows).to_parquet(data / "test-00000-of-00001.parquet")
    tasks.mkdir()
    theirs = Path(lmms_eval.__file__).parent / "tasks" / name.removesuffix("_dev")
    text = (theirs / "utils.py").read_text().replace("Path(__file__).parent", f"Path({str(theirs)!r})")
    (tasks / "utils.py").write_text(text)
    text = re.sub(r"dataset_kwargs:\n(?:  .*\n)+", "", (theirs / f"{name}.yaml").read_text())
    text = re.sub(r"dataset_path: .*", f"dataset_path: {data}", text)
    (tasks / "copy.yaml").write_text(text.replace(f"task: {name}", f"task: {name}_copy"))
    best = exported(tmp_path, "evs")
    arguments = f"pretrained={video_folder},schedule={best},max_num_frames=4"
    found, theirs_said = run_lmms_eval(tmp_path, tasks, f"{name}_copy", arguments)
    options = [f"path={data}", f"video_root={tmp_path / 'home' / videos}", "show=video", "frames=4"]
    task = [part for option in options for part in ("--option", option)]
    _, said = run_ours(cli, tmp_path, "--model", video_folder, "--task", name, *task, "--schedule", best)
    check_same(theirs_said, said)
    assert f"{metric},none" in found


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
