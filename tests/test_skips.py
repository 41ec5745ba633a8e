"""``--complete``, with which .ci/run runs the tests: what a machine lacks is a failure, what does not apply is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from conftest import SLOW_FIXTURES, complete


def skipped(reason: str, given: bool) -> str:
    report: Any = SimpleNamespace(skipped=True, outcome="skipped", longrepr=("test_x.py", 1, f"Skipped: {reason}"))
    config: Any = SimpleNamespace(getoption=lambda name: given)
    return str(complete(report, config).outcome)


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("no Chromium with its driver in PATH: apt-get install chromium chromium-driver", "failed"),
        ("could not import 'ray': No module named 'ray'", "failed"),
        ("does not apply: llava has no text tower", "skipped"),
        ("in the long form only: make faults", "skipped"),
    ],
)
def test_a_skip_that_an_installation_would_take_away_fails(reason: str, outcome: str) -> None:
    assert skipped(reason, given=True) == outcome
    assert skipped(reason, given=False) == "skipped"


def test_tests_that_need_a_server_or_a_browser_are_slow(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            assert item.get_closest_marker("slow") is not None
