"""Every benchmark, from a copy in the hub's schema: loaded, asked as lmms-eval asks, run on two families, scored."""

from __future__ import annotations

import itertools
from functools import cache
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import vispco
from conftest import SMALL
from hub_copies import COPIES, picture
from processors import llava, qwen
from vispco.config import parse_study
from vispco.errors import ConfigError
from vispco.evaluation.pixels import limited, pixel_limits
from vispco.pruning.schedules import Step, keep_all
from vispco.tasks.base import ALIASES, BUILTIN, TASKS, Sample, Task, make_task
from vispco.tasks.benchmark import Benchmark
from vispco.tasks.rendering import render_prompt
from vispco.tasks.videos import VideoBenchmark
from vispco.testing.tiny import TINY

LETTER = "\nAnswer with the option's letter from the given choices directly."
CHINESE = "\n请直接使用所提供的选项字母作为答案回答。"
SHORT = "\nAnswer the question using a single word or phrase."
ONE_WORD = "\nAnswer the question with a single word."
INSUFFICIENT = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


def load(copies: Any, name: str, size: int = 2, **options: Any) -> list[Sample]:
    return make_task(name, {"search": size}, {"path": copies(name), **options}).samples("search")


# Size of a split that holds all rows, and the prompt of the first of them.
PROMPTS = {
    "a-okvqa": (4, "What is number 0?\nA. red apple\nB. green pear\nC. blue plum\nD. yellow lemon" + LETTER),
    "vizwiz": (4, "What is this?" + INSUFFICIENT + SHORT),
    "seed-bench": (5, "Which thing 0?\nA. a thing\nB. b thing\nC. c thing\nD. d thing" + LETTER),
    "seed-bench-video": (4, "Which thing 0?\nA. a thing\nB. b thing\nC. c thing\nD. d thing" + LETTER),
    "mmbench-en": (11, "How many 0? There are several options:\nA. one\nB. two\n" + LETTER),
    "mmbench-cn": (11, "How many 0? There are several options:\nA. one\nB. two\n" + CHINESE),
    "ccbench": (11, "How many 0? There are several options:\nA. one\nB. two\n" + CHINESE),
    "mme": (8, "Is there a dog in this image?" + SHORT),
    "chartqa": (4, "What is bar 0?" + ONE_WORD),
    "ocrbench": (4, "what is written in the image?"),
    "textvqa": (6, "What does the sign say?" + SHORT),
    "scienceqa": (4, "Which planet 0?\nA. Mars\nB. Venus" + LETTER),
    "mmmu": (3, "Is <image> larger than <image>? See <image 1>.\nA. Yes\nB. No\n" + LETTER),
    "pope": (6, "Is there a dog in the image?" + SHORT),
    "gqa": (6, "Who is wearing a shirt?" + SHORT),
    "ai2d": (4, "Which part is 0?\nA. egg\nB. larva\nC. pupa" + LETTER),
}
# What a model may say to the first row, and what it is worth by the standard scorer.
ANSWERS: dict[str, list[tuple[str, float]]] = {
    "a-okvqa": [("A", 1), ("A. red apple", 1), ("red apple", 1), ("The answer is A", 0), ("B", 0)],
    "vizwiz": [("Unanswerable.", 1), ("cup", 0.9), ("", 0)],
    "seed-bench": [("a", 1), ("A) a thing", 1), ("(A)", 0)],
    "seed-bench-video": [("a", 1), ("A) a thing", 1), ("(A)", 0)],
    "mmbench-en": [("B", 1), ("(B)", 1), ("it is two", 1), ("A", 0), ("b", 0)],
    "mmbench-cn": [("B", 1), ("答案是B", 1), ("A", 0)],
    "ccbench": [("B", 1), ("A", 0)],
    "mme": [("Yes.", 1), ("yes, a dog", 1), ("No", 0), ("The answer is yes", 0)],
    "chartqa": [("3.4", 1), ("3.5", 1), ("3", 0), ("", 0)],
    "ocrbench": [("The Centre.", 1), ("CENT", 0), ("", 0)],
    "textvqa": [("stop", 1), ("Stop sign", 0.9), ("halt", 0.3), ("", 0.3)],
    "scienceqa": [("A", 1), ("a", 1), ("A. Mars", 1), ("(A)", 0), ("Mars", 0)],
    "mmmu": [("A", 1), ("(A) Yes", 1), ("B", 0), ("pizza", 0)],
    "pope": [("Yes.", 1), ("yes", 1), ("no", 0), ("I cannot tell", 0)],
    "gqa": [("Girl.", 1), ("a girl", 0)],
    "ai2d": [("A", 1), ("(a)", 1), ("A. egg", 1), ("A) egg", 0)],
}


