"""Time to first token and tokens per second of ``vispco serve``, per schedule, at 1, 4 and 16 requests in flight.

    python benchmarks/serve.py [MODEL] [--schedule best.json ...] [--requests 64] [--tokens 32] [--picture FILE]

Starts a server of its own on a free port; with ``--url`` it drives one that runs. Before anything is timed, each model
name answers one request twice, streamed and whole, and the two must agree. Names are then timed in turn.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
from openai import OpenAI

IN_FLIGHT = (1, 4, 16)


def sample(path: str | None) -> tuple[bytes, str]:
    """A picture (PNG) and a question: the user's, or the demo's."""
    from PIL import Image

    from vispco.tasks.base import make_task

    question = "Describe the picture."
    if path is None:
        found = make_task("mosaic-vqa", {"held_out": 1}).samples("held_out")[0]
        picture, question = found.images[0], found.question
    else:
        picture = Image.open(path).convert("RGB")
    data = BytesIO()
    picture.save(data, "PNG")
    return data.getvalue(), question


def ask(client: OpenAI, name: str, messages: list[Any], tokens: int) -> tuple[str, float, int]:
    """The answer, seconds to its first token, and its tokens."""
    started, first, text, used = time.perf_counter(), None, "", 0
    for chunk in client.chat.completions.create(
        model=name, messages=messages, max_tokens=tokens, temperature=0, stream=True
    ):
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.perf_counter() - started
            text += chunk.choices[0].delta.content
        if chunk.usage is not None:
            used = chunk.usage.completion_tokens
    return text, first or time.perf_counter() - started, used


def timed(client: OpenAI, name: str, messages: list[Any], args: argparse.Namespace, in_flight: int) -> dict[str, Any]:
    started = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as threads:
        answers = list(threads.map(lambda _: ask(client, name, messages, args.tokens), range(args.requests)))
    seconds = time.perf_counter() - started
    waited = 1000 * np.array([first for _, first, _ in answers])
    return {
        "model": name,
        "in_flight": in_flight,
        "first_token_p50_ms": round(float(np.quantile(waited, 0.5)), 1),
        "first_token_p99_ms": round(float(np.quantile(waited, 0.99)), 1),
        "tokens_per_second": round(sum(used for _, _, used in answers) / seconds, 1),
        "requests_per_second": round(args.requests / seconds, 2),
    }


def start(model: str, schedules: list[str]) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = [part for schedule in schedules for part in ("--schedule", schedule)]
    command = [sys.executable, "-m", "vispco", "serve", model, "--port", str(port), *options]
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1")})
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return process, f"http://127.0.0.1:{port}/v1"
        except OSError:
            time.sleep(0.2)
    sys.exit(process.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--schedule", action="append")
    parser.add_argument("--url", help="of a server that runs")
    parser.add_argument("--picture")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    schedules = args.schedule or ["half=step(layer=2, keep=0.5)", "quarter=step(layer=2, keep=0.25)"]
    process, url = (None, args.url) if args.url else start(args.model, schedules)
    try:
        client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
        data, question = sample(args.picture)
        place = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        messages = [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": place}}, {"type": "text", "text": question}],
            }
        ]
        names = [found.id for found in client.models.list()][1:]  # the first is one of the others
        for name in names:
            whole = client.chat.completions.create(model=name, messages=messages, max_tokens=args.tokens, temperature=0)
            assert whole.choices[0].message.content == ask(client, name, messages, args.tokens)[0], name
        rows = [timed(client, name, messages, args, count) for count in IN_FLIGHT for name in names]
    finally:
        if process is not None:
            process.terminate()
            process.wait()
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    width = max(map(len, names))
    print(f"{'model':{width}}  in flight  first token p50 / p99, ms  tokens/s  requests/s")
    for row in rows:
        first = f"{row['first_token_p50_ms']:.1f} / {row['first_token_p99_ms']:.1f}"
        print(
            f"{row['model']:{width}}  {row['in_flight']:9}  {first:>25}  {row['tokens_per_second']:8.1f}  "
            f"{row['requests_per_second']:10.2f}"
        )


if __name__ == "__main__":
    main()
