"""Every use of a pruned prompt on every family: the table tests/uses.md, which `python tests/uses.py` writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from uses import PAGE, SCHEDULES, USES, Case, outcome, page, recorded
from vispco.testing.tiny import TINY

WHOLE = "llava"  # the others are the same code on other decoders, and take longer
# A use of each kind of other decoder that shows what is special about it.
FAST = {
    ("gemma3", "cropped"),
    ("gemma4", "another_block"),
    ("glm4v", "rows_chosen"),
    ("qwen3_5", "cropped"),
    ("internvl", "second_turn"),
    ("idefics3", "prompt_lookup"),
    ("mistral3", "copied"),
}


def test_the_table_is_of_all_uses_and_families() -> None:
    found = recorded()
    assert list(found) == list(TINY)
    assert all(list(uses) == [use.__name__ for use in USES] for uses in found.values())
    assert page(found) == PAGE.read_text()


def cases() -> list[object]:
    """All of one family; of the others each use under one schedule, in turn."""
    found = []
    for number, family in enumerate(TINY):
        for place, use in enumerate(USES):
            schedules = tuple(SCHEDULES) if family == WHOLE else (tuple(SCHEDULES)[(number + place) % len(SCHEDULES)],)
            fast = family == WHOLE or (family, use.__name__) in FAST
            name = f"{family}-{use.__name__}"
            found.append(pytest.param(family, use, schedules, id=name, marks=[] if fast else pytest.mark.slow))
    return found


@pytest.mark.parametrize(("family", "use", "schedules"), cases())
def test_a_use_does_what_the_table_says(family: str, use: Callable[[Case], None], schedules: tuple[str, ...]) -> None:
    said = dict(zip(SCHEDULES, recorded()[family][use.__name__], strict=True))
    assert {name: outcome(use, family, name) for name in schedules} == {name: said[name] for name in schedules}
