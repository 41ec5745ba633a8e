"""``vispco serve``: transformers' own OpenAI-compatible server, with a schedule.

Routes, answers, streaming and parsing are transformers' (``transformers.cli.serving``). Added are admission control
(:mod:`vispco.integrations.transformers_serve.middleware`), inputs within limits
(:mod:`vispco.integrations.transformers_serve.chat`), generation inside a prune block
(:mod:`vispco.integrations.transformers_serve.generation`) and metrics. Routes that load or unload models are removed.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Mapping
from typing import Any

import uvicorn
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server

from vispco.errors import ModelError, VispcoError
from vispco.integrations.transformers_serve.chat import Chat
from vispco.integrations.transformers_serve.generation import Generations
from vispco.integrations.transformers_serve.limits import Limits, Refused, error_body
from vispco.integrations.transformers_serve.metrics import Metrics
from vispco.integrations.transformers_serve.middleware import CHAT, Admission
from vispco.integrations.transformers_serve.requests import ChatRequest, read_request
from vispco.integrations.transformers_serve.schedules import Served, served_schedules
from vispco.models.families import adapter_for
from vispco.registry import suggest

ROUTES = (CHAT, "/v1/models", "/health")


class OneModel(ModelManager):  # type: ignore[misc]
    """One model, loaded before the server starts and never unloaded, listed under several names."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(device="cpu")
        created = int(time.time())
        self._listed = [{"id": name, "object": "model", "created": created, "owned_by": "vispco"} for name in names]

    def get_gen_models(self) -> list[dict[str, Any]]:
        return self._listed


class Server:
    """An ASGI application for one model under the schedules ``served``.

    Raises:
        ModelError: the processor has no chat template.
    """

    def __init__(self, model: Any, processor: Any, served: dict[str, Served], limits: Limits) -> None:
        if not getattr(processor, "chat_template", None):
            raise ModelError(
                "the model's processor has no chat template, so messages cannot be turned into its prompt; "
                "put a chat_template.jinja into the model's folder"
            )
        self.served, self.limits, self.metrics = served, limits, Metrics()
        self.model, self.processor = model, processor
        self.marks = tuple(
            mark for name in ("image_token", "video_token", "boi_token") if (mark := getattr(processor, name, None))
        )
        manager, self.generations = OneModel(list(served)), Generations(served, self.metrics)
        self.chat = Chat(manager, self.generations, model, processor, limits)
        self.app = Admission(self._routes(manager), limits, self.check, self.metrics)

    def check(self, body: Any) -> tuple[ChatRequest, str]:
        """What a request asks for, and the served name that it means.

        Raises:
            Refused: it is not served.
        """
        asked = read_request(body, self.limits, self.marks)
        name = next(iter(self.served)) if asked.model is None else asked.model
        if name not in self.served:
            raise Refused(404, f"no model {name[:80]!r} here; {suggest(name, list(self.served))}")
        return asked, name

    def try_out(self) -> None:
        """One picture through every schedule, so that what does not work is said before anybody asks.

        Raises:
            ModelError, ScheduleError: the schedule does not fit, or the model cannot be pruned.
        """
        import base64
        from io import BytesIO

        from PIL import Image

        data = BytesIO()
        Image.new("RGB", (64, 64)).save(data, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
        message = {"role": "user", "content": content}
        asked, _ = self.check({"messages": [message], "max_tokens": 1})
        try:
            inputs = self.chat.prepare(asked)
        except Refused as error:
            raise ModelError(f"the model cannot be served: {error}") from None
        config = self.chat.settings(asked, inputs["input_ids"].shape[-1])
        for served in self.served.values():
            with served.pruning(self.model):
                self.model.generate(**inputs, generation_config=config)

    def _routes(self, manager: OneModel) -> Any:
        given = {"model_manager": manager, "chat_handler": self.chat, "generation_state": self.generations}
        others = inspect.signature(build_server).parameters.keys() - given.keys() - {"enable_cors"}
        app = build_server(**given, **dict.fromkeys(others))
        app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in ROUTES]

        def metrics() -> Response:
            return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

        async def refused(_request: Request, error: Refused) -> JSONResponse:
            return _error(error.status, str(error))

        async def http(request: Request, error: HTTPException) -> JSONResponse:
            if error.status_code == 404:
                there = ", ".join((*ROUTES, "/metrics"))
                return _error(404, f"nothing is served at {request.url.path[:80]!r}; there are {there}")
            return _error(error.status_code, str(error.detail))

        async def not_possible(_request: Request, error: VispcoError) -> JSONResponse:
            return _error(400 if error.exit_code == 2 else 500, str(error))

        async def failed(_request: Request, error: Exception) -> JSONResponse:
            return _error(500, f"{type(error).__name__}: {error}"[:500])

        app.add_api_route("/metrics", metrics)
        handlers = {Refused: refused, HTTPException: http, VispcoError: not_possible, Exception: failed}
        for kind, handler in handlers.items():
            app.add_exception_handler(kind, handler)
        return app


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse(error_body(status, message), status_code=status)


def build(
    name: str,
    schedules: list[str],
    *,
    limits: Limits,
    called: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    attention: str = "sdpa",
    adapter: str | None = None,
    quantization: Mapping[str, Any] | None = None,
) -> Server:
    """Load a model, read its schedules, try them out.

    Raises:
        ModelError, ScheduleError, ConfigError: what cannot be served, before anything listens.
    """
    from vispco.models.loading import load_model

    model, processor = load_model(
        name, device=device, dtype=dtype, adapter=adapter, quantization=quantization, attn_implementation=attention
    )
    layers = len(adapter_for(model).layers())
    server = Server(model, processor, served_schedules(called or name, schedules, layers), limits)
    server.try_out()
    return server


def listen(server: Server, host: str, port: int) -> None:
    """Answer requests until the process is told to stop."""
    config = uvicorn.Config(server.app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5)
    with contextlib.suppress(KeyboardInterrupt):  # raised again after an orderly shutdown
        uvicorn.Server(config).run()
