"""What a server accepts, and how it says that it does not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Upper bounds of one request, and of all that are in flight.

    ``remote``: whether pictures may be fetched over http(s). ``local``: the folder from which pictures may be read by
    path; None: none may. ``seconds``: within which a request's body must have arrived.
    """

    tokens: int = 1024
    pictures: int = 8
    megapixels: float = 25.0
    body_mb: float = 20.0
    in_flight: int = 256
    seconds: float = 60.0
    remote: bool = False
    local: Path | None = None


class Refused(Exception):
    """A request that is not served: an HTTP status and one line that says what, why and what to do."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def body(self) -> dict[str, Any]:
        return error_body(self.status, str(self))


def error_body(status: int, message: str) -> dict[str, Any]:
    """An error in the form that OpenAI's clients read."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": " ".join(message.split()), "type": kind, "param": None, "code": status}}
