"""Tiny copies of the benchmarks in the exact schema of the hub: real parquet files with pictures, made here."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pillow

S, I8, I16, I32, I64, B = (Value(name) for name in ("string", "int8", "int16", "int32", "int64", "bool"))
Tables = dict[str | None, tuple[str, dict[str, Any], list[dict[str, Any]]]]  # configuration -> split, features, rows


def picture(number: int, mode: str = "RGB") -> Any:
    """32 x 32, another for each number."""
    image = Pillow.new("RGB", (32, 32), (number * 37 % 256, number * 91 % 256, 80))
    image.paste((255 - number * 53 % 256, 20, number * 17 % 256), (4, 4, 12 + number % 16, 20))
    return image.convert(mode)


def text(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, S)


def a_okvqa() -> Tables:
    features = text("question_id", "question", "direct_answers") | {
        "image": Image(),
        "choices": List(S),
        "correct_choice_idx": I8,
        "difficult_direct_answer": B,
        "rationales": List(S),
    }
    rows = [
        {
            "image": picture(n),
            "question_id": f"q{n}",
            "question": f"What is number {n}?",
            "choices": ["red apple", "green pear", "blue plum", "yellow lemon"],
            "correct_choice_idx": n % 4,
            "direct_answers": str(["apple"] * 8 + ["an apple", "pear"]),
            "difficult_direct_answer": n == 1,
            "rationales": ["It is."],
        }
        for n in range(4)
    ]
    return {None: ("validation", features, rows)}


def vizwiz() -> Tables:
    features = text("question_id", "question", "category") | {"image": Image(), "answers": List(S)}
    rows = [
        {
            "question_id": f"VizWiz_val_{n}.jpg",
            "image": picture(n),
            "question": "what IS this?",
            "answers": ["unanswerable"] * 7 + ["cup"] * 3,
            "category": ["unanswerable", "other"][n % 2],
        }
        for n in range(4)
    ]
    return {None: ("val", features, rows)}


def textvqa() -> Tables:
    features = text("image_id", "question", "flickr_original_url", "flickr_300k_url", "set_name") | {
        "question_id": I32,
        "question_tokens": List(S),
        "image": Image(),
        "image_width": I32,
        "image_height": I32,
        "answers": List(S),
        "image_classes": List(S),
        "ocr_tokens": List(S),
    }
    rows = [
        {
            "image_id": f"i{n // 2}",
            "question_id": 34602 + n,
            "question": "what does the Sign SAY?",
            "question_tokens": ["what"],
            "image": picture(n // 2),
            "image_width": 32,
            "image_height": 32,
            "flickr_original_url": "",
            "flickr_300k_url": "",
            "answers": ["Stop"] * 4 + ["stop sign"] * 3 + ["go", "", "halt"],
            "image_classes": ["Sign"],
            "set_name": "val",
            "ocr_tokens": ["STOP", "ALL"],
        }
        for n in range(6)
    ]
    return {None: ("validation", features, rows)}


def seed_bench(*videos: int) -> Tables:
    """``videos``: rows with three frames, where the others have one picture."""
    features = text(
        *("answer", "choice_a", "choice_b", "choice_c", "choice_d", "data_type", "question", "question_id", "segment")
    ) | {"data_id": List(S), "question_type_id": I16, "image": List(Image())}
    rows = [
        {
            "answer": "ABCD"[n % 4],
            **{f"choice_{letter}": f"{letter} thing" for letter in "abcd"},
            "data_id": [f"cc{n}"],
            "data_type": "video" if n in videos else "image",
            "question": f"Which thing {n}?",
            "question_id": str(n),
            "question_type_id": 10 if n in videos else 1 + n % 2,
            "image": [picture(n + 10 * frame) for frame in range(3 if n in videos else 1)],
            "segment": None,
        }
        for n in range(6)
    ]
    return {None: ("test", features, rows)}


def mmbench() -> Tables:
    names = ("question", "hint", "answer", "A", "B", "C", "D", "category", "source", "L2-category", "comment", "split")
    features = {"index": I64, **text(*names), "image": Image()}
    rows = []
    for n in range(4):
        texts = ["one", "two", "three", "four"][: 2 + n % 3]
        for turn in range(len(texts)):
            turned = texts[turn:] + texts[:turn]
            rows.append(
                {
                    "index": 100 + n + 1_000_000 * turn,
                    "question": f"How many {n}?",
                    "hint": [None, "nan", "Look.", ""][n],
                    "answer": "ABCD"[turned.index("two")],
                    **dict(itertools.zip_longest("ABCD", turned, fillvalue="nan" if n else None)),
                    "category": ["counting", "ocr"][n % 2],
                    "source": "made",
                    "L2-category": "perception",
                    "comment": "nan",
                    "split": "dev",
                    "image": picture(n),
                }
            )
    rows.sort(key=lambda row: row["index"])
    cc = [{key: row[key] for key in row if key not in ("hint", "L2-category", "comment", "split")} for row in rows]
    fewer = {key: kind for key, kind in features.items() if key in cc[0]}
    return {"en": ("dev", features, rows), "cn": ("dev", features, rows), "cc": ("test", fewer, cc)}


def mme() -> Tables:
    features = text("question_id", "question", "answer", "category") | {"image": Image()}
    rows = [
        {
            "question_id": f"{n % 2}.png",  # the same in two categories
            "image": picture(n),
            "question": f"Is there {thing} in this image? Please answer yes or no.",
            "answer": answer,
            "category": ["existence", "existence", "code_reasoning", "code_reasoning"][n],
        }
        for n in range(4)
        for thing, answer in (("a dog", "Yes"), ("a cat", "No"))
    ]
    return {None: ("test", features, rows)}


def chartqa() -> Tables:
    features = text("type", "question", "answer") | {"image": Image()}
    rows = [
        {
            "type": ["human_test", "augmented_test"][n % 2],
            "question": f"What is bar {n}?",
            "answer": ["3.5", "Yes", "35%", "[1, 2]"][n],
            "image": picture(n, "P"),
        }
        for n in range(4)
    ]
    return {None: ("test", features, rows)}


def ocrbench() -> Tables:
    features = text("dataset", "question", "question_type") | {"answer": List(S), "image": Image()}
    kinds = [("IIIT5K", "Regular Text Recognition"), ("HME100k", "Handwritten Mathematical Expression Recognition")]
    rows = [
        {
            "dataset": kinds[n % 2][0],
            "question": "what is written in the image?",
            "question_type": kinds[n % 2][1],
            "answer": [["CENTRE", "center"], ["x^{2}+1"]][n % 2],
            "image": picture(n, "L"),
        }
        for n in range(4)
    ]
    return {None: ("test", features, rows)}


def scienceqa() -> Tables:
    names = ("question", "hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
    features = text(*names) | {"image": Image(), "choices": List(S), "answer": I8}
    rows = [
        {
            **dict.fromkeys(names, "x"),
            "image": None if n == 2 else picture(n, "RGBA"),
            "question": f"Which planet {n}?",
            "hint": ["", "It is red."][n % 2],
            "choices": ["Mars", "Venus", "Earth"][: 2 + n % 2],
            "answer": n % 2,
            "subject": "natural science",
        }
        for n in range(5)
    ]
    return {"ScienceQA-IMG": ("test", features, rows)}


def mmmu() -> Tables:
    names = ("id", "question", "options", "explanation", "img_type", "answer", "topic_difficulty", "question_type")
    pictures = [f"image_{number}" for number in range(1, 8)]
    features = text(*names, "subfield") | dict.fromkeys(pictures, Image())
    base = dict.fromkeys(pictures) | dict.fromkeys(names, "") | {"subfield": "", "question_type": "multiple-choice"}
    rows: list[dict[str, Any]] = [
        {
            "id": "validation_Accounting_1",
            "question": "Is <image 1> larger than <image 2>? See <image 1>.",
            "options": "['Yes', 'No']",
            "answer": "A",
            "image_1": picture(1),
            "image_2": picture(2),
        },
        {
            "id": "validation_Art_Theory_2",
            "question": "What is 1,000 divided by 2?",
            "options": "[]",
            "answer": "['500', '500.0']",
            "question_type": "open",
            "image_1": picture(3),
        },
        {
            "id": "validation_Art_Theory_3",
            "question": "Which one?",
            "options": "['<image 2>', '<image 1>', 'neither']",
            "answer": "C",
            "image_1": picture(4),
            "image_2": picture(5),
        },
    ]
    return {None: ("validation", features, [base | row for row in rows])}


def pope() -> Tables:
    features = text("id", "question_id", "question", "answer", "image_source", "category") | {"image": Image()}
    rows = [
        {
            "id": str(n),
            "question_id": str(n),
            "question": "Is there a dog in the image?",
            "answer": ["yes", "no"][n % 2],
            "image_source": f"COCO_{n // 2}",
            "image": picture(n // 2),
            "category": "adversarial",
        }
        for n in range(6)
    ]
    return {None: ("test", features, rows)}


def gqa() -> Tables:
    questions = text("id", "imageId", "question", "answer", "fullAnswer", "semanticStr") | {
        "isBalanced": B,
        "types": text("structural", "semantic", "detailed"),
    }
    rows = [
        {
            "id": str(n),
            "imageId": f"n{2 - n % 3}",
            "question": "Who is wearing a shirt?",
            "answer": "girl",
            "fullAnswer": "The girl is.",
            "semanticStr": "",
            "isBalanced": True,
            "types": {"structural": "query", "semantic": "rel", "detailed": "relS"},
        }
        for n in range(6)
    ]
    pictures = [{"id": f"n{n}", "image": picture(n)} for n in range(3)]
    return {
        "testdev_balanced_instructions": ("testdev", questions, rows),
        "testdev_balanced_images": ("testdev", text("id") | {"image": Image()}, pictures),
    }


def ai2d() -> Tables:
    features = text("question", "answer") | {"options": List(S), "image": Image()}
    rows = [
        {
            "question": f"Which part is {n}?",
            "options": ["egg", "larva", "pupa"],
            "answer": str(n % 3),
            "image": picture(n),
        }
        for n in range(4)
    ]
    return {None: ("test", features, rows)}


COPIES = {
    "a-okvqa": a_okvqa,
    "vizwiz": vizwiz,
    "seed-bench": lambda: seed_bench(3),
    "seed-bench-video": lambda: seed_bench(0, 2, 3, 5),
    "mmbench-en": mmbench,
    "mmbench-cn": mmbench,
    "ccbench": mmbench,
    "mme": mme,
    "chartqa": chartqa,
    "ocrbench": ocrbench,
    "textvqa": textvqa,
    "scienceqa": scienceqa,
    "mmmu": mmmu,
    "pope": pope,
    "gqa": gqa,
    "ai2d": ai2d,
}


def write_copy(folder: Path, tables: Tables) -> Path:
    """A repository as the hub lays it out: parquet files by configuration and split, named in README.md."""
    from datasets.utils import disable_progress_bars

    disable_progress_bars()
    configs = ["configs:"]
    for config, (split, features, rows) in tables.items():
        name = config or "data"
        (folder / name).mkdir(parents=True)
        columns = {key: [row.get(key) for row in rows] for key in features}
        Dataset.from_dict(columns, features=Features(features)).to_parquet(
            folder / name / f"{split}-00000-of-00001.parquet"
        )
        configs += [f"- config_name: {config or 'default'}", "  data_files:"]
        configs += [f"  - split: {split}", f"    path: {name}/{split}-*"]
    (folder / "README.md").write_text("\n".join(["---", *configs, "---", ""]))
    return folder