@pytest.mark.parametrize("name", list(COPIES))
def test_rows_become_samples(copies: Any, name: str) -> None:
    size, prompt = PROMPTS[name]
    samples = load(copies, name, size)
    assert len(samples) == size
    assert samples[0].prompt == prompt
    assert len({sample.id for sample in samples}) == size
    for sample in samples:
        for image in sample.images:
            assert image.mode == "RGB"
            assert image.size == (32, 32)
        assert sample.answers
        assert all(answer in sample.lettered for answer in sample.answers) or not sample.options
    task = make_task(name, {"search": size}, {"path": copies(name)})
    assert [task.score(samples[0], answer) for answer, _ in ANSWERS[name]] == pytest.approx(
        [score for _, score in ANSWERS[name]]
    )


def test_all_builtin_benchmarks_have_a_copy() -> None:
    videos = {name for name in TASKS if issubclass(TASKS[name], VideoBenchmark)}  # tests/test_videos.py
    named = {name for name in TASKS if issubclass(TASKS[name], Benchmark) and TASKS[name].hub} - videos
    assert named == set(COPIES) == set(PROMPTS) == set(ANSWERS)
    assert len(BUILTIN) == len({TASKS[name].__module__ for name in TASKS})
    assert set(ALIASES.values()) <= set(TASKS)
    assert make_task("textvqa_val", {"search": 1}).name == "textvqa"
    for name in named:
        assert len(TASKS[name].hub) >= 2 or name in ("a-okvqa", "ocrbench"), "both families of hub ids"


@pytest.mark.parametrize("name", [name for name in COPIES if "vispco" in make_task(name, {"search": 1}).scorers])
def test_the_repositorys_scorer_is_another(copies: Any, name: str) -> None:
    """It lets through what the standard one refuses, and is used only where it is named."""
    sample = load(copies, name)[0]
    options = {"path": copies(name)}
    standard, loose = (make_task(name, {"search": 2}, options | extra) for extra in ({}, {"scorer": "vispco"}))
    assert (standard.scorer, loose.scorer) == ("standard", "vispco")
    told = "grape B" if sample.answers[0] == "B" else "banana"
    said = {"mme": "I do not know" if sample.answers[0] == "no" else "nothing but yes"}
    wrong = told if sample.options else said.get(name, "")
    if sample.options:
        wrong = f"pizz{sample.answers[0].lower()}"
    assert standard.score(sample, wrong) < 1
    assert loose.score(sample, wrong) == 1
    assert standard.fingerprint() != loose.fingerprint()
    groups, scores = ["x/1", "x/1", "x/2", "x/2"], np.array([1.0, 0.0, 1.0, 1.0])
    assert loose.aggregate(scores, groups) == 0.75


# --- groups ---------------------------------------------------------------------------------------------


