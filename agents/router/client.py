"""The client's side of a turn: an answer as a stream of events, or whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from conserve_gym.agents.router import sse
from conserve_gym.agents.router.errors import error


class ClientGoneError(Exception):
    """The client has closed its connection."""


class Client(Protocol):
    """Takes the answer to a turn.

    Attributes:
        begun: Whether something was sent, so that no other engine can begin again.
        wants_chunks: Whether every event is needed as an object too.
        wants_usage: Whether it asked for the usage of tokens.
    """

    begun: bool
    wants_chunks: bool
    wants_usage: bool

    async def begin(self, receipt: Mapping[str, str]) -> None:
        """Answer with success, and the receipt of the route as headers."""

    async def event(self, event: bytes, chunk: dict[str, Any] | None) -> None:
        """Pass an event on."""

    async def fail(self, message: str) -> None:
        """Say that the answer ends here, after it has begun."""


class Streamed:
    """A client that asked for a stream."""

    wants_chunks = False

    def __init__(self, request: web.Request, wants_usage: bool) -> None:
        """Wait for the first event."""
        self._request = request
        self.wants_usage = wants_usage
        self.begun = False
        self.response: web.StreamResponse | None = None

    async def begin(self, receipt: Mapping[str, str]) -> None:
        """Answer with success, and the receipt of the route as headers."""
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **receipt}
        self.response = web.StreamResponse(headers=headers)
        self.begun = True
        try:
            await self.response.prepare(self._request)
        except (aiohttp.ClientError, OSError):
            raise ClientGoneError from None

    async def event(self, event: bytes, chunk: dict[str, Any] | None) -> None:
        """Pass an event on."""
        assert self.response is not None
        try:
            await self.response.write(event)
        except (aiohttp.ClientError, OSError):
            raise ClientGoneError from None

    async def fail(self, message: str) -> None:
        """Say that the answer ends here, after it has begun."""
        await self.event(sse.event(error(502, message, "engine_failed")), None)
        await self.event(sse.DONE, None)

    async def finish(self) -> web.StreamResponse:
        """Return the answer, all of it sent."""
        assert self.response is not None
        try:
            await self.response.write_eof()
        except (aiohttp.ClientError, OSError):
            raise ClientGoneError from None
        return self.response


class Gathered:
    """A client that asked for the whole answer at once.

    Attributes:
        receipt: Of the route.
    """

    begun = False  # nothing is sent before everything is there
    wants_chunks = True
    wants_usage = True

    def __init__(self) -> None:
        """Start without an event."""
        self._whole = sse.Whole()
        self.receipt: Mapping[str, str] = {}

    async def begin(self, receipt: Mapping[str, str]) -> None:
        """Keep the receipt; an engine that failed has left parts that go."""
        self.receipt = receipt
        self._whole = sse.Whole()

    async def event(self, event: bytes, chunk: dict[str, Any] | None) -> None:
        """Put an event to those before it."""
        if chunk is not None:
            self._whole.add(chunk)

    async def fail(self, message: str) -> None:
        """Never called: nothing is sent before everything is there."""
        raise AssertionError(message)

    async def finish(self) -> web.StreamResponse:
        """Return the answer."""
        body, receipt = self.body, self.receipt
        return web.Response(body=body, content_type="application/json", headers=receipt)

    @property
    def body(self) -> bytes:
        """The answer's JSON."""
        return json.dumps(self._whole.answer()).encode()
