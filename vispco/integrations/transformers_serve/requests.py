"""The shape of a chat request, and what of it is not served."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers.cli.serving.chat_completion import TransformersCompletionCreateParamsStreaming

from vispco.integrations.transformers_serve.limits import Limits, Refused
from vispco.registry import suggest

# transformers' server would ignore these or hand them to the model; values that change nothing are accepted.
UNSERVED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "functions": (None, []),
    "audio": (None,),
    "prediction": (None,),
    "modalities": (None, ["text"]),
    "web_search_options": (None,),
    "generation_config": (None,),
    "chat_template_kwargs": (None, {}),
}
KNOWN = frozenset(TransformersCompletionCreateParamsStreaming.__mutable_keys__)


class ImageUrl(BaseModel):
    url: str


class Part(BaseModel):
    """A part of a message: ``text`` or a picture."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: ImageUrl | str | None = None

    @property
    def picture(self) -> str | None:
        """Where the picture is, of a part that is one."""
        if self.type == "text":
            return None
        return self.image_url.url if isinstance(self.image_url, ImageUrl) else self.image_url or ""


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def parts(self) -> list[Part]:
        return [Part(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class ChatRequest(BaseModel):
    """Fields of a chat request that are read. Others are accepted unless :data:`UNSERVED` lists them."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    frequency_penalty: float | None = Field(None, gt=-1, le=2)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | list[str] | None = None

    def pictures(self) -> Iterator[str]:
        for message in self.messages:
            for part in message.parts:
                if part.picture is not None:
                    yield part.picture

    def tokens(self, most: int) -> int:
        """How many tokens the answer may have."""
        return self.max_completion_tokens or self.max_tokens or most


def read_request(body: Any, limits: Limits, marks: tuple[str, ...]) -> ChatRequest:
    """Check a request as far as its text allows; pictures are not opened.

    Args:
        marks: what stands for pictures in the model's prompts, and so may not stand in a text.

    Raises:
        Refused: what is wrong, in one line.
    """
    if not isinstance(body, dict):
        raise Refused(400, "the body is no JSON object; send {'model': ..., 'messages': [...]}")
    for key in body:
        if key not in KNOWN:
            raise Refused(400, f"unknown field {key[:40]!r}; {suggest(key, sorted(KNOWN))}")
    for key, harmless in UNSERVED.items():
        if body.get(key) not in harmless:
            raise Refused(400, f"{key} is not served here; leave it out")
    try:
        asked = ChatRequest.model_validate(body)
    except ValidationError as error:
        # Of the alternatives of a union, the one that fits furthest says what is wrong.
        nearest = max(error.errors(include_url=False, include_input=False), key=lambda found: len(found["loc"]))
        where = ".".join(str(part) for part in nearest["loc"] if part not in ("str", "list[Part]"))
        raise Refused(400, f"{where}: {nearest['msg']}") from None
    most = asked.tokens(limits.tokens)
    if most > limits.tokens:
        raise Refused(
            400,
            f"max_tokens {most} exceeds this server's {limits.tokens}; ask for fewer, or start it with --max-tokens",
        )
    if isinstance(asked.stop, list) and len(asked.stop) > 4:
        raise Refused(400, f"stop has {len(asked.stop)} strings; give at most 4")
    pictures = list(asked.pictures())
    if len(pictures) > limits.pictures:
        raise Refused(
            400,
            f"{len(pictures)} pictures exceed this server's {limits.pictures} a request; "
            "send fewer, or start it with --max-pictures",
        )
    for url in pictures:
        check_place(url, limits)
    for message in asked.messages:
        for part in message.parts:
            for mark in marks:
                if mark and mark in part.text:
                    raise Refused(400, f"a text holds {mark!r}, the model's mark for a picture; send pictures as parts")
    return asked


def check_place(url: str, limits: Limits) -> None:
    """Refuse a picture that is somewhere this server may not look."""
    if url.startswith("data:"):
        return
    if url.startswith(("http://", "https://")):
        if not limits.remote:
            raise Refused(
                400,
                f"picture {url[:80]!r} is remote; send it as data:image/png;base64,..., "
                "or start the server with --remote-pictures",
            )
        return
    if limits.local is None:
        raise Refused(
            400,
            f"picture {url[:80]!r} is no data URL; send it as data:image/png;base64,..., "
            "or start the server with --local-pictures FOLDER",
        )
