"""CIDEr-D and ROUGE-L: how near a caption or a long answer is to its references."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Grams = Counter[tuple[str, ...]]
LONGEST, SIGMA, BETA = 4, 6.0, 1.2


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation: what is left of PTB tokens once their punctuation is removed."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())


def grams(words: Sequence[str]) -> list[Grams]:
    """Counts of the 1-grams, ..., 4-grams."""
    spans = ([tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for n in range(1, LONGEST + 1))
    return [Counter(span) for span in spans]


@dataclass(frozen=True)
class Frequencies:
    """In how many of ``documents`` samples an n-gram is in some reference. Frozen once, so that a score does not depend
    on which samples are scored beside."""

    documents: int
    of: Counter[tuple[str, ...]]

    @staticmethod
    def count(references: Iterable[Sequence[str]]) -> Frequencies:
        """From the references of each sample of the whole data set."""
        found: Counter[tuple[str, ...]] = Counter()
        documents = 0
        for texts in references:
            documents += 1
            found.update({gram for text in texts for counts in grams(words_of(text)) for gram in counts})
        return Frequencies(documents, found)

    def weigh(self, counts: Grams) -> dict[tuple[str, ...], float]:
        """Each n-gram's count times ``log documents - log max(1, frequency)``."""
        base = math.log(max(1, self.documents))
        return {gram: count * (base - math.log(max(1, self.of[gram]))) for gram, count in counts.items()}


def cider(answer: str, references: Sequence[str], frequencies: Frequencies) -> float:
    """CIDEr-D on its scale of 0 to 10: mean over references and over n of clipped cosines, less for another length.

    Source: arXiv 1411.5726; the counts are those of pycocoevalcap. Deviations: document frequencies are of the whole
    data set, not of the samples of one run; words are split by this module's rule, not by the Java tokeniser.
    """
    said = words_of(answer)
    own = [frequencies.weigh(counts) for counts in grams(said)]
    total = 0.0
    for reference in references:
        words = words_of(reference)
        near = math.exp(-((len(said) - len(words)) ** 2) / (2 * SIGMA**2))
        for mine, counts in zip(own, grams(words), strict=True):
            theirs = frequencies.weigh(counts)
            product = sum(min(value, theirs[gram]) * theirs[gram] for gram, value in mine.items() if gram in theirs)
            length = math.hypot(*mine.values()) * math.hypot(*theirs.values())
            total += near * product / length if length else 0.0
    return 10 * total / (LONGEST * len(references))


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """The best F-measure of the longest common subsequence of words over the references, in [0, 1]; beta 1.2.

    Source: Lin 2004, with the best precision and the best recall over references, as pycocoevalcap.

    >>> round(rouge_l("a cat sat", ["the cat sat down"]), 3)
    0.564
    """
    said = words_of(answer)
    both = [(len(words), common(said, words)) for words in map(words_of, references)]
    precision = max(shared / len(said) if said else 0.0 for _, shared in both)
    recall = max(shared / length if length else 0.0 for length, shared in both)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for left in a:
        before = 0
        for j, right in enumerate(b, start=1):
            before, row[j] = row[j], before + 1 if left == right else max(row[j], row[j - 1])
    return row[-1]