def test_a_question_of_mmbench_counts_if_all_rotations_are_right(copies: Any) -> None:
    task = make_task("mmbench-en", {"search": 11}, {"path": copies("mmbench-en")})
    samples = task.samples("search")
    groups = [sample.group_id for sample in samples]
    assert sorted({groups.count(group) for group in groups}) == [2, 3, 4]
    scores = np.ones(len(samples))
    assert task.aggregate(scores, groups) == 1
    scores[[sample.extra["index"] == 1_000_101 for sample in samples].index(True)] = 0
    assert task.aggregate(scores, groups) == 0.75
    found = task.metrics(samples, scores)
    assert found["circular"] == 75
    assert found["vanilla"] == 100, "only a rotation was wrong"
    assert found["category/counting"] == 100
    assert found["category/ocr"] == 50
    hints = [sample.prompt.split(" ")[0] for sample in samples if sample.extra["index"] < 1_000_000]
    assert hints == ["How", "How", "Look.", "How"], "an absent hint may be null, empty or the text nan"


def test_mme_is_scored_by_pairs_within_categories(copies: Any) -> None:
    task = make_task("mme", {"search": 8}, {"path": copies("mme")})
    samples = task.samples("search")
    groups = [sample.group_id for sample in samples]
    assert sorted(groups.count(group) for group in set(groups)) == [2, 2, 2, 2]
    assert len({sample.extra["id"] for sample in samples}) == 2, "ids alone are not enough"
    # Existence: one pair right, of the other one question; code reasoning: both right.
    scores = np.array([1, 1, 1, 0, 1, 1, 1, 1.0])
    found = task.metrics(samples, scores)
    assert found["mme_perception_score"] == (200 + 50) / 2
    assert found["mme_cognition_score"] == 200
    assert task.aggregate(scores, groups) == (125 + 200) / 400


def test_pope_metrics_need_the_answers(copies: Any) -> None:
    task = make_task("pope", {"search": 6}, {"path": copies("pope")})
    samples = task.samples("search")
    answers = ["Yes."] * 6
    scores = np.array([task.score(sample, answer) for sample, answer in zip(samples, answers, strict=True)])
    assert task.metrics(samples, scores) == {"pope_accuracy": 0.5}
    found = task.metrics(samples, scores, answers)
    assert found["pope_accuracy"] == 0.5
    assert found["pope_recall"] == found["pope_yes_ratio"] == 1
    assert found["pope_f1_score"] == pytest.approx(2 / 3)
    strict = make_task("pope", {"search": 6}, {"path": copies("pope"), "scorer": "strict"})
    assert strict.score(samples[0], "Yes.") == 0


def test_published_numbers_by_their_names(copies: Any) -> None:
    chart = make_task("chartqa", {"search": 4}, {"path": copies("chartqa")})
    found = chart.metrics(chart.samples("search"), np.array([1.0, 0.0, 1.0, 1.0]))
    assert found == {"relaxed_overall": 0.75, "relaxed_human_split": 1.0, "relaxed_augmented_split": 0.5}
    ocr = make_task("ocrbench", {"search": 4}, {"path": copies("ocrbench")})
    found = ocr.metrics(ocr.samples("search"), np.array([1.0, 0.0, 1.0, 1.0]))
    assert found["ocrbench_accuracy"] == 0.75
    assert found["final_score"] == 750
    assert found["category/Regular Text Recognition"] == 1
    mmmu = make_task("mmmu", {"search": 3}, {"path": copies("mmmu")})
    found = mmmu.metrics(mmmu.samples("search"), np.array([1.0, 0.0, 1.0]))
    assert found == {"mmmu_acc": 2 / 3, "subject/Accounting": 1.0, "subject/Art_Theory": 0.5}
    for name, size, kinds in (
        ("seed-bench", 5, {"scene understanding": 1.0, "instance identity": 0.5}),
        ("seed-bench-video", 4, {"action recognition": 0.75}),
    ):
        task = make_task(name, {"search": size}, {"path": copies(name)})
        found = task.metrics(task.samples("search"), np.array([1.0, 0.0, 1.0, 1.0, 1.0])[:size])
        whole = {"seed-bench": {"seed_image": 0.8}, "seed-bench-video": {"seed_video": 0.75}}[name]
        assert found == {**whole, **{f"kind/{kind}": score for kind, score in kinds.items()}}


