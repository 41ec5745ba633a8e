"""Generation inside a prune block, one request after the other."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers.cli.serving.utils import BaseGenerateManager, DirectStreamer, GenerationState, _StreamError

from vispco.integrations.transformers_serve.metrics import Metrics
from vispco.integrations.transformers_serve.middleware import CURRENT, Call
from vispco.integrations.transformers_serve.schedules import Served
from vispco.models.families import adapter_for


class Gone(Exception):
    """The client has closed the connection."""


class Tap:
    """Sees every token as ``generate`` makes it, and passes it on to the server's own streamer where there is one."""

    def __init__(self, call: Call, first: Callable[[], None], onward: DirectStreamer | None) -> None:
        self._call, self._first, self._onward, self.tokens = call, first, onward, -1  # the prompt comes first

    def put(self, value: Tensor) -> None:
        if self._call.gone.is_set():
            raise Gone
        self.tokens += 1
        if self.tokens == 1:
            self._first()
        if self._onward is not None:
            self._onward.put(value)

    def end(self) -> None:
        if self._onward is not None:
            self._onward.end()


class PrunedGeneration(BaseGenerateManager):  # type: ignore[misc]
    """Generation under one schedule; ``thread`` is shared by all schedules of a model."""

    def __init__(self, served: Served, thread: ThreadPoolExecutor, metrics: Metrics) -> None:
        self._served, self._thread, self._metrics = served, thread, metrics

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: Any,
        gen_config: Any,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue[Any], DirectStreamer]:
        loop, queue, call = asyncio.get_running_loop(), asyncio.Queue[Any](), CURRENT.get()
        streamer = DirectStreamer(processor.tokenizer._tokenizer, loop, queue, response_parser=response_parser)

        def run() -> None:
            try:
                self.generate(model, processor, inputs, gen_config, call, streamer)
            except Exception as error:
                # The server underneath writes the text into JSON as it is.
                text = json.dumps(" ".join(f"{type(error).__name__}: {error}".split())[:300])[1:-1]
                loop.call_soon_threadsafe(queue.put_nowait, _StreamError(text))
            finally:
                loop.call_soon_threadsafe(call.leave)

        self._thread.submit(run)
        return queue, streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> tuple[str, int, Tensor]:
        call = CURRENT.get()
        done = self._thread.submit(self.generate, model, processor, inputs, gen_config, call)
        sequences = await asyncio.wrap_future(done)
        length = inputs["input_ids"].shape[-1]
        text = processor.decode(sequences[0, length:], skip_special_tokens=True)
        return text, length, sequences[0, length:]

    def stop(self) -> None:
        return None

    def generate(
        self,
        model: Any,
        processor: Any,
        inputs: Any,
        config: Any,
        call: Call,
        onward: DirectStreamer | None = None,
    ) -> Tensor:
        """Prompt and answer, int [1, T].

        Raises:
            Gone: the client left before the answer was complete.
        """
        if call.gone.is_set():
            raise Gone
        name, metrics = call.served, self._metrics

        def first() -> None:
            metrics.first_token.labels(name).observe(time.perf_counter() - call.arrived)

        if call.asked.seed is not None:
            torch.manual_seed(call.asked.seed)
        tap = Tap(call, first, onward)
        with self._served.pruning(model) as session:
            sequences: Tensor = model.generate(
                **inputs, generation_config=config, streamer=tap, tokenizer=processor.tokenizer
            )
        visual = int(adapter_for(model).visual_mask(inputs["input_ids"], None).sum())
        kept = visual if session is None or session.counts is None else int(session.counts[0, -1])
        metrics.prompt.labels(name).inc(inputs["input_ids"].shape[-1])
        metrics.visual.labels(name).inc(visual)
        metrics.dropped.labels(name).inc(visual - kept)
        metrics.generated.labels(name).inc(tap.tokens)
        metrics.whole.labels(name).observe(time.perf_counter() - call.arrived)
        return sequences


class Generations(GenerationState):  # type: ignore[misc]
    """One :class:`PrunedGeneration` for each served name, on one thread: a model is pruned one way at a time."""

    def __init__(self, served: dict[str, Served], metrics: Metrics) -> None:
        super().__init__()
        thread = ThreadPoolExecutor(1, thread_name_prefix="generate")
        self._of = {name: PrunedGeneration(one, thread, metrics) for name, one in served.items()}

    def get_manager(self, model_id: str, use_cb: bool = False) -> PrunedGeneration:
        return self._of[model_id]
