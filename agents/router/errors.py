"""What goes wrong between a client and the engines."""

from __future__ import annotations

import json
from typing import Any


class EngineError(Exception):
    """An engine failed a request; another may still serve it.

    Args:
        message: What happened.
        broken: Whether the connection failed, so that the engine may be down.
        silent: Whether the engine let the request wait in vain.
    """

    def __init__(self, message: str, *, broken: bool = False, silent: bool = False) -> None:
        """Say what happened."""
        super().__init__(message)
        self.broken = broken
        self.silent = silent


class RefusedError(Exception):
    """An engine refused a request as wrong; no other would take it.

    Args:
        status: HTTP status.
        body: The engine's answer.
    """

    def __init__(self, status: int, body: bytes) -> None:
        """Keep the engine's answer for the client."""
        super().__init__(f"HTTP {status}")
        self.status = status
        self.body = body


class ApiError(Exception):
    """What a client is told, in OpenAI's form.

    Args:
        status: HTTP status.
        message: For people.
        code: For programs.
        retry_after_s: When to try again, if that may help.
    """

    def __init__(
        self, status: int, message: str, code: str, *, retry_after_s: int | None = None
    ) -> None:
        """Say what is wrong."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> bytes:
        """The answer's JSON."""
        return json.dumps(error(self.status, str(self), self.code)).encode()


def error(status: int, message: str, code: str) -> dict[str, Any]:
    """Return an error as OpenAI's API does."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
