"""Every registered cost passes its suite; what is called exact is held against the model; profiles and their faults."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface

import vispco
from conftest import SMALL
from vispco.costs import COSTS, Prompts, Setting, make_cost, prefill_flops, read_profile, unpruned_flops
from vispco.costs.bounds import parse_bound
from vispco.costs.held import held, held_in, told_apart
from vispco.costs.profile import Curve, Profile, parse_profile
from vispco.errors import ConfigError
from vispco.evaluation.content import _settings
from vispco.evaluation.prepared import vision_flops
from vispco.models.families import adapter_for
from vispco.models.shapes import LayerShape
from vispco.problem import Problem
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import Ratios, Schedule, Step
from vispco.testing import CostConformance
from vispco.testing.costs import SHAPE, a_setting, planted_profile, some_counts, staircase
from vispco.testing.tiny import TINY


class TestFlops(CostConformance):
    cost = "flops"


class TestTotalFlops(CostConformance):
    cost = "total_flops"


class TestKvBytes(CostConformance):
    cost = "kv_bytes"


class TestPeakBytes(CostConformance):
    cost = "peak_bytes"


class TestPrefillMs(CostConformance):
    cost = "prefill_ms"


class TestLatencyMs(CostConformance):
    cost = "latency_ms"


class TestTokensPerSecond(CostConformance):
    cost = "tokens_per_second"


def test_every_cost_has_a_suite() -> None:
    assert {cls.cost for cls in CostConformance.__subclasses__()} == set(COSTS)
    with pytest.raises(ConfigError, match="unknown cost 'prefil_ms'; did you mean 'prefill_ms'"):
        make_cost("prefil_ms")


# --- exact where claimed -------------------------------------------------------------------------


def _held(layer: Any) -> list[torch.Tensor]:
    """Tensors that a layer of a cache keeps."""
    if hasattr(layer, "recurrent_states"):
        return [*layer.conv_states.values(), *layer.recurrent_states.values()]
    return [layer.keys, layer.values]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "qwen3_5", "qwen3_5 in bfloat16"])
@pytest.mark.parametrize("schedule", [None, Step(2, 0.5), Ratios([1, 0.75, 0.3, 0.1])], ids=str)
def test_kv_bytes_are_those_of_the_cache(family: str, schedule: Schedule | None) -> None:
    """Grouped heads and sliding windows, with a prompt longer than the window, and states of linear attention, one of
    which stays in float32."""
    tiny = TINY[family.split()[0]]
    model, batch = tiny.model(), tiny.batch([(9, 2, 12)])
    if "bfloat16" in family:
        model.to(torch.bfloat16)
    setting = Setting.of(adapter_for(model))
    visual = np.array([int(adapter_for(model).visual_mask(batch["input_ids"], None).sum())])
    text = np.array([batch["input_ids"].shape[1]]) - visual
    counts = (schedule or Step(0, 1.0)).counts(visual, setting.shape.layers)
    with torch.no_grad():
        if schedule is None:
            out = model(**batch, use_cache=True)
        else:
            with vispco.prune(model, method="random", schedule=schedule):
                out = model(**batch, use_cache=True)
    kept = [[held.nbytes for held in _held(layer)] for layer in out.past_key_values.layers]
    if family == "gemma3":
        assert text[0] + visual[0] > min(window for window in setting.windows if window)
    assert make_cost("kv_bytes").of(setting, counts, visual, text).tolist() == [sum(map(sum, kept))]


def test_total_flops_are_those_of_generation(tiny_llava: Any) -> None:
    """Against torch's counter: the decoder's steps and the head, of an answer of one and of four tokens."""
    tiny = TINY["llava"]
    batch = tiny.batch([(3, 1, 5)])
    adapter = adapter_for(tiny_llava)
    features = adapter.encode_images(batch)
    inputs = adapter.with_features(batch, features)
    visual = np.array([len(features)])
    text = np.array([batch["input_ids"].shape[1]]) - visual
    schedule, method = Step(2, 0.5), make_method("fastv")
    setting = replace(Setting.of(adapter), method=method)
    counts = schedule.counts(visual, setting.shape.layers)
    for tokens in (1, 4):
        counter = FlopCounterMode(display=False)
        with (
            torch.no_grad(),
            vispco.prune(tiny_llava, method=method, schedule=schedule),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            counter,
        ):
            tiny_llava.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        cost = make_cost("total_flops").of(replace(setting, answer_tokens=tokens), counts, visual, text)
        assert cost.tolist() == [counter.get_total_flops()]


@pytest.mark.parametrize("text", [2, 5, 12])
def test_steps_read_no_more_than_a_window(text: int) -> None:
    """Of a pruned layer whose window the whole answer leaves room in, is filled by it, or was full before."""
    tiny, schedule = TINY["gemma3"], Step(2, 0.0)
    model, batch = tiny.model(), tiny.batch([(text, 1, text)])
    adapter = adapter_for(model)
    with torch.no_grad():
        features = adapter.encode_images(batch)
        inputs = adapter.with_features(batch, features)
    visual = np.array([len(features)])
    other = np.array([batch["input_ids"].shape[1]]) - visual
    setting = replace(Setting.of(adapter), answer_tokens=5)
    counter = FlopCounterMode(display=False)
    with (
        torch.no_grad(),
        vispco.prune(model, method="random", schedule=schedule),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        counter,
    ):
        model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert (other[0] > 12, other[0] + 4 > 12) == (text == 12, text > 2)
    counts = schedule.counts(visual, setting.shape.layers)
    assert make_cost("total_flops").of(setting, counts, visual, other).tolist() == [counter.get_total_flops()]


def test_the_towers_attention_is_counted_whatever_computes_it() -> None:
    """Torch counts nothing of a flash kernel; here of a function that multiplies nothing at all."""
    problem = Problem.from_text(SMALL)
    plain, tower = vision_flops(problem), problem.adapter.model.model.vision_tower.config
    AttentionInterface.register("unseen", lambda module, query, key, value, *_, **__: (value.transpose(1, 2), None))
    own, decoder = dict(vars(problem.adapter.model.config)), problem.adapter.attention()
    tower._attn_implementation = "unseen"
    assert vision_flops(problem) == plain
    assert (tower._attn_implementation, problem.adapter.attention()) == ("unseen", decoder)
    assert dict(vars(problem.adapter.model.config)) == own


def test_flops_are_prefill_flops() -> None:
    counts, visual, text = some_counts(7)
    for name in ("fastv", "sparsevlm", "divprune", "stride"):
        method = make_method(name)
        setting = replace(a_setting(), method=method)
        exact = prefill_flops(SHAPE, counts, visual, text, method)
        assert make_cost("flops").of(setting, counts, visual, text).tolist() == exact.tolist()
        whole = unpruned_flops(SHAPE, visual, text)
        prompts = Prompts.of([(visual[:20], text[:20]), (visual[20:], text[20:])])
        assert make_cost("flops").unpruned(setting, visual, text).tolist() == whole.tolist()
        assert prompts.mean(np.ones(len(prompts.visual))) == pytest.approx(1)


def test_mean_over_prompts_is_over_tasks_and_samples() -> None:
    """Two tasks of unequal size count the same; a share is taken prompt by prompt."""
    tasks = [(np.array([10, 40]), np.array([5, 5])), (np.array([40, 40, 80]), np.array([5, 9, 9]))]
    prompts = Prompts.of(tasks)
    setting, cost, schedule = a_setting(), make_cost("flops"), Step(2, 0.5)
    each = []
    for visual, text in tasks:
        counts = schedule.counts(visual, SHAPE.layers)
        each.append(np.mean(cost.of(setting, counts, visual, text) / cost.unpruned(setting, visual, text)))
    _, share = cost.mean(setting, schedule.counts(prompts.visual, SHAPE.layers), prompts)
    assert share == pytest.approx(np.mean(each), rel=1e-12)
    assert Prompts.from_list(json.loads(json.dumps(prompts.to_list()))).weight.tolist() == prompts.weight.tolist()


def test_a_rate_over_prompts_is_that_of_their_mean_time() -> None:
    """Half of the prompts short, half long: the mean of their rates would promise what nobody gets."""
    prompts = Prompts.of([(np.array([4, 40]), np.array([5, 60]))])
    setting, counts = a_setting(), Step(2, 0.5).counts(prompts.visual, SHAPE.layers)
    rate, latency = make_cost("tokens_per_second"), make_cost("latency_ms")
    mine, whole = (
        latency.of(setting, counts, prompts.visual, prompts.text),
        latency.unpruned(setting, prompts.visual, prompts.text),
    )
    absolute, share = rate.mean(setting, counts, prompts)
    assert absolute == pytest.approx(1000 * setting.batch * setting.answer_tokens / mine.mean())
    assert share == pytest.approx(whole.mean() / mine.mean())
    assert absolute < rate.of(setting, counts, prompts.visual, prompts.text).mean() * 0.99


@pytest.mark.parametrize(("cost", "given"), [("prefill_ms", 120), ("kv_bytes", "3e9"), ("flops", 2.1)])
def test_an_amount_without_its_unit_is_no_bound(cost: str, given: float | str) -> None:
    with pytest.raises(ConfigError, match=r"which bounds nothing; add a unit if it is an amount"):
        parse_bound(cost, given)
    assert parse_bound(cost, 1.5).relative
    assert parse_bound("tokens_per_second", 3).relative  # of a rate three times is a demand


def test_latency_by_hand() -> None:
    setting = replace(a_setting(), answer_tokens=5)
    visual, text = np.array([40]), np.array([10])
    counts = np.array([[40, 40, 5, 5, 5, 5]])
    times = planted_profile().batches[1]
    full, sliding, line = times.layers["full"], times.layers["sliding"], times.rest
    at = lambda curve, n: float(curve(np.array([n]))[0])  # noqa: E731
    prefill = at(full, 50) + at(sliding, 50) + 3 * at(sliding, 15) + at(full, 15)
    prefill += at(times.tower, 40) + at(line, 50) + at(line, 50) + 0.2 + 6 * 0.01
    assert make_cost("prefill_ms").of(setting, counts, visual, text)[0] == pytest.approx(prefill)
    steps = at(line, 52) + at(line, 19) + 3 * at(line, 17) + at(line, 17) + 0.3 + 0.05
    latency = make_cost("latency_ms").of(setting, counts, visual, text)[0]
    assert latency == pytest.approx(prefill + 4 * steps)
    assert make_cost("tokens_per_second").of(setting, counts, visual, text)[0] == pytest.approx(5000 / latency)


# --- profiles ------------------------------------------------------------------------------------


def test_a_staircase_is_kept() -> None:
    curve = staircase(edges=(16, 48))
    assert curve(np.array([1, 16, 17, 48, 49, 200])).tolist() == [1, 1, 2, 2, 3, 3]
    assert curve.edges() == [16, 48]
    tokens = torch.tensor([15.5, 16.25, 17.5], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(curve(tokens).sum(), [tokens])
    assert slope.tolist() == [0, 1, 0]
    with pytest.raises(ConfigError, match="up to 200 tokens, and 201 are asked for"):
        curve(np.array([5, 201]))


def test_a_profile_comes_back_from_its_file(tmp_path: Path) -> None:
    profile = planted_profile()
    (tmp_path / "p.json").write_text(profile.to_json())
    assert read_profile(tmp_path / "p.json") == profile


def test_a_profile_of_the_first_version_is_read() -> None:
    """It lacks what version 2 added, which is then 0: the costs are what they were."""
    data = json.loads(planted_profile().to_json())
    times = data["batches"]["1"]
    for part, added in ((times["methods"]["fastv"], ("pick", "pair", "step")), (times["decode"], ("start",))):
        for key in added:
            del part[key]
    del times["reference"]
    assert parse_profile({**data, "version": 1}, "p.json").batches == planted_profile().batches


def test_a_profile_of_the_second_version_is_read_and_stays_as_it_was() -> None:
    """It does not say how its model was held. Experiments know their profile by the hash of its data."""
    data = {**json.loads(planted_profile().to_json()), "version": 2}
    read = parse_profile(data, "p.json")
    assert "held" not in data
    assert read.model_dump(mode="json") == data
    now = {
        "model_type": "llava",
        "vision_config.depth": "4",
        "quantization": "quanto",
        "adapter": "",
        "attention": "sdpa",
    }
    read.check_model("mine", SHAPE, now)
    assert told_apart(read, now) == ""


def test_a_model_that_is_held_otherwise_is_refused_or_told() -> None:
    known = {"model_type": "llava", "vision_config.depth": "24", "quantization": "", "adapter": ""}
    profile = planted_profile().model_copy(update={"held": known})
    now = {**known, "attention": "sdpa", "dtype": "float32"}
    profile.check_model("mine", SHAPE, now)
    assert told_apart(profile, now) == ""
    for key, other in (("model_type", "qwen2_vl"), ("vision_config.depth", "27")):
        with pytest.raises(ConfigError, match=rf"'made' \({key} {known[key]}\), and 'mine' has {key} {other}"):
            profile.check_model("mine", SHAPE, {**now, key: other})
    for key, other, then in (
        ("quantization", "quanto weights=int8", "none"),
        ("adapter", "LORA r=8", "none"),
        ("attention", "eager", "sdpa"),
    ):
        profile.check_model("mine", SHAPE, {**now, key: other})
        assert told_apart(profile, {**now, key: other}) == f"the model was timed with {key} {then} instead of {other}"
    assert read_held(profile) == known


def read_held(profile: Profile) -> dict[str, str]:
    return parse_profile(json.loads(profile.to_json()), "p.json").held


def test_how_a_model_is_held_is_read_alike_from_it_and_from_an_experiment() -> None:
    """Of a model in 8 bits with an adapter: settings as transformers and PEFT keep them, and as a database does."""
    model = TINY["qwen2_5_vl"].build()
    model.config.quantization_config = {"quant_method": "quanto", "weights": "int8", "activations": None}
    wrapped = SimpleNamespace(to_dict=lambda: {"peft_type": "LORA", "r": 8, "lora_alpha": 16})
    model.peft_config = {"default": wrapped}
    found = held(adapter_for(model))
    assert found["model_type"] == "qwen2_5_vl"
    assert found["vision_config.depth"] == str(model.config.vision_config.depth)
    assert (found["quantization"], found["adapter"]) == ("quanto weights=int8", "LORA r=8")
    content = {
        "model": {"attention": found["attention"], "dtype": "torch.float32"},
        "configuration": _settings(model.config),
        "adapters": _settings({**model.peft_config, "active": ["default"]}),
    }
    assert {**held_in({"content": content}), "dtype": "float32"} == found
    assert held_in({}) == {}


def _broken(change: Any) -> dict[str, Any]:
    data = json.loads(planted_profile().to_json())
    change(data)
    return data


TIMES = "batches.1.layers.full"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["batches"]["1"]["layers"]["full"]["ms"].__setitem__(0, -1.0), f"{TIMES}.ms.0 = -1.0"),
        (lambda d: d["batches"]["1"]["layers"]["full"]["ms"].__setitem__(0, float("nan")), f"{TIMES}.ms.0 = nan"),
        (lambda d: d["batches"]["1"]["layers"]["full"]["ms"].__setitem__(0, 99.0), "claims to be monotone, but falls"),
        (lambda d: d["batches"]["1"]["layers"]["full"]["ms"].pop(), "times for"),
        (lambda d: d["batches"]["1"]["layers"]["full"]["tokens"].reverse(), "do not ascend"),
        (lambda d: d["batches"]["1"]["layers"].pop("sliding"), "no times of layers of kind 'sliding'"),
        (lambda d: d["kinds"].pop(), "5 kinds for 6 layers"),
        (lambda d: d.pop("dtype"), "dtype: Field required"),
        (lambda d: d.update(version=4), "reads up to 3; upgrade"),
        (lambda d: d.update(format="x"), "is no hardware profile"),
        (lambda d: d.update(batches={}), "batches"),
    ],
)
def test_bad_profiles_are_one_line(change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=r"^p\.json") as raised:
        parse_profile(_broken(change), "p.json")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_profile_of_another_model_or_depth_is_refused(tmp_path: Path) -> None:
    profile = planted_profile()
    profile.check_model("mine", SHAPE)
    with pytest.raises(ConfigError, match="with 6 decoder layers, and 'mine' has 8"):
        profile.check_model("mine", replace(SHAPE, layers=8))
    with pytest.raises(ConfigError, match=r"'made' \(hidden 32\), and 'mine' has hidden 64"):
        profile.check_model("mine", replace(SHAPE, hidden=64))
    with pytest.raises(ConfigError, match=r"no times of method 'divprune' \(it has fastv"):
        profile.method(1, "divprune")
    with pytest.raises(ConfigError, match="has batch 1, not 4"):
        profile.at(4)
    for text in ("", "{", "[]"):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(ConfigError, match="vispco profile MODEL"):
            read_profile(tmp_path / "p.json")
    with pytest.raises(ConfigError, match="cannot read profile"):
        read_profile(tmp_path / "none.json")


def test_a_falling_curve_may_say_so() -> None:
    assert Curve(tokens=[1, 2], ms=[2.0, 1.0], monotone=False)(np.array([2])).tolist() == [1.0]


def test_layers_may_differ() -> None:
    """Every cost asks each layer for its own sizes, and a setting comes back from plain data."""
    own = [LayerShape(8, 2, 4, 5000 + 100 * n) for n in range(5)] + [LayerShape(4, 4, 8, 9000)]
    setting = replace(a_setting(), shape=replace(SHAPE, each=tuple(own)))
    counts, visual, text = some_counts(8)
    exact = prefill_flops(setting.shape, counts, visual, text, setting.method)
    assert make_cost("flops").of(setting, counts, visual, text).tolist() == exact.tolist()
    held = np.minimum(counts + text[:, None], [10**6 if w is None else w - 1 for w in setting.windows])
    by_hand = (held * [2 * one.kv_heads * one.head_dim * 2 for one in own]).sum(axis=1)
    assert make_cost("kv_bytes").of(setting, counts, visual, text).tolist() == by_hand.tolist()
    again = Setting.from_dict(json.loads(json.dumps(setting.to_dict())))
    assert again.to_dict() == setting.to_dict()
    assert again.shape == setting.shape


def test_the_page_about_costs() -> None:
    page = (Path(__file__).parent.parent / "docs" / "choose.md").read_text()
    for name in COSTS:
        assert f"| `{name}` | {make_cost(name).unit} |" in page