def test_rows_of_one_picture_are_a_group(copies: Any) -> None:
    for name, questions in (("textvqa", 2), ("pope", 2), ("gqa", 2), ("chartqa", 1)):
        groups = [sample.group_id for sample in load(copies, name, PROMPTS[name][0])]
        assert {groups.count(group) for group in groups} == {questions}, name


# --- particulars -----------------------------------------------------------------------------------------


def test_a_okvqas_direct_answers(copies: Any) -> None:
    samples = load(copies, "a-okvqa", 3, scorer="direct")
    assert [sample.question for sample in samples] == [f"What is number {n}?" for n in (0, 2, 3)], (
        "difficult ones left out"
    )
    assert samples[0].prompt == "What is number 0?" + SHORT
    task = make_task("a-okvqa", {"search": 3}, {"path": copies("a-okvqa"), "scorer": "direct"})
    said = ["apple", "an apple", "Apple"]
    assert [task.score(samples[0], answer) for answer in said] == pytest.approx([1, 1 / 3, 0])


def test_frames_of_a_video(copies: Any) -> None:
    """All of them as pictures in their order, or the middles of equal parts."""
    whole, pair, one = (load(copies, "seed-bench-video", 4, **more) for more in ({}, {"frames": 2}, {"frames": 1}))
    shown = [image.tobytes() for image in whole[0].images]
    assert len(set(shown)) == len(whole[0].images) == 3
    assert [image.tobytes() for image in pair[0].images] == [shown[0], shown[2]]
    assert [image.tobytes() for image in one[0].images] == [shown[1]]
    paths = {"path": copies("seed-bench-video")}
    prints = [
        make_task("seed-bench-video", {"search": 4}, {**paths, **more}).fingerprint()
        for more in ({}, {"frames": 9}, {"frames": 2})
    ]
    assert all(one != other for one, other in itertools.combinations(prints, 2))
    with pytest.raises(ConfigError, match="option frames = 0"):
        make_task("seed-bench-video", {"search": 4}, {"frames": 0})
    with pytest.raises(ConfigError, match="no option 'frames'"):
        make_task("seed-bench", {"search": 4}, {"frames": 2})


def test_textvqas_ocr_tokens(copies: Any) -> None:
    sample = load(copies, "textvqa", ocr=True)[0]
    assert sample.prompt == "What does the sign say?\nReference OCR token: STOP, ALL" + SHORT


def test_formulas_of_ocrbench_keep_their_case(copies: Any) -> None:
    task = make_task("ocrbench", {"search": 4}, {"path": copies("ocrbench")})
    word, formula = task.samples("search")[:2]
    assert task.score(formula, "x ^ {2} + 1") == 1
    assert task.score(formula, "X^{2}+1") == 0
    assert task.score(word, "c entre") == 0


def test_scienceqa_and_its_lenient_scorer(copies: Any) -> None:
    samples = load(copies, "scienceqa", 4)
    assert samples[1].prompt.startswith("Context: It is red.\nWhich planet 1?\nA. Mars\nB. Venus\nC. Earth\n")
    assert [sample.question for sample in samples] == [f"Which planet {n}?" for n in (0, 1, 3, 4)], "no picture, no row"
    lenient = make_task("scienceqa", {"search": 4}, {"path": copies("scienceqa"), "scorer": "lenient"})
    assert lenient.score(samples[0], "(A)") == 1


