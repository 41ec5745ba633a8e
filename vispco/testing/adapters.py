"""What every model family must pass."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pytest
import torch

from vispco.models.families import adapter_for
from vispco.pruning.forward.attention import LayerAttention
from vispco.pruning.methods.base import Method, make_method
from vispco.pruning.needs import missing
from vispco.pruning.prune import prune
from vispco.pruning.schedules import Ratios, Schedule, Step
from vispco.testing import checks
from vispco.testing.tiny import LAYERS, TinyFamily

METHODS = ("fastv", "fitprune", "sparsevlm", "random")
SCHEDULES: tuple[Schedule, ...] = (Step(1, 0.5), Ratios([1, 0.75, 0.3, 0.3]), Step(2, 0.0))
ROWS = {"one": checks.ONE, "ragged": checks.RAGGED}


def differentiable(name: str) -> Method:
    method = make_method(name)
    if not method.differentiable:
        pytest.skip(f"does not apply: {name} is not differentiable")
    return method


class AdapterConformance:
    """Set ``tiny``, a small random model of the family (see :mod:`vispco.testing.tiny`).

    ``methods``: what the runtime is tried with. A family whose decoder is like that of a tested one may do with
    fewer; what methods read of a model is held against the model itself in any case.
    """

    tiny: ClassVar[TinyFamily]
    methods: ClassVar[tuple[str, ...]] = METHODS

    def pytest_generate_tests(self, metafunc: Any) -> None:
        if "method" in metafunc.fixturenames:
            metafunc.parametrize("method", self.methods)

    @pytest.fixture(params=["sdpa", "eager"])
    def model(self, request: Any) -> Any:
        model = self.tiny.model()
        model.set_attn_implementation(request.param)
        yield model
        model.set_attn_implementation("sdpa")

    def test_visual_tokens_are_found(self) -> None:
        batch = self.tiny.batch(checks.RAGGED)
        adapter, model = adapter_for(self.tiny.model()), self.tiny.model()
        found = adapter.visual_mask(batch["input_ids"], None)
        images = torch.tensor([row[1] for row in checks.RAGGED])
        assert found.sum(dim=1).tolist() == (images * self.tiny.picture_tokens).tolist()
        embedded = model.get_input_embeddings()(batch["input_ids"])
        assert torch.equal(adapter.visual_mask(None, embedded), found)

    def test_coordinates_name_every_token_once(self) -> None:
        batch = self.tiny.batch(checks.RAGGED)
        adapter = adapter_for(self.tiny.model())
        visual = adapter.visual_mask(batch["input_ids"], None)
        places = adapter.coordinates(batch, visual)
        for row, (_, images, _) in enumerate(checks.RAGGED):
            found = [tuple(place) for place in places[row, visual[row]].tolist()]
            assert found == sorted(set(found))
            assert {place[0] for place in found} == set(range(images * self.tiny.views))

    def test_features_stand_in_for_pixels(self) -> None:
        batch, model = self.tiny.batch(checks.RAGGED), self.tiny.model()
        adapter = adapter_for(model)
        with torch.no_grad():
            features = adapter.encode_images(batch)
            given = adapter.with_features(batch, features)
            assert not any(key.startswith("pixel_values") for key in given)
            assert torch.equal(model(**given).logits, model(**batch).logits)
        assert len(features) == int(adapter.visual_mask(batch["input_ids"], None).sum())

    def test_what_is_read_off_the_tower_is_each_pictures_own(self) -> None:
        """In one pass with the features, in their order, and the same whatever pictures are encoded beside."""
        model, adapter = self.tiny.model(), adapter_for(self.tiny.model())
        if adapter.watch_vision() is None:
            pytest.skip(f"does not apply: the adapter of {self.tiny.name} does not watch its vision tower")
        batch = self.tiny.batch(checks.RAGGED)
        with torch.no_grad():
            adapter.encode_images(batch)  # transformers puts hooks of its own on in the first call
            before = checks.installed_hooks(model)
            features, extras = adapter.encode_with_extras(batch)
            assert torch.equal(features, adapter.encode_images(batch))
            parts = extras.split(adapter.visual_mask(batch["input_ids"], None).sum(dim=1).tolist())
            for row, part in enumerate(parts):
                assert torch.equal(part.attention > 0, part.among > 0)
                assert len(part) == 0 or bool((part.among > 0).any())
                if len(part):
                    alone = adapter.encode_with_extras(self.tiny.row(batch, row))[1]
                    for name in ("attention", "pseudo_attention", "keys", "last_keys", "features"):
                        assert torch.allclose(getattr(part, name), getattr(alone, name), atol=1e-5), name
        assert checks.installed_hooks(model) == before
        assert extras.keys.shape[1] == extras.features.shape[1] == adapter.shape().vision_width

    def test_attention_rows_are_the_models_own(self) -> None:
        """Every row of every layer, computed beside the model, against the weights that eager attention returns."""
        model = self.tiny.model()
        if "attention" not in adapter_for(model).provides():
            pytest.skip(f"does not apply: no method may read the attention of {self.tiny.name}")
        model.set_attn_implementation("eager")
        batch, adapter, seen = self.tiny.batch(checks.RAGGED), adapter_for(model), {}
        handles = []
        for number, layer in enumerate(adapter.layers()):

            def keep(module: Any, args: Any, kwargs: Any, number: int = number) -> None:
                seen[number, "kwargs"] = kwargs

            handles.append(layer.register_forward_pre_hook(keep, with_kwargs=True))
            for what, module in zip(("queries", "keys"), adapter.projections(number), strict=True):

                def capture(module: Any, args: Any, output: Any, key: Any = (number, what)) -> None:
                    seen[key] = output

                handles.append(module.register_forward_hook(capture))
        try:
            with torch.no_grad():
                attentions = model(**batch, output_attentions=True).attentions
        finally:
            for handle in handles:
                handle.remove()
            model.set_attn_implementation("sdpa")
        valid = batch["attention_mask"].bool()
        every = torch.arange(valid.shape[1]).expand(len(valid), -1)
        for number in range(LAYERS):
            rows = LayerAttention(
                adapter,
                number,
                queries=seen[number, "queries"],
                keys=seen[number, "keys"],
                position_embeddings=seen[number, "kwargs"]["position_embeddings"],
                valid=valid,
                mask=seen[number, "kwargs"]["attention_mask"],
            ).rows(every)
            difference = (rows - attentions[number]).abs().amax(dim=(1, 3))[valid].max()
            assert float(difference) <= 1e-5, f"layer {number}: {float(difference):.3g}"

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_keep_one_is_the_plain_model(self, model: Any, method: str, side: str) -> None:
        checks.check_keep_one(model, self.tiny.batch(checks.RAGGED, side), make_method(method))

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
    @pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
    def test_dropping_equals_masking(self, model: Any, method: str, schedule: Schedule, rows: Any, side: str) -> None:
        checks.check_dropping(model, self.tiny.batch(rows, side), make_method(method), schedule)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
    def test_batch_and_padding_do_not_matter(self, method: str, schedule: Schedule, side: str) -> None:
        checks.check_rows_alone(self.tiny, self.tiny.batch(checks.RAGGED, side), make_method(method), schedule)

    @pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
    @pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
    def test_cached_generation_equals_recomputation(
        self, model: Any, method: str, schedule: Schedule, rows: Any
    ) -> None:
        checks.check_generation(self.tiny, self.tiny.batch(rows), make_method(method), schedule)

    def test_generation_after_pruning_before_the_first_layer(self, model: Any) -> None:
        for schedule in (Ratios([0.5, 0.5, 0.25, 0]), Step(0, 0.0)):
            checks.check_generation(self.tiny, self.tiny.batch(checks.RAGGED), make_method("random"), schedule)

    @pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
    def test_generate_knows_the_pictures_too(self, schedule: Schedule) -> None:
        """``generate`` hands the model features instead of pixels; pooling by cells still finds the same cells."""
        model, batch, kept = self.tiny.model(), self.tiny.batch(checks.RAGGED), []
        with torch.no_grad(), prune(model, method="pool", schedule=schedule) as session:
            for run in (model, partial(model.generate, max_new_tokens=1)):
                run(**batch)
                kept.append([session.kept(layer) for layer in range(LAYERS)])
        assert kept[0] == kept[1]

    def test_flops_equal_the_counter(self, method: str) -> None:
        for schedule in (Step(1, 0.5), Step(2, 0.0), Ratios([1, 1, 0.6, 0.1])):
            checks.check_flops(self.tiny, [(2, 2, 3), (6, 0, 2)], make_method(method), schedule)

    def test_head_gives_the_models_logits(self) -> None:
        batch, model = self.tiny.batch(checks.RAGGED), self.tiny.model()
        adapter, seen = adapter_for(model), []
        hook = adapter.layers()[-1].register_forward_hook(lambda module, args, output: seen.append(output))
        with torch.no_grad():
            logits = model(**batch).logits
            hidden = seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]
            hook.remove()
            assert torch.equal(adapter.head(hidden), logits)

    def test_policies_run_together_as_they_do_alone(self, method: str) -> None:
        policies = [*SCHEDULES, *checks.MANY]
        checks.check_sharing(self.tiny.model(), self.tiny.batch(checks.RAGGED), make_method(method), policies)

    def test_answers_together_are_those_of_generate(self) -> None:
        batch = self.tiny.batch([(3, 1, 5), (1, 1, 9), (2, 2, 3)])
        for method, more in ("fastv", checks.MANY[:6]), ("random", (Step(0, 0.5), Step(0, 0.0))):
            if missing(make_method(method), adapter_for(self.tiny.model())):
                continue
            policies = [*more, Step(1, 0.5), Step(1, 0.0)]
            checks.check_sharing_answers(self.tiny.model(), batch, make_method(method), policies)

    @pytest.mark.parametrize("schedule", [*SCHEDULES, Ratios([1, 0.6, 0.6, 0.1])], ids=str)
    def test_relaxed_model_with_a_hard_mask_is_the_pruned_one(
        self, model: Any, method: str, schedule: Schedule
    ) -> None:
        if not checks.has_relaxed(model, make_method(method)):
            pytest.skip(f"does not apply: {method} has no relaxed form here")
        checks.check_relaxed(model, self.tiny.batch(checks.RAGGED), make_method(method), schedule)

    def test_gradient_reaches_every_ratio(self, model: Any, method: str) -> None:
        checks.check_gradient(model, self.tiny.batch(checks.RAGGED), differentiable(method))

    def test_layers_may_run_again_in_the_backward_pass(self, model: Any, method: str) -> None:
        checks.check_recompute(model, self.tiny.batch(checks.RAGGED), differentiable(method))

    def test_relaxed_model_does_not_see_the_answer_behind_the_prompt(self, method: str) -> None:
        checks.check_trailing(self.tiny.model(), self.tiny.batch(checks.RAGGED), differentiable(method))

    def test_leaves_no_trace(self) -> None:
        checks.check_no_trace(
            self.tiny.model(), self.tiny.batch(checks.RAGGED), make_method(self.methods[0]), Step(1, 0.3)
        )
