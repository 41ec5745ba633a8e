"""The conformance suite on every built-in schedule family, and golden values of the kernels."""

from __future__ import annotations

import pytest

from vispco.errors import ScheduleError
from vispco.pruning.families import FAMILIES
from vispco.pruning.schedules import Exponential, Linear, MultiStep, Sigmoid, Step, parse_schedule
from vispco.testing import FamilyConformance


class TestStep(FamilyConformance):
    family = FAMILIES["step"]


class TestConstant(FamilyConformance):
    family = FAMILIES["constant"]


class TestMultiStep(FamilyConformance):
    family = FAMILIES["multistep"]


class TestLinear(FamilyConformance):
    family = FAMILIES["linear"]


class TestExponential(FamilyConformance):
    family = FAMILIES["exponential"]


class TestSigmoid(FamilyConformance):
    family = FAMILIES["sigmoid"]


class TestLayerwise(FamilyConformance):
    family = FAMILIES["layerwise"]


def test_kernel_values() -> None:
    """By hand; the sigmoid's are those of the official code with its slope of 10."""
    assert [round(r, 5) for r in Sigmoid(4, 10, 0.5).keep_ratio(9)[3:6]] == [0.99998, 0.75, 0.50002]
    assert Linear(2, 4, 0.2).keep_ratio(8) == pytest.approx((1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2))
    assert Exponential(1, 0.5, 0.1).keep_ratio(4) == pytest.approx((1, 1, 0.6458776, 0.4310915))
    assert MultiStep((2, 4), (0.5, 0.25)).keep_ratio(6) == (1, 1, 0.5, 0.5, 0.25, 0.25)
    assert MultiStep((2,), (0.5,)).keep_ratio(4) == Step(2, 0.5).keep_ratio(4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linear(start=1, width=0, keep=0.5)", "linear width is 0; it must be above 0"),
        ("linear(start=1, width=2)", "linear needs start, width, keep"),
        ("sigmoid(center=1, slope=2, keep=0.5)", "sigmoid has no parameter 'center'; did you mean 'centre'"),
        ("sigmoid(centre='x', slope=2, keep=0.5)", "sigmoid centre is 'x'"),
        ("exponential(1, 2, 1.5)", "exponential keep is 1.5"),
        ("multistep((2, 2), (0.5, 0.2))", "each must come after the one before"),
        ("multistep((2, 4), (0.5,))", "one keep per layer"),
        ("multistep((2, 4), (0.2, 0.5))", "keep ratio rises from 0.2 to 0.5"),
        ("multistep(2, 0.5)", "multistep layers is 2"),
        ("step((1, 2), 0.5)", "step layer is (1, 2)"),
        ("steps(2, 0.5)", "did you mean 'step'"),
        ("step(2, 0.5, 3)", "step needs layer, keep"),
        ("lambda: 0", "cannot read schedule"),
    ],
)
def test_wrong_texts_get_one_line(text: str, message: str) -> None:
    with pytest.raises(ScheduleError) as error:
        parse_schedule(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_step_behind_the_last_layer() -> None:
    with pytest.raises(ScheduleError, match="layers 0 to 3"):
        MultiStep((1, 4), (0.5, 0.2)).keep_ratio(4)
