"""vLLM's plug-in against ``vispco.prune`` on the same weights: ``make vllm`` sets up vLLM and runs this.

Random models whose attention vLLM's CPU backend knows (heads of 32); one engine per family, in this process, whose
settings are changed between tests.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from io import BytesIO

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    HF_HUB_OFFLINE="1",
)

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make vllm")

import torch
from PIL import Image

import vispco
from vispco.errors import ConfigError, ScheduleError
from vispco.integrations.vllm.architectures import PREFIX
from vispco.integrations.vllm.pruned import split_places, with_places
from vispco.integrations.vllm.settings import DEVICES, Settings, refused
from vispco.models.families import adapter_for
from vispco.pruning.forward.pictures import prune_picture
from vispco.pruning.methods.base import Method, make_method
from vispco.pruning.schedules import Step, keep_count

KEEPS = (0.75, 0.4, 0.1)
METHODS = ("divprune", "visionzip", "stride")
TOKENS = 10
WORDS = "what color is the one beside the red shape"
DECODER = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}


def build_llava(folder: Path) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from benchmarks.train.demo.build import build_processor, vocabulary

    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=128,
        patch_size=16,
        initializer_range=0.3,
    )
    words = vocabulary()
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**DECODER, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        image_token_id=words["<image>"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=0.3)
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)


def build_qwen(folder: Path) -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from benchmarks.train.demo.qwen import build_processor, qwen_vocabulary

    words = qwen_vocabulary()
    config = Qwen2_5_VLConfig(
        text_config={
            **DECODER,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 128,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=words["<|image_pad|>"],
        video_token_id=words["<|video_pad|>"],
        vision_start_token_id=words["<|vision_start|>"],
        vision_end_token_id=words["<|vision_end|>"],
    )
    Qwen2_5_VLForConditionalGeneration(config).eval().save_pretrained(folder)
    processor = build_processor()
    processor.image_processor.size = {"shortest_edge": 32 * 32, "longest_edge": 160 * 160}
    processor.save_pretrained(folder)
    for name in ("processor_config.json", "tokenizer_config.json"):
        text = (folder / name).read_text().replace(type(processor).__name__, "Qwen2_5_VLProcessor")
        (folder / name).write_text(text)
    sizes = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    video = {"video_processor_type": "Qwen2VLVideoProcessor", "size": processor.image_processor.size, **sizes}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, default=dict))


BUILD = {"llava": build_llava, "qwen": build_qwen}
ARCHITECTURE = {"llava": "LlavaForConditionalGeneration", "qwen": "Qwen2_5_VLForConditionalGeneration"}
PICTURE = {"llava": "<image>", "qwen": "<|vision_start|><|image_pad|><|vision_end|>"}


@dataclass
class Both:
    """A family in vLLM and in transformers, on the same weights."""

    family: str
    engine: Any
    model: Any
    processor: Any
    served: Any = None
    kept: list[list[int]] = field(default_factory=list)

    def use(self, method: str, keep: float) -> None:
        given = {"method": method, "parameters": {}, "keep": keep}
        self.engine.llm_engine.model_config.hf_config.vispco = given
        self.served.settings = Settings(make_method(method), keep)
        self.engine.reset_prefix_cache()
        self.engine.llm_engine.reset_mm_cache()

    def prompt(self, pictures: Sequence[Any], text: str = WORDS) -> str:
        return PICTURE[self.family] * len(pictures) + f" {text}"

    def serve(self, asked: Sequence[tuple[Sequence[Any], str]], tokens: int = TOKENS) -> list[list[int]]:
        from vllm import SamplingParams

        self.kept.clear()
        prompts = [
            {
                "prompt": self.prompt(pictures, text),
                **({"multi_modal_data": {"image": list(pictures)}} if pictures else {}),
            }
            for pictures, text in asked
        ]
        settings = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        return [list(one.outputs[0].token_ids) for one in self.engine.generate(prompts, settings, use_tqdm=False)]

    def expected(
        self, pictures: Sequence[Any], method: Method, keep: float, text: str = WORDS, tokens: int = TOKENS
    ) -> tuple[list[list[int]], list[int]]:
        """Kept numbers of each picture, and the tokens, as ``vispco.prune`` gives them; several pictures one by one."""
        inputs = self.processor(
            images=[list(pictures)] if pictures else None, text=[self.prompt(pictures, text)], return_tensors="pt"
        )
        chosen = method if len(pictures) < 2 else OneByOne(method, keep)
        policy = Step(0, keep) if len(pictures) < 2 else Sums(self, keep)
        with vispco.prune(self.model, method=chosen, schedule=policy) as session:
            out = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        visual = adapter_for(self.model).visual_mask(inputs["input_ids"], None)[0].nonzero()[:, 0].tolist()
        rank = {place: number for number, place in enumerate(visual)}
        kept = [rank[place] for place in session.kept(0)[0]] if pictures else []
        return [kept], out[0, inputs["input_ids"].shape[1] :].tolist()


class Sums:
    """As many tokens of a prompt as its pictures keep one by one; what vLLM does."""

    def __init__(self, both: Both, keep: float) -> None:
        self.both, self.keep = both, keep

    def counts(self, n_visual: Any, layers: int, prompt: Any = None) -> Any:
        pictures = prompt.coordinates[0, prompt.visual[0], 0]
        count = sum(keep_count(self.keep, int((pictures == one).sum())) for one in pictures.unique())
        return np.full((len(n_visual), layers), count)


class OneByOne(Method):
    """A method that prunes each picture of a prompt by itself."""

    name = "one-by-one"

    def __init__(self, method: Method, keep: float) -> None:
        self.method, self.keep = method, keep
        self.needs = method.needs

    def score(self, context: Any) -> Any:
        return torch.zeros(context.visual.shape)

    def reduce(self, context: Any, scores: Any, keep: Any, hidden: Any) -> Any:
        from vispco.models.grids import Grid

        chosen, states = torch.zeros_like(context.visual), hidden.clone()
        at = context.visual[0].nonzero()[:, 0]
        where = context.prompt.coordinates[0, context.index[0, at]]
        for picture in where[:, 0].unique():
            own = (where[:, 0] == picture).nonzero()[:, 0]
            rows, columns = (int(where[own, axis].max()) + 1 for axis in (2, 3))
            extras = context.prompt.vision[0].take(own) if "vision" in self.needs else None
            kept_states, kept = prune_picture(
                self.method, hidden[0, at[own]], Grid(1, rows, columns), keep_count(self.keep, len(own)), extras=extras
            )
            chosen[0, at[own[kept]]] = True
            states[0, at[own[kept]]] = kept_states
        return chosen, states


def drawn(seed: int, size: tuple[int, int] = (128, 128)) -> Any:
    """Coloured boxes on grey noise."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(90, 160, (size[1], size[0], 3)).astype(np.uint8))
    for _ in range(5):
        x, y = rng.integers(0, size[0] - 16), rng.integers(0, size[1] - 16)
        picture.paste(tuple(rng.integers(0, 255, 3).tolist()), (x, y, x + 24, y + 24))
    return picture


