"""``vispco serve``: one server process, spoken to by the official client and by clients that misbehave."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tomllib
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import openai
import psutil
import pytest
import torch
import typer
from PIL import Image

import vispco
from pages import blocks
from report_data import fill
from vispco.analysis.comparison import Comparison
from vispco.cli.main import app
from vispco.cli.serving import serve_model
from vispco.errors import ConfigError, ModelError, ScheduleError
from vispco.exporting import export_schedule, server_settings
from vispco.integrations.transformers_serve.app import Server, build
from vispco.integrations.transformers_serve.generation import Gone, PrunedGeneration
from vispco.integrations.transformers_serve.limits import Limits, Refused
from vispco.integrations.transformers_serve.metrics import Metrics
from vispco.integrations.transformers_serve.middleware import Admission, Call
from vispco.integrations.transformers_serve.pictures import read_picture
from vispco.integrations.transformers_serve.requests import ChatRequest
from vispco.integrations.transformers_serve.schedules import Served, served_schedules
from vispco.models.loading import load_model
from vispco.pruning.methods.base import make_method
from vispco.storage.store import Store
from vispco.tasks.base import Sample, make_task
from vispco.tasks.rendering import render_prompt

FILES = {
    "0.5": ("fastv", {}, "step(layer=2, keep=0.5)"),
    "0.3": ("divprune", {}, "step(layer=0, keep=0.125)"),
}


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    port: int
    folder: Path

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=300)

    def post(self, body: Any, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        status, answer = self.exchange("POST", path, data, sent)
        return status, json.loads(answer)

    def exchange(self, verb: str, path: str, data: bytes | None = None, headers: Any = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(verb, path, data, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def counters(self) -> dict[str, float]:
        from prometheus_client.parser import text_string_to_metric_families

        text = self.exchange("GET", "/metrics")[1].decode()
        return {
            f"{sample.name}/{sample.labels.get('model', '')}": sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if "le" not in sample.labels and "status" not in sample.labels
        }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def write_schedule(path: Path, budget: str) -> Path:
    method, parameters, schedule = FILES[budget]
    facts = {"format": "vispco-schedule", "version": 2, "budget": float(budget), "model": "demo"}
    path.write_text(json.dumps({**facts, "method": method, "method_parameters": parameters, "schedule": schedule}))
    return path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    options: list[str] = []
    for budget in FILES:
        options += ["--schedule", str(write_schedule(folder / f"{budget}.json", budget))]
    options += ["--max-pictures", "3", "--max-megapixels", "1", "--max-body-mb", "2", "--max-tokens", "64"]
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "vispco", "serve", "demo", "--port", str(port), *options],
        stderr=log,
        stdout=log,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    started = Running(process, port, folder)
    try:
        wait_for(started)
        yield started
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert "Traceback" not in (folder / "log").read_text()
    finally:
        process.kill()
        log.close()


def wait_for(started: Running) -> None:
    for _ in range(600):
        try:
            assert started.exchange("GET", "/health") == (200, b'{"status":"ok"}')
            return
        except OSError:
            assert started.process.poll() is None, (started.folder / "log").read_text()
            time.sleep(0.2)
    raise AssertionError("the server did not start")


def data_url(picture: Any, kind: str = "PNG") -> str:
    data = BytesIO()
    picture.save(data, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def messages(sample: Sample) -> list[Any]:
    pictures = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in sample.images]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": sample.question}]}]


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return load_model("demo")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    task = make_task("mosaic-vqa", {"held_out": 24})
    return list(task.samples("held_out"))


def generated(demo: tuple[Any, Any], sample: Sample, budget: str | None, most: int = 16) -> str:
    """What the model itself says, in a prune block or, without a budget, outside one."""
    model, processor = demo
    pictures = [list(sample.images)] if sample.images else None
    inputs = processor(images=pictures, text=[render_prompt(processor, sample)], return_tensors="pt")
    if budget is None:
        tokens = model.generate(**inputs, max_new_tokens=most)
    else:
        method, parameters, schedule = FILES[budget]
        with vispco.prune(model, method=make_method(method, parameters), schedule=schedule):
            tokens = model.generate(**inputs, max_new_tokens=most)
    return str(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


NAMES = {"demo": "0.5", "demo@0.5": "0.5", "demo@0.3": "0.3", "demo@unpruned": None}


# --- answers ---------------------------------------------------------------------------------------


def test_many_clients_get_what_generate_gives(running: Running, demo: Any, samples: list[Sample]) -> None:
    asked = [(sample, name) for sample in samples[:16] for name in NAMES]
    expected = [generated(demo, sample, NAMES[name]) for sample, name in asked]
    assert len({tuple(expected[number::4]) for number in range(1, 4)}) == 3, "the schedules answer alike: choose others"

    def ask(one: tuple[Sample, str]) -> str:
        answer = running.client.chat.completions.create(model=one[1], messages=messages(one[0]), max_tokens=16)
        return str(answer.choices[0].message.content)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, asked)) == expected


@pytest.mark.parametrize("name", NAMES)
def test_streamed_answers_are_the_same(running: Running, demo: Any, samples: list[Sample], name: str) -> None:
    for sample in samples[:3]:
        stream = running.client.chat.completions.create(
            model=name, messages=messages(sample), max_tokens=16, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == generated(
            demo, sample, NAMES[name]
        )
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens > 0


def test_several_pictures_and_text_alone(running: Running, demo: Any, samples: list[Sample]) -> None:
    pair = (samples[0].images[0], samples[5].images[0])
    two = Sample(id="two", group_id="two", images=pair, question=samples[0].question, answers=())
    text = Sample(id="text", group_id="text", images=(), question="what color is the top left shape ?", answers=())
    for sample in (two, text):
        answer = running.client.chat.completions.create(model="demo@0.3", messages=messages(sample), max_tokens=8)
        assert answer.choices[0].message.content == generated(demo, sample, "0.3", 8)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 64 * len(sample.images) + len(sample.question.split()) + 1


def test_formats_of_pictures(running: Running, samples: list[Sample]) -> None:
    """Lossless formats give one answer; a turned picture is shown upright."""
    picture = samples[1].images[0]
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    data = BytesIO()
    turned.save(data, "PNG", exif=exif)
    urls = [data_url(picture, kind) for kind in ("PNG", "BMP")]
    urls.append(f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}")
    read = [read_picture(url, 1, Limits()).tobytes() for url in urls]
    assert read[0] == read[1] == read[2]
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": url} for url in urls]
    body = {"messages": [{"role": "user", "content": [*content, {"type": "text", "text": "What is this?"}]}]}
    assert running.post(body)[0] == 200


def test_settings_of_a_request(running: Running, samples: list[Sample]) -> None:
    create, asked = running.client.chat.completions.create, messages(samples[0])
    cut = create(model="demo", messages=asked, max_tokens=1)
    assert cut.choices[0].finish_reason == "length"
    whole = create(model="demo", messages=asked)
    assert whole.choices[0].finish_reason == "stop"
    hot = [create(model="demo", messages=asked, temperature=2.0, seed=seed, max_tokens=12) for seed in [*range(6), 0]]
    texts = [answer.choices[0].message.content for answer in hot]
    assert texts[0] == texts[-1]
    assert len(set(texts)) > 1


def test_names_are_listed_and_unknown_ones_are_refused(running: Running) -> None:
    assert [model.id for model in running.client.models.list()] == list(NAMES)
    with pytest.raises(openai.NotFoundError, match=r"no model 'demo@0\.6' here; did you mean 'demo@0\.5'\?"):
        running.client.chat.completions.create(model="demo@0.6", messages=[{"role": "user", "content": "a"}])


def test_metrics_count_what_was_dropped(running: Running, samples: list[Sample]) -> None:
    before = running.counters()
    running.client.chat.completions.create(model="demo@0.3", messages=messages(samples[0]), max_tokens=1)
    after = running.counters()
    change = {key: after[key] - before.get(key, 0.0) for key in after if key.endswith("/demo@0.3")}
    words = len(samples[0].question.split())
    expected = {
        "vispco_prompt_tokens_total": 64 + words + 1,
        "vispco_visual_tokens_total": 64,
        "vispco_visual_tokens_dropped_total": 56,
        "vispco_generated_tokens_total": 1,
        "vispco_time_to_first_token_seconds_count": 1,
        "vispco_request_seconds_count": 1,
    }
    assert {name: change[f"{name}/demo@0.3"] for name in expected} == expected
    assert change["vispco_time_to_first_token_seconds_sum/demo@0.3"] > 0
    assert after["vispco_requests_in_flight/"] == 0


def test_only_this_machine_may_connect(running: Running) -> None:
    listening = [
        found.laddr.ip for found in psutil.Process(running.process.pid).net_connections() if found.status == "LISTEN"
    ]
    assert listening == ["127.0.0.1"]


# --- what is refused -------------------------------------------------------------------------------


def with_picture(url: str, **more: Any) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what"}]
    return {"messages": [{"role": "user", "content": content}], **more}


def encoded(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that claim to be a picture of this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def png(size: tuple[int, int] = (64, 64)) -> bytes:
    data = BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(data, "PNG")
    return data.getvalue()


TALK = [{"role": "user", "content": "what"}]
BAD: dict[str, tuple[Any, int, str]] = {
    "no JSON": (b"{'messages': ", 400, "not JSON"),
    "deep JSON": (b"[" * 100_000, 400, "not JSON"),
    "a list": (b"[]", 400, "no JSON object"),
    "binary": (b"\xff\xfe\x00", 400, "not JSON"),
    "no messages": ({"model": "demo"}, 400, "messages: Field required"),
    "empty messages": ({"messages": []}, 400, "messages"),
    "messages of another kind": ({"messages": "hello"}, 400, "messages"),
    "unknown role": ({"messages": [{"role": "root", "content": "a"}]}, 400, "role"),
    "no content": ({"messages": [{"role": "user"}]}, 400, "content"),
    "sound": ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "type"),
    "model of another kind": ({"model": 5, "messages": TALK}, 400, "model"),
    "many tokens": ({"messages": TALK, "max_tokens": 10**9}, 400, "max_tokens 1000000000 exceeds this server's 64"),
    "no tokens": ({"messages": TALK, "max_tokens": 0}, 400, "max_tokens"),
    "hot": ({"messages": TALK, "temperature": 1e9}, 400, "temperature"),
    "not a number": (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', 400, "temperature"),
    "two answers": ({"messages": TALK, "n": 2}, 400, "n is not served"),
    "a template": ({"messages": TALK, "chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, 400, "not served"),
    "a configuration": ({"messages": TALK, "generation_config": '{"num_beams": 99}'}, 400, "not served"),
    "an unknown field": ({"messages": TALK, "max_token": 3}, 400, "max_token"),
    "a mark in the text": ({"messages": [{"role": "user", "content": "a <image> b"}]}, 400, "'<image>'"),
    "a long prompt": ({"messages": [{"role": "user", "content": "what " * 600}]}, 400, "takes 512"),
    "remote": (with_picture("http://127.0.0.1:1/a.png"), 400, "--remote-pictures"),
    "remote, encrypted": (with_picture("https://example.org/a.png"), 400, "--remote-pictures"),
    "a path": (with_picture("/etc/passwd"), 400, "--local-pictures"),
    "a file URL": (with_picture("file:///etc/passwd"), 400, "--local-pictures"),
    "another scheme": (with_picture("ftp://example.org/a.png"), 400, "no data URL"),
    "no URL": (with_picture(""), 400, "no data URL"),
    "no base64": (with_picture("data:image/png;base64,&&&"), 400, "not base64"),
    "no encoding": (with_picture("data:image/png,abc"), 400, "data URL of another form"),
    "no picture": (with_picture(encoded(b"hello")), 400, "picture 1 cannot be read"),
    "an empty picture": (with_picture(encoded(b"")), 400, "picture 1 cannot be read"),
    "vectors": (with_picture(encoded(b"<svg xmlns='http://www.w3.org/2000/svg'/>")), 400, "picture 1 cannot be read"),
    "PostScript": (with_picture(encoded(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")), 400, "cannot be read"),
    "cut": (with_picture(encoded(png()[:-200])), 400, "picture 1 cannot be read"),
    "garbled": (with_picture(encoded(png()[:60] + b"\0" * 500)), 400, "picture 1 cannot be read"),
    "a bomb": (with_picture(encoded(huge_png(60_000, 60_000))), 400, "picture 1"),
    "large": (with_picture(encoded(huge_png(1500, 1000))), 400, "1500 x 1000 pixels"),
    "four pictures": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": encoded(png())}] * 4}]},
        400,
        "4 pictures exceed this server's 3",
    ),
    "a large body": (with_picture(encoded(b"x" * 2_500_000)), 413, "larger than 2 MB"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_requests_get_one_clear_error(running: Running, what: str) -> None:
    body, status, part = BAD[what]
    found, answer = running.post(body)
    assert (found, sorted(answer)) == (status, ["error"])
    assert part in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]


def test_the_next_answer_is_right_after_all_that(running: Running, demo: Any, samples: list[Sample]) -> None:
    for budget in FILES:
        answer = running.client.chat.completions.create(
            model=f"demo@{budget}", messages=messages(samples[2]), max_tokens=16
        )
        assert answer.choices[0].message.content == generated(demo, samples[2], budget)


@pytest.mark.parametrize(
    "path", ["/load_model", "/reset", "/v1/completions", "/v1/responses", "/v1/audio/transcriptions", "/v1/systemone"]
)
def test_other_routes_are_not_there(running: Running, path: str) -> None:
    status, answer = running.post({"model": "demo"}, path)
    assert status == 404
    assert "there are /v1/chat/completions" in answer["error"]["message"]


def test_a_browser_cannot_post_across_origins(running: Running) -> None:
    """Without preflight a page may send text/plain only."""
    status, answer = running.post({"messages": TALK}, Content_Type="text/plain")
    assert (status, "application/json" in answer["error"]["message"]) == (415, True)


# --- clients that go away --------------------------------------------------------------------------


def raw_request(sample: Sample, **more: Any) -> bytes:
    body = json.dumps({"messages": messages(sample), "max_tokens": 64, **more}).encode()
    head = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json"]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "\r\n"]).encode() + body


def settled(running: Running) -> bool:
    for _ in range(300):
        if running.counters()["vispco_requests_in_flight/"] == 0:
            return True
        time.sleep(0.1)
    return False


def test_clients_that_disconnect_hold_nothing(running: Running, demo: Any, samples: list[Sample]) -> None:
    """In the middle of a body, before the answer, in the middle of a stream."""
    whole = raw_request(samples[0])
    for request, read in ((whole[:-100], 0), (whole, 0), (raw_request(samples[0], stream=True), 40)):
        for _ in range(4):
            with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
                connection.sendall(request)
                if read:
                    assert connection.recv(read)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert settled(running)
    answer = running.client.chat.completions.create(model="demo@0.5", messages=messages(samples[0]), max_tokens=16)
    assert answer.choices[0].message.content == generated(demo, samples[0], "0.5")


def test_generation_stops_when_the_client_has_gone(demo: Any, samples: list[Sample]) -> None:
    model, processor = demo
    inputs = processor(
        images=[list(samples[0].images)], text=[render_prompt(processor, samples[0])], return_tensors="pt"
    )
    asked = ChatRequest.model_validate({"messages": TALK})
    call = Call(asked, "demo", 0.0, asyncio.Semaphore())
    served = Served("demo", vispco.Step(layer=2, keep=0.5), make_method("fastv"))
    passes = []

    def count(module: Any, args: Any, output: Any) -> None:
        passes.append(1)
        if len(passes) == 3:
            call.gone.set()

    handle = model.lm_head.register_forward_hook(count)
    settings = model.generation_config.__class__(max_new_tokens=60, min_new_tokens=60, eos_token_id=2, pad_token_id=0)
    try:
        with pytest.raises(Gone):
            PrunedGeneration(served, ThreadPoolExecutor(1), Metrics()).generate(
                model, processor, inputs, settings, call
            )
    finally:
        handle.remove()
    assert len(passes) == 3
    assert not model.model.language_model.layers[0]._forward_pre_hooks


@pytest.mark.slow
def test_two_hundred_at_once_and_memory_stays(running: Running, demo: Any, samples: list[Sample]) -> None:
    """Rounds of 200 requests in flight, every third of which is abandoned; memory settles after the first round."""
    expected = [generated(demo, sample, "0.5") for sample in samples]
    process = psutil.Process(running.process.pid)

    def ask(number: int) -> None:
        sample = samples[number % len(samples)]
        if number % 3 == 2:
            with socket.create_connection(("127.0.0.1", running.port), timeout=300) as connection:
                connection.sendall(raw_request(sample, stream=bool(number % 2)))
                time.sleep(0.05 * (number % 7))
            return
        answer = running.client.chat.completions.create(model="demo@0.5", messages=messages(sample), max_tokens=16)
        assert answer.choices[0].message.content == expected[number % len(samples)]

    used = []
    for _ in range(4):
        with ThreadPoolExecutor(200) as threads:
            list(threads.map(ask, range(200)))
        assert settled(running)
        used.append(process.memory_info().rss / 1e6)
    assert used[-1] < used[0] + 60, used
    assert len(process.threads()) < 60


def test_more_requests_than_allowed_are_told_to_come_again() -> None:
    """An application that answers when it is told to, behind the limit of two."""

    async def all_of_it() -> list[int]:
        finish = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await finish.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        gate = Admission(app, Limits(in_flight=2), lambda body: (ChatRequest.model_validate(body), "m"), Metrics())
        scope = {
            "type": "http",
            "path": "/v1/chat/completions",
            "method": "POST",
            "headers": [(b"content-type", b"application/json")],
        }

        async def one() -> int:
            sent: list[Any] = []
            body = [{"type": "http.request", "body": json.dumps({"messages": TALK}).encode()}]

            async def receive() -> Any:
                if body:
                    return body.pop()
                return await asyncio.Event().wait()

            async def send(message: Any) -> None:
                sent.append(message)

            await gate(scope, receive, send)
            return int(sent[0]["status"])

        tasks = [asyncio.create_task(one()) for _ in range(4)]
        await asyncio.sleep(0.05)
        finish.set()
        first = await asyncio.gather(*tasks)
        return [*first, await one()]

    assert asyncio.run(all_of_it()) == [200, 200, 503, 503, 200]


# --- pictures from elsewhere -----------------------------------------------------------------------


def test_local_pictures_stay_in_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    (folder / "deeper" / "a.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    limits = Limits(local=folder)
    for allowed in ("deeper/a.png", str(folder / "deeper" / "a.png"), f"file://{folder}/deeper/a.png"):
        assert read_picture(allowed, 1, limits).size == (64, 64)
    for other in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "deeper", "none.png", "a\0.png"):
        with pytest.raises(Refused, match="picture 1"):
            read_picture(other, 1, limits)
    with pytest.raises(Refused, match="larger than"):
        read_picture("deeper/a.png", 1, Limits(local=folder, body_mb=0.001))


def test_remote_pictures_are_fetched_where_allowed() -> None:
    data = png()

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/elsewhere":
                self.send_response(302)
                self.send_header("Location", "file:///etc/passwd")
                self.end_headers()
                return
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            return None

    site = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{site.server_port}"
    try:
        assert read_picture(f"{place}/a.png", 1, Limits(remote=True)).size == (64, 64)
        for path in ("/none.png", "/elsewhere"):
            with pytest.raises(Refused, match="picture 2 cannot be fetched"):
                read_picture(place + path, 2, Limits(remote=True))
        with pytest.raises(Refused, match="larger than"):
            read_picture(f"{place}/a.png", 1, Limits(remote=True, body_mb=0.001))
        with pytest.raises(Refused, match="--remote-pictures"):
            read_picture(f"{place}/a.png", 1, Limits())
    finally:
        site.shutdown()
        site.server_close()


# --- what is said before anything listens ----------------------------------------------------------


def test_names_of_schedules(tmp_path: Path) -> None:
    half = str(write_schedule(tmp_path / "half.json", "0.5"))
    found = served_schedules("m", [half, "fastv:k2-r75", "small=step(layer=1, keep=0.1)"], 8)
    assert {name: served.about() for name, served in found.items()} == {
        "m": "fastv, step(layer=2, keep=0.5)",
        "m@0.5": "fastv, step(layer=2, keep=0.5)",
        "m@fastv:k2-r75": "fastv, step(layer=2, keep=0.25)",
        "m@small": "fastv, step(layer=1, keep=0.1)",
        "m@unpruned": "no pruning",
    }
    for twice in ([half, half], ["unpruned=step(layer=1, keep=0.1)"]):
        with pytest.raises(ConfigError, match="that name is taken"):
            served_schedules("m", twice, 8)
    with pytest.raises(ScheduleError, match="layer"):
        served_schedules("m", ["step(layer=9, keep=0.1)"], 8)


def test_pictures_are_those_that_were_measured() -> None:
    """A transparent ground is white, and 16 bits of grey are scaled, as in every evaluation."""
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    grey = Image.fromarray(np.full((4, 4), 20000, dtype=np.uint16))
    for picture, seen in ((clear, 255), (grey, 78)):
        shown = read_picture(data_url(picture), 0, Limits())
        assert shown.getpixel((0, 0)) == (seen, seen, seen)


def test_a_schedule_of_other_pictures_or_weights_says_so(tmp_path: Path) -> None:
    """A file carries what its study changed about model and pictures."""
    store = Store(f"sqlite:///{tmp_path}/a.db")
    fill(store, "exp")
    stored = store.require_experiment("exp")
    tasks = [{"name": "mosaic-vqa", "splits": {}, "options": {"max_pixels": 5000}}]
    changed = {**stored.identity, "tasks": tasks, "model": {**stored.identity["model"], "adapter": "my-lora"}}
    saved = {"spec_text": stored.spec_text, "spec_hash": "", "provenance": stored.provenance}
    store.save_experiment("exp", **saved, identity=changed)
    found = export_schedule(Comparison(store, "exp"), 0.9)
    assert found["conditions"] == {"adapter": "my-lora", "pixels": {"mosaic-vqa": {"max_pixels": 5000}}}
    with pytest.raises(ScheduleError, match="measured with adapter my-lora, which vLLM's plug-in does not take"):
        server_settings({**found, "schedule": "step(layer=0, keep=0.5)", "method": "divprune"}, "vllm")
    mixed = {**changed, "tasks": [*tasks, {"name": "other", "splits": {}}], "model": stored.identity["model"]}
    store.save_experiment("exp", **saved, identity=mixed)
    found = {**export_schedule(Comparison(store, "exp"), 0.9), "method": "divprune"}
    assert found["conditions"]["pixels"] == {"mosaic-vqa": {"max_pixels": 5000}, "other": {}}
    with pytest.raises(ScheduleError, match="measured with different min_pixels and max_pixels"):
        server_settings({**found, "schedule": "step(layer=0, keep=0.5)"}, "vllm")
    small = {**found, "conditions": {"resolution": 0.5}, "keep_ratio": None}
    (tmp_path / "small.json").write_text(json.dumps(small))
    with pytest.raises(ScheduleError, match=r"measured on pictures at resolution 0\.5"):
        served_schedules("m", [str(tmp_path / "small.json")], 8)
    store.engine.dispose()


def test_what_cannot_be_served_is_said_at_once(demo: tuple[Any, Any]) -> None:
    with pytest.raises(ScheduleError, match="none before layer 0"):
        build("demo", ["step(layer=0, keep=0.5)"], limits=Limits())
    model, processor = demo
    served = served_schedules("demo", ["step(layer=2, keep=0.5)"], 8)
    template, processor.chat_template = processor.chat_template, None
    try:
        with pytest.raises(ModelError, match=r"no chat template.*chat_template\.jinja"):
            Server(model, processor, served, Limits())
        processor.chat_template = "{{ raise_exception('only one message') }}"
        with pytest.raises(ModelError, match="only one message"):
            Server(model, processor, served, Limits()).try_out()
    finally:
        processor.chat_template = template


def test_qwen_is_served_too(samples: list[Sample]) -> None:
    """Its answers are parsed by a template of transformers', and its positions have three axes."""
    server = build("demo-qwen", ["step(layer=2, keep=0.25)"], limits=Limits())
    asked = ChatRequest.model_validate({"messages": messages(samples[0]), "max_tokens": 8})
    inputs = server.chat.prepare(asked)
    call = Call(asked, "demo-qwen", 0.0, asyncio.Semaphore())
    config = server.chat.settings(asked, inputs["input_ids"].shape[1])
    tokens = server.generations.get_manager("demo-qwen").generate(server.model, server.processor, inputs, config, call)
    with vispco.prune(server.model, schedule="step(layer=2, keep=0.25)"):
        assert torch.equal(tokens, server.model.generate(**inputs, max_new_tokens=8))


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "prometheus_client"])
def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in [name for name in sys.modules if name.startswith(("vispco.integrations.transformers_serve.", missing))]:
        if name != "vispco.integrations.transformers_serve.limits":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"pip install 'vispco\[serve\]'"):
        serve_model("demo", ["step(layer=2, keep=0.5)"], "127.0.0.1", 1, limits=Limits())


