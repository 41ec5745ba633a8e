"""Admission control: size of a request, requests in flight, clients that disconnect.

transformers' server prepares a request as soon as it arrives and keeps generating after its client has disconnected.
Here requests wait as bytes, at most :data:`AT_ONCE` of them are prepared (one generates, one is ready), and generation
for a client that has disconnected stops at the next token.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from vispco.integrations.transformers_serve.limits import Limits, Refused
from vispco.integrations.transformers_serve.metrics import Metrics
from vispco.integrations.transformers_serve.requests import ChatRequest
from vispco.json_text import parse_json

AT_ONCE = 2
CHAT = "/v1/chat/completions"

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Call:
    """A request being answered: when it arrived, what it asks, whether its client has disconnected."""

    def __init__(self, asked: ChatRequest, served: str, arrived: float, turns: asyncio.Semaphore) -> None:
        self.asked, self.served, self.arrived = asked, served, arrived
        self.gone = threading.Event()
        self._turns: asyncio.Semaphore | None = turns

    def leave(self) -> None:
        """Let the next request be prepared. Calling it again does nothing."""
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.release()


CURRENT: ContextVar[Call] = ContextVar("call")


class Admission:
    """ASGI application around ``app``.

    Args:
        check: from a request's JSON to what it asks and the served name; raises :class:`Refused`.
    """

    def __init__(
        self, app: App, limits: Limits, check: Callable[[Any], tuple[ChatRequest, str]], metrics: Metrics
    ) -> None:
        self._app, self._limits, self._check, self._metrics = app, limits, check, metrics
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != CHAT or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        arrived, answer = time.perf_counter(), _Answer(send)
        served = ""
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            if self._in_flight > self._limits.in_flight:
                raise Refused(503, f"{self._limits.in_flight} requests are in flight; try again later")
            body = await self._read(scope, receive)
            asked, served = self._check(_parsed(body))
            call = Call(asked, served, arrived, self._turns)
            await self._answer(call, body, scope, receive, answer)
        except Refused as error:
            await answer.refuse(error)
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)
            self._metrics.requests.labels(served, answer.status or "gone").inc()

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        headers = {key.lower(): value for key, value in scope["headers"]}
        if headers.get(b"content-type", b"").split(b";")[0].strip() != b"application/json":
            raise Refused(415, "the body is not declared as JSON; send Content-Type: application/json")
        most = int(self._limits.body_mb * 1e6)
        declared = headers.get(b"content-length", b"0")
        too_large = Refused(
            413,
            f"the body is larger than {self._limits.body_mb:g} MB; send smaller pictures, "
            "or start the server with --max-body-mb",
        )
        if declared.isdigit() and int(declared) > most:
            raise too_large
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self._limits.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(499, "the client closed the connection")
                    parts.append(message.get("body", b""))
                    if sum(map(len, parts)) > most:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {self._limits.seconds:g} seconds") from None

    async def _answer(self, call: Call, body: bytes, scope: Scope, receive: Receive, answer: _Answer) -> None:
        async def inside() -> None:
            await self._turns.acquire()
            try:
                CURRENT.set(call)
                await self._app(scope, _replay(body), answer)
            finally:
                call.leave()

        work = asyncio.create_task(inside())
        watch = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            call.gone.set()
            watch.cancel()
            if not work.done():
                work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work


def _parsed(body: bytes) -> Any:
    try:
        return parse_json(body)
    except ValueError:
        raise Refused(400, "the body is not JSON; send {'model': ..., 'messages': [...]}") from None


def _replay(body: bytes) -> Receive:
    """The body at once, then nothing: disconnects are handled outside the application."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    return receive


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Answer:
    """``send`` that remembers the status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def refuse(self, error: Refused) -> None:
        body = json.dumps(error.body()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if error.status == 503:
            headers.append((b"retry-after", b"1"))
        await self({"type": "http.response.start", "status": error.status, "headers": headers})
        await self({"type": "http.response.body", "body": body})