def test_mmmus_pictures_stand_where_the_text_says(copies: Any) -> None:
    samples = load(copies, "mmmu", 3)
    two, open_ended, swapped = samples
    assert [len(sample.images) for sample in samples] == [2, 1, 2]
    assert swapped.images[0].tobytes() == picture(5).tobytes(), "image 2 is named first"
    assert swapped.prompt == "Which one?\nA. <image>\nB. <image>\nC. neither\n" + LETTER
    assert open_ended.prompt == "What is 1,000 divided by 2?\n" + SHORT
    task = make_task("mmmu", {"search": 3}, {"path": copies("mmmu")})
    assert [task.score(open_ended, said) for said in ("The answer is 500.", "It is 5,00", "50")] == [1, 1, 0]

    class Template:
        chat_template = "x"

        def apply_chat_template(self, messages: Any, add_generation_prompt: bool) -> str:
            return "|".join(part.get("text", "PICTURE") for part in messages[0]["content"])

    expected = "Is |PICTURE| larger than |PICTURE|? See <image 1>.\nA. Yes\nB. No\n" + LETTER
    assert render_prompt(Template(), two) == expected
    assert render_prompt(Template(), open_ended) == "PICTURE|" + open_ended.prompt
    assert render_prompt(object(), two) == two.prompt
    assert render_prompt(object(), open_ended) == "<image> " + open_ended.prompt


def test_gqa_joins_its_two_tables(copies: Any) -> None:
    for number, sample in enumerate(load(copies, "gqa", 6)):
        assert sample.images[0].tobytes() == picture(2 - number % 3).tobytes()


def test_prompts_can_be_changed_and_are_part_of_the_identity(copies: Any) -> None:
    sample = load(copies, "pope", pre_prompt="Look! ", post_prompt="\nYes or no?", max_new_tokens=3)[0]
    assert sample.prompt == "Look! Is there a dog in the image?\nYes or no?"
    task = make_task("pope", {"search": 2}, {"path": copies("pope"), "post_prompt": "", "max_new_tokens": 3})
    protocol = task.protocol()
    assert protocol["post_prompt"] == ""
    assert protocol["max_new_tokens"] == task.max_new_tokens == 3
    assert protocol["scorer"] == "standard"
    assert make_task("pope", {"search": 2}).max_new_tokens == 128


def test_a_canonical_data_set_can_be_had(copies: Any) -> None:
    task = make_task("scienceqa", {"search": 4}, {"path": copies("scienceqa")})
    rows = task.dataset("search")
    sample, original = task.sample(rows[1]), task.samples("search")[1]
    assert (sample.id, sample.prompt, sample.answers, sample.options) == (
        *(original.id, original.prompt, original.answers, original.options),
    )
    assert sample.images[0].tobytes() == original.images[0].tobytes()


# --- models ------------------------------------------------------------------------------------------------

PARTS = {"mmbench-en": 4, "mmbench-cn": 4, "ccbench": 4, "mme": 2, "textvqa": 2, "pope": 2, "gqa": 2}


@cache
def loaded(family: str) -> tuple[Any, Any]:
    model = TINY[family].build()
    return model, (llava if family == "llava" else qwen)(model)


def study(family: str, tasks: list[dict[str, Any]]) -> vispco.Problem:
    text = yaml.safe_dump(yaml.safe_load(SMALL) | {"tasks": tasks})
    model, processor = loaded(family)
    return vispco.Problem(parse_study(text), text, model=model, processor=processor)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("name", list(COPIES))
def test_runs_on_small_models(copies: Any, name: str, family: str) -> None:
    """What the evaluator stores is what plain ``generate`` says, scored and aggregated by the task."""
    size = PARTS.get(name, 1)
    splits = {"calibration": size, "search": size, "held_out": size}
    options: dict[str, Any] = {"path": copies(name), "max_new_tokens": 2}
    if name == "seed-bench-video":  # transformers wants text between the pictures of Qwen
        options["pre_prompt"] = "<image> then <image> then <image> "
    problem = study(family, [{"name": name, "splits": splits, "options": options}])
    task = problem.tasks[0]
    parts = {split: task.samples(split) for split in splits}
    shown = [{sample.images[0].tobytes() for sample in part} for part in parts.values()]
    assert not shown[0] & shown[1]
    assert not shown[0] & shown[2]
    assert not shown[1] & shown[2]
    plain, pruned = vispco.Evaluator(problem).evaluate([keep_all(), Step(2, 0.25)], "search")
    scores = []
    for sample in parts["search"]:
        inputs = problem.processor(
            images=[list(sample.images)], text=[render_prompt(problem.processor, sample)], return_tensors="pt"
        )
        with torch.no_grad():
            said = problem.model.generate(**inputs, max_new_tokens=2, do_sample=False)
        said = said[0, inputs["input_ids"].shape[1] :]
        scores.append(task.score(sample, problem.processor.tokenizer.decode(said, skip_special_tokens=True)))
    assert plain.scores[name].tolist() == pytest.approx(scores)
    groups = [sample.group_id for sample in parts["search"]]
    assert plain.accuracy == pytest.approx(task.aggregate(np.array(scores), groups))
    assert 0 <= pruned.accuracy <= 1
    assert 0.3 < pruned.flops_ratio < 1