SIZES = {"llava": [(128, 128), (200, 90)], "qwen": [(128, 96), (64, 128)]}


@pytest.fixture(scope="module", params=list(BUILD))
def both(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Both:
    from vllm import LLM

    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    BUILD[family](folder)
    engine = LLM(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        block_size=32,
        max_model_len=512,
        max_num_batched_tokens=512,
        max_num_seqs=8,
        num_gpu_blocks_override=18,
        limit_mm_per_prompt={"image": 2},
        enable_prefix_caching=True,
        hf_overrides={
            "architectures": [PREFIX + ARCHITECTURE[family]],
            "vispco": {"method": "visionzip", "keep": 0.5},
        },
    )
    model, processor = vispco.load_model(str(folder))
    model.generation_config.eos_token_id = None  # vLLM is told to ignore it
    found = Both(family, engine, model, processor)
    found.served = engine.apply_model(lambda served: served)[0]
    one = found.served._one

    def noted(features: Any, grid: Any, extras: Any) -> Any:
        rows = one(features, grid, extras)
        _, places = split_places(rows)
        width = 1 if family == "llava" else grid.columns
        numbers = places[:, 0] if family == "llava" else places[:, 1] * width + places[:, 2]
        found.kept.append(numbers.tolist())
        return rows

    found.served._one = noted
    return found


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("method", METHODS)
def test_kept_tokens_and_answers_are_the_same(both: Both, method: str, keep: float) -> None:
    both.use(method, keep)
    answers = []
    for seed, size in enumerate(SIZES[both.family]):
        picture = drawn(seed, size)
        kept, tokens = both.expected([picture], make_method(method), keep)
        assert both.serve([([picture], WORDS)]) == [tokens]
        assert both.kept == kept
        answers.append(tokens)
    assert len({token for answer in answers for token in answer}) > 2, "answers say little"


@pytest.mark.parametrize("method", METHODS)
def test_two_pictures_are_pruned_one_by_one(both: Both, method: str) -> None:
    both.use(method, 0.4)
    pictures = [drawn(10 + number, size) for number, size in enumerate(SIZES[both.family])]
    _, tokens = both.expected(pictures, make_method(method), 0.4)
    assert both.serve([(pictures, WORDS)]) == [tokens]
    assert len(both.kept) == 2


def test_a_batch_of_four_with_text_alone(both: Both) -> None:
    both.use("divprune", 0.4)
    size = SIZES[both.family][0]
    texts = [WORDS, "what shape is the red one", "how many others look like the one", "what is the color"]
    asked: list[tuple[Sequence[Any], str]] = [([drawn(20 + n, size)], text) for n, text in enumerate(texts)]
    asked[2] = ([], texts[2])
    expected = [both.expected(pictures, make_method("divprune"), 0.4, text)[1] for pictures, text in asked]
    assert both.serve(asked) == expected


def test_a_warm_cache_changes_nothing_and_another_schedule_does(both: Both) -> None:
    picture = drawn(30, SIZES[both.family][0])
    both.use("divprune", 0.4)
    cold = both.serve([([picture], WORDS)])
    assert both.serve([([picture], WORDS)]) == cold
    assert (
        both.serve([([picture], f"{WORDS} ?")])[0]
        == both.expected([picture], make_method("divprune"), 0.4, f"{WORDS} ?")[1]
    )


def test_a_prompt_in_chunks_smaller_than_a_picture(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    both.use("divprune", 0.75)
    scheduler = both.engine.llm_engine.engine_core.engine_core.scheduler
    pictures = [drawn(50 + number, size) for number, size in enumerate(SIZES[both.family])]
    asked: list[tuple[Sequence[Any], str]] = [(pictures, WORDS), ([pictures[0]], "what shape is the red one")]
    expected = [both.expected(shown, make_method("divprune"), 0.75, text)[1] for shown, text in asked]
    steps: list[int] = []
    embed = both.served.embed_input_ids
    monkeypatch.setattr(scheduler, "max_num_scheduled_tokens", 7)
    monkeypatch.setattr(
        both.served, "embed_input_ids", lambda ids, *a, **k: steps.append(len(ids)) or embed(ids, *a, **k)
    )
    assert both.serve(asked) == expected
    assert max(steps) == 7, "pictures have more tokens than a chunk"


def test_requests_that_are_put_back_go_on_as_they_were(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preemption: too few blocks of cache for all answers at once."""
    both.use("divprune", 0.4)
    scheduler = both.engine.llm_engine.engine_core.engine_core.scheduler
    size, length = SIZES[both.family][0], 70
    asked: list[tuple[Sequence[Any], str]] = [([drawn(60 + number, size)], WORDS) for number in range(6)]
    expected = [both.expected(shown, make_method("divprune"), 0.4, text, length)[1] for shown, text in asked]
    put_back: list[Any] = []
    preempt = scheduler._preempt_request
    monkeypatch.setattr(scheduler, "_preempt_request", lambda *a, **k: put_back.append(a) or preempt(*a, **k))
    assert both.serve(asked, length) == expected
    assert put_back, "there was room for all"


def test_everything_kept_is_the_plain_model(both: Both) -> None:
    both.use("stride", 1.0)
    picture = drawn(40, SIZES[both.family][0])
    inputs = both.processor(images=[[picture]], text=[both.prompt([picture])], return_tensors="pt")
    out = both.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
    assert both.serve([([picture], WORDS)]) == [out[0, inputs["input_ids"].shape[1] :].tolist()]


def test_from_an_exported_file_to_an_answer_of_its_server(tmp_path: Path) -> None:
    """Its engine is another process, which finds the plug-in by its entry point."""

    import openai
    import yaml

    from vispco.exporting import server_settings
    from vispco.tasks.base import Sample
    from vispco.tasks.rendering import render_prompt

    torch.manual_seed(0)
    build_llava(tmp_path / "model")
    found = {
        "method": "divprune",
        "method_parameters": {},
        "schedule": "step(layer=0, keep=0.4)",
        "keep_ratio": [0.4] * 3,
    }
    (tmp_path / "vllm.yaml").write_text(
        yaml.safe_dump(server_settings({**found, "model": str(tmp_path / "model")}, "vllm"))
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--config", str(tmp_path / "vllm.yaml")]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--enforce-eager",
        "--block-size",
        "32",
    ]
    log = (tmp_path / "log").open("w")
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    picture, question = drawn(70), WORDS
    sent = BytesIO()
    picture.save(sent, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(sent.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    try:
        while True:
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            try:
                (served,) = client.models.list().data
                break
            except openai.APIConnectionError:
                time.sleep(1)
        answer = client.chat.completions.create(
            model=served.id,
            messages=[{"role": "user", "content": content}],  # type: ignore[arg-type, list-item]
            max_tokens=TOKENS,
            temperature=0,
            extra_body={"ignore_eos": True, "return_token_ids": True, "add_special_tokens": True},
        )
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    model, processor = vispco.load_model(str(tmp_path / "model"))
    model.generation_config.eos_token_id = None
    prompt = render_prompt(processor, Sample("", "", [picture], question, ()))
    inputs = processor(images=[[picture]], text=[prompt], return_tensors="pt")
    with vispco.prune(model, method="divprune", schedule=Step(0, 0.4)) as session:
        out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
    length = inputs["input_ids"].shape[1]
    assert answer.choices[0].token_ids == out[0, length:].tolist()  # type: ignore[attr-defined]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == length - session.dropped_tokens


# --- without an engine -----------------------------------------------------------------------------


def test_places_survive_bfloat16() -> None:
    places = torch.tensor([[0, 1, 255], [256, 257, 65535], [511, 512, 30000]])
    states = torch.randn(3, 8, dtype=torch.bfloat16)
    back, found = split_places(with_places(states, places))
    assert torch.equal(found, places)
    assert torch.equal(back, states)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "vispco export EXPERIMENT"),
        ({"method": "divprune"}, "vispco export EXPERIMENT"),
        ({"method": "divprune", "keep": 0.0}, "above 0 and at most 1"),
        ({"method": "divprune", "keep": True}, "above 0 and at most 1"),
        ({"method": "fastv", "keep": 0.5}, "method 'fastv' does not run on target 'vllm'"),
        ({"method": "vispruner", "keep": 0.5}, "method 'vispruner' does not run on target 'vllm'"),
        ({"method": "divprun", "keep": 0.5}, "did you mean 'divprune'"),
        ({"method": "divprune", "keep": 0.5, "layer": 2}, "vispco export EXPERIMENT"),
    ],
)
def test_settings_that_do_not_run_are_refused(given: Any, message: str) -> None:
    class Config:
        vispco = given

    with pytest.raises((ConfigError, ValueError)) as refused:
        Settings.of(Config())
    assert message in str(refused.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("unserved")
    torch.manual_seed(0)
    build_llava(made)
    return made


def engine_config(folder: Path, config: dict[str, Any] | None = None, **settings: Any) -> Any:
    """What vLLM makes of its settings before it loads a model."""
    from vllm.engine.arg_utils import EngineArgs

    overrides = {
        "architectures": [PREFIX + ARCHITECTURE["llava"]],
        "vispco": {"method": "divprune", "keep": 0.5},
        **(config or {}),
    }
    given = {"dtype": "float32", "block_size": 32, "max_model_len": 512, "hf_overrides": overrides, **settings}
    return EngineArgs(str(folder), **given).create_engine_config()


def test_one_engine_on_one_device_is_accepted(folder: Path) -> None:
    config = engine_config(folder)
    assert config.model_config.uses_mrope
    assert list(refused(config)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative_config: a draft"),
        ({"enable_mm_embeds": True}, "enable_mm_embeds: features from clients"),
        ({"enable_prompt_embeds": True}, "enable_prompt_embeds: what clients send"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size 2: pruned models run on one device"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size 2: pruned models run on one device"),
        ({"config": {"vispco": {"method": "fastv", "keep": 0.5}}}, "method 'fastv' does not run on target 'vllm'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_prune_wrongly_is_refused_before_a_model_is_loaded(
    settings: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises((ConfigError, ScheduleError, ValueError), match=message):
        engine_config(folder, **settings)


def test_the_second_model_runner_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import envs

    # An engine of an earlier test has made vLLM remember its environment.
    envs.disable_envs_cache()
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises((ConfigError, ValueError), match="set VLLM_USE_V2_MODEL_RUNNER=0"):
        engine_config(folder)


@pytest.mark.parametrize(
    ("place", "value", "name"),
    [
        ("parallel_config.use_ubatching", True, "enable_dbo"),
        ("parallel_config.prefill_context_parallel_size", 2, "prefill_context_parallel_size 2"),
        ("parallel_config.decode_context_parallel_size", 2, "decode_context_parallel_size 2"),
        ("ec_transfer_config", object(), "ec_transfer_config"),
        ("kv_transfer_config", object(), "kv_transfer_config"),
    ],
)
def test_settings_that_need_more_than_this_machine_are_refused(place: str, value: Any, name: str) -> None:
    parallel = dict.fromkeys(DEVICES, 1)
    model = SimpleNamespace(enable_prompt_embeds=False, multimodal_config=SimpleNamespace(enable_mm_embeds=False))
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel, use_ubatching=False),
        model_config=model,
        **dict.fromkeys(("speculative_config", "ec_transfer_config", "kv_transfer_config")),
    )
    assert list(refused(config)) == []
    *holders, last = place.split(".")
    holder: Any = config
    for one in holders:
        holder = getattr(holder, one)
    setattr(holder, last, value)
    assert [found.startswith(name) for found, _ in refused(config)] == [True]


def test_digests_tell_schedules_apart() -> None:
    made = [Settings(make_method(name), keep) for name in ("divprune", "random") for keep in (0.5, 0.25)]
    made.append(Settings(make_method("random", {"seed": 1}), 0.5))
    assert len({settings.digest for settings in made}) == 5
