"""``mmbench-en``, ``mmbench-cn``, ``ccbench``: questions are asked again with rotated options; all must be right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.tasks.a_okvqa import vispco
from vispco.tasks.aggregation import MEAN
from vispco.tasks.base import TASKS, Sample
from vispco.tasks.benchmark import Benchmark, Item, Scorer
from vispco.tasks.loading import Row
from vispco.tasks.prompts import LETTER, LETTER_CHINESE, option_lines
from vispco.tasks.scorers.letters import lenient_letter, mmbench_letter

ROTATION = 1_000_000  # rows of one question have the same index modulo this


def inferred(sample: Sample, answer: str) -> float:
    """MMBench's rule and, where it is undecided, the lenient one in place of a judge, as in lmms-eval's static task."""
    letter = mmbench_letter(answer, sample.lettered) or lenient_letter(answer, sample.lettered)
    return float(letter == sample.answers[0])


@TASKS.register("mmbench-en")
class MMBench(Benchmark):
    """Circular accuracy on the dev split: a question counts if it is right under every rotation of its options.

    ``scorer: vispco`` counts every row by itself. The answers of the test split are hidden.
    """

    name: ClassVar[str] = "mmbench-en"
    version: ClassVar[int] = 2
    max_new_tokens = 1024
    hub = (("lmms-lab-encoder/MMBench", "en"), ("lmms-lab/MMBench", "en"))
    split = "dev"
    columns = {name: (name,) for name in ("index", "question", "answer", "A", "B")}
    optional = {"L2-category": ("L2-category", "l2-category")}
    post_prompt = f"\n{LETTER}"
    whole = True
    scorers: ClassVar[dict[str, Scorer]] = {"standard": inferred, "vispco": vispco}

    def read(self, row: Row) -> Item:
        # What is absent may also be the text "nan".
        given = [(letter, row.optional(letter)) for letter in "ABCDE"]
        options = [(letter, text) for letter, text in given if text not in ("", "nan")]
        if [letter for letter, _ in options] != list("ABCDE"[: len(options)]):
            raise row.error(f"options are {', '.join(letter for letter, _ in options)}", "leave no letter out")
        texts = tuple(text for _, text in options)
        hint = row.optional("hint")
        before = f"{hint} " if hint not in ("", "nan") else ""
        index = row.integer("index")
        return Item(
            question=row.text("question"),
            answers=(row.text("answer").strip(),),
            prompt=f"{before}{row.text('question')} There are several options:\n{option_lines(texts)}",
            options=texts,
            category=row.optional("category"),
            group=str(index % ROTATION),
            extra={"index": index, "l2": row.optional("L2-category")},
        )

    def group_size(self, sample: Sample) -> int:
        return len(sample.options)

    @property
    def aggregation(self) -> str:
        return MEAN if self.scorer == "vispco" else "all-right"

    def metrics(
        self, samples: Sequence[Sample], scores: NDArray[np.float64], answers: Sequence[str] | None = None
    ) -> dict[str, float]:
        """``circular`` and ``vanilla`` (unrotated rows only) accuracy in per cent; also by category and L2 category."""
        groups = [sample.group_id for sample in samples]
        unrotated = np.array([sample.extra["index"] < ROTATION for sample in samples])
        found = {"circular": 100 * self.aggregate(scores, groups)}
        if unrotated.any():
            found["vanilla"] = 100 * float(scores[unrotated].mean())
        for kind, names in (
            ("category", [sample.category for sample in samples]),
            ("l2-category", [sample.extra["l2"] for sample in samples]),
        ):
            for name in sorted(set(names) - {""}):
                inside = np.array([other == name for other in names])
                part = [group for group, kept in zip(groups, inside, strict=True) if kept]
                found[f"{kind}/{name}"] = 100 * self.aggregate(scores[inside], part)
        return found


@TASKS.register("mmbench-cn")
class MMBenchCN(MMBench):
    """The same questions in Chinese."""

    name: ClassVar[str] = "mmbench-cn"
    max_new_tokens = 256
    hub = (("lmms-lab-encoder/MMBench", "cn"), ("lmms-lab/MMBench", "cn"))
    post_prompt = f"\n{LETTER_CHINESE}"


@TASKS.register("ccbench")
class CCBench(MMBenchCN):
    """Questions about Chinese culture, four rotations each."""

    name: ClassVar[str] = "ccbench"
    hub = (("lmms-lab-encoder/MMBench", "cc"), ("lmms-lab/MMBench", "cc"))
    split = "test"