def test_pixel_limits_reach_the_processor_and_the_record(copies: Any) -> None:
    splits = {"calibration": 1, "search": 1, "held_out": 1}

    def tokens(**options: Any) -> tuple[int, str]:
        found = {"path": copies("chartqa"), "max_new_tokens": 2, **options}
        problem = study("qwen2_5_vl", [{"name": "chartqa", "splits": splits, "options": found}])
        evaluator = vispco.Evaluator(problem)
        context = evaluator.context("search", problem.default_method)
        assert context["model"]["pixels"] == [256, 1600]
        assert context["tasks"][0]["pixels"] == [options.get("min_pixels"), options.get("max_pixels")]
        return int(evaluator.prepared("search")[0].n_visual[0])

    # 32 x 32 pixels, 8 x 8 of them a token.
    assert tokens() == 16
    assert tokens(max_pixels=300) == 4
    assert tokens(min_pixels=2304, max_pixels=4096) == 36
    with pytest.raises(ConfigError, match=r"min_pixels 5000 exceeds max_pixels 1600, one of which is the processor's"):
        tokens(min_pixels=5000)
    found = {"path": copies("chartqa"), "max_pixels": 400}
    problem = study("llava", [{"name": "chartqa", "splits": splits, "options": found}])
    with pytest.raises(ConfigError, match="task 'chartqa': min_pixels and max_pixels: this model makes pictures"):
        vispco.Evaluator(problem).prepared("search")


def test_pixel_limits_give_the_published_numbers_of_tokens() -> None:
    pictures = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=12845056)
    processor = SimpleNamespace(image_processor=pictures)
    assert pixel_limits(processor) == (3136, 12845056)
    settings = (
        {},
        limited(processor, 200704, 1605632)["images_kwargs"],
        limited(processor, 1003520, None)["images_kwargs"],
    )
    for width, height, *expected in ((64, 64, 4, 256, 1296), (106, 56, 8, 276, 1350), (500, 243, 162, 276, 1300)):
        image = Image.new("RGB", (width, height))
        grids = [pictures([image], return_tensors="np", **setting)["image_grid_thw"][0] for setting in settings]
        assert [int(grid.prod()) // 4 for grid in grids] == expected


def test_scorers_of_two_kinds_are_refused(copies: Any) -> None:
    splits = {"calibration": 1, "search": 1, "held_out": 1}
    block = [
        {"name": "chartqa", "splits": splits, "options": {"path": copies("chartqa"), "scorer": "vispco"}},
        {"name": "textvqa", "splits": splits, "options": {"path": copies("textvqa")}},
    ]
    with pytest.raises(ConfigError, match="chartqa by 'vispco', textvqa by 'standard'; their mean would mean nothing"):
        study("llava", block)
    block[1]["options"] = {"path": copies("textvqa"), "scorer": "vispco"}
    assert [task.scorer for task in study("llava", block).tasks] == ["vispco", "vispco"]


def test_other_tasks_are_means_of_their_scores() -> None:
    task = make_task("mosaic-vqa", {"search": 2})
    assert isinstance(task, Task)
    assert task.scorer == "standard"
    assert task.metrics(task.samples("search"), np.array([1.0, 0.0])) == {"accuracy": 0.5}
