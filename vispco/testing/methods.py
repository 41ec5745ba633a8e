"""What every pruning method must pass, on small random models of all families."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from vispco.errors import ScheduleError
from vispco.models.families import adapter_for
from vispco.pruning.methods.base import Method, make_method
from vispco.pruning.needs import LAYER_BEFORE, NEEDS, missing
from vispco.pruning.prune import prune
from vispco.pruning.schedules import Ratios, Schedule, Step
from vispco.testing import checks
from vispco.testing.tiny import TINY, TinyFamily

# Families that differ in what a method meets: plain, positions with three axes, windows of attention.
CORE = ("llava", "qwen2_5_vl", "gemma3")
SCHEDULES: tuple[Schedule, ...] = (Step(1, 0.5), Ratios([1, 0.75, 0.3, 0.1]), Step(2, 0.0))


def able(tiny: TinyFamily, method: Method) -> TinyFamily:
    """``tiny`` if ``method`` can run on it; else the test is skipped, and says what is missing."""
    if lacking := missing(method, adapter_for(tiny.model())):
        pytest.skip(f"does not apply: {tiny.name} has no {' and no '.join(NEEDS.get(need, need) for need in lacking)}")
    return tiny


class MethodConformance:
    """Set ``method``, an instance.

    ``equals_masking``: False for methods that put dropped tokens into kept ones.
    """

    method: ClassVar[Method]
    equals_masking: ClassVar[bool] = True

    @pytest.fixture(params=CORE)
    def tiny(self, request: Any) -> TinyFamily:
        return able(TINY[request.param], self.method)

    def test_comes_back_from_its_name_and_parameters(self) -> None:
        assert make_method(self.method.name, self.method.parameters()) == self.method

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_keep_one_is_the_plain_model(self, tiny: TinyFamily, side: str) -> None:
        checks.check_keep_one(tiny.model(), tiny.batch(checks.RAGGED, side), self.method)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
    def test_drops_as_scheduled(self, tiny: TinyFamily, schedule: Schedule, side: str) -> None:
        batch = tiny.batch(checks.RAGGED, side)
        checks.check_dropping(tiny.model(), batch, self.method, schedule, equals_masking=self.equals_masking)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
    def test_batch_and_padding_do_not_matter(self, tiny: TinyFamily, schedule: Schedule, side: str) -> None:
        checks.check_rows_alone(tiny, tiny.batch(checks.RAGGED, side), self.method, schedule)

    @pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
    def test_generates(self, tiny: TinyFamily, schedule: Schedule) -> None:
        batch = tiny.batch(checks.RAGGED)
        checks.check_generation(tiny, batch, self.method, schedule, equals_masking=self.equals_masking)

    def test_flops_equal_the_counter(self, tiny: TinyFamily) -> None:
        for schedule in SCHEDULES:
            checks.check_flops(tiny, [(2, 2, 3), (6, 0, 2)], self.method, schedule)

    def test_no_text_behind_the_picture(self, tiny: TinyFamily) -> None:
        batch = tiny.batch([(4, 1, 0), (2, 2, 0)])
        for schedule in SCHEDULES:
            checks.check_dropping(tiny.model(), batch, self.method, schedule, equals_masking=False)

    def test_before_the_first_layer(self, tiny: TinyFamily) -> None:
        """Methods that read the layer before say that there is none; others prune."""
        batch, schedule = tiny.batch(checks.RAGGED), Ratios([0.5, 0.5, 0.25, 0])
        if self.method.needs & LAYER_BEFORE:
            with pytest.raises(ScheduleError, match="none before layer 0"):
                checks.check_dropping(tiny.model(), batch, self.method, schedule)
        else:
            checks.check_dropping(tiny.model(), batch, self.method, schedule, equals_masking=self.equals_masking)

    def test_static_order_does_not_depend_on_earlier_boundaries(self, tiny: TinyFamily) -> None:
        if not self.method.static_order:
            pytest.skip(f"does not apply: {self.method.name}'s order depends on earlier boundaries")
        kept = []
        for schedule in (Step(3, 0.25), Ratios([1, 0.8, 0.5, 0.25])):
            with torch.no_grad(), prune(tiny.model(), method=self.method, schedule=schedule) as session:
                tiny.model()(**tiny.batch(checks.RAGGED))
            kept.append(session.kept(3))
        assert kept[0] == kept[1]

    @pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
    def test_relaxed_model_with_a_hard_mask_is_the_pruned_one(self, tiny: TinyFamily, schedule: Schedule) -> None:
        if not checks.has_relaxed(tiny.model(), self.method):
            pytest.skip(f"does not apply: {self.method.name} has no relaxed form")
        checks.check_relaxed(tiny.model(), tiny.batch(checks.RAGGED), self.method, schedule)

    def test_policies_run_together_as_they_do_alone(self, tiny: TinyFamily) -> None:
        limits = (None, 12_000, 0)
        checks.check_sharing(tiny.model(), tiny.batch(checks.RAGGED), self.method, checks.MANY, limits)

    @pytest.mark.parametrize("name", [name for name in TINY if name not in CORE])
    def test_on_every_other_family(self, name: str) -> None:
        """In short: what a method reads of a model is held against the model itself in AdapterConformance."""
        tiny, schedule = able(TINY[name], self.method), Ratios([1, 0.75, 0.3, 0.1])
        batch = tiny.batch(checks.RAGGED)
        checks.check_dropping(tiny.model(), batch, self.method, schedule, equals_masking=self.equals_masking)
        checks.check_rows_alone(tiny, batch, self.method, schedule)
        if checks.has_relaxed(tiny.model(), self.method):
            checks.check_relaxed(tiny.model(), batch, self.method, schedule)

    def test_leaves_no_trace(self, tiny: TinyFamily) -> None:
        checks.check_no_trace(tiny.model(), tiny.batch(checks.RAGGED), self.method, Step(1, 0.3))
