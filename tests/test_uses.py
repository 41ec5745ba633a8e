"""Every use of a pruned prompt on every family: the table tests/uses.md, which `python tests/uses.py` writes."""

from __future__ import annotations

import pytest

from uses import PAGE, SCHEDULES, USES, outcome, page, recorded
from vispco.testing.tiny import TINY

FAST = {"llava"}  # the others are the same code on other decoders, and take longer


def test_the_table_is_of_all_uses() -> None:
    found = recorded()
    assert set(found) <= set(TINY)
    assert all(list(uses) == [use.__name__ for use in USES] for uses in found.values())
    assert page(found) == PAGE.read_text()


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize(
    "family", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in recorded()]
)
def test_a_use_does_what_the_table_says(family: str, use: object) -> None:
    said = recorded()[family][use.__name__]  # type: ignore[attr-defined]
    assert [outcome(use, family, schedule) for schedule in SCHEDULES] == said  # type: ignore[arg-type]