# --- the page and the benchmark --------------------------------------------------------------------

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_page_from_a_file_to_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], samples: list[Sample]
) -> None:
    """Its commands, one after the other, in a new folder; only the port is another."""
    from report_data import fill

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("VISPCO_STORAGE", raising=False)
    fill(Store("sqlite:///vispco.db"), "quickstart")
    (commands,), (draw, code) = blocks("docs/serve.md", "bash"), blocks("docs/serve.md", "python")
    exec(compile(draw, "docs/serve.md", "exec"), {})
    install, export, serve = map(shlex.split, commands.strip().splitlines())
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert install == ["pip", "install", "vispco[serve]"]
    assert "serve" in extras
    vispco_ = [sys.executable, "-m", "vispco"]
    subprocess.run([*vispco_, *export[1:]], check=True, capture_output=True)
    port = free_port()
    process = subprocess.Popen([*vispco_, *serve[1:], "--port", str(port)], stderr=subprocess.PIPE, text=True)
    try:
        wait_for(Running(process, port, tmp_path))
        exec(compile(code.replace(":8000/", f":{port}/"), "docs/serve.md", "exec"), {})
        answer = capsys.readouterr().out.strip()
    finally:
        process.terminate()
        told = process.communicate()[1]
    model, processor = load_model("demo")
    (question,) = re.findall(r'"text": "(.*?)"', code)
    asked = replace(samples[0], images=(Image.open("picture.png"),), question=question)
    inputs = processor(images=[list(asked.images)], text=[render_prompt(processor, asked)], return_tensors="pt")
    assert processor.tokenizer.unk_token_id not in inputs["input_ids"][0].tolist(), "the demo knows no such word"
    with vispco.prune(model, schedule="best.json"):
        tokens = model.generate(**inputs, max_new_tokens=16)
    assert answer == processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "demo@0.5:" in told


def test_the_page_names_options_and_metrics(running: Running) -> None:
    page = (ROOT / "docs/serve.md").read_text()
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    named = set(re.findall(r"`(--[a-z-]+)", page))
    assert named <= known
    assert {option for option in known if option.startswith(("--max", "--local", "--remote"))} <= named
    measured = {key.partition("/")[0] for key in running.counters()} - {"vispco_requests_created"}
    families = {re.sub(r"_(count|sum|created|bucket)$", "", name) for name in measured}
    families = {name for name in families if f"{name}_total" not in measured}
    assert families <= set(re.findall(r"`(vispco_\w+)`", page))


@pytest.mark.slow
def test_the_benchmark_runs(running: Running) -> None:
    command = [sys.executable, "benchmarks/serve.py", "--url", f"http://127.0.0.1:{running.port}/v1", "--json"]
    done = subprocess.run([*command, "--requests", "4", "--tokens", "4"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["model"], row["in_flight"]) for row in rows] == [
        (name, count) for count in (1, 4, 16) for name in list(NAMES)[1:]
    ]
    assert all(0 < row["first_token_p50_ms"] <= row["first_token_p99_ms"] for row in rows)
