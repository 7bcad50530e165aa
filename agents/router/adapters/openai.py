"""Any engine with OpenAI's API: it colocates, and KV never leaves it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from conserve_gym.agents.router import sse
from conserve_gym.agents.router.adapters.base import Handover, Request
from conserve_gym.agents.router.errors import EngineError, RefusedError


class OpenAiAdapter:
    """Speaks to an engine by ``/v1`` alone.

    Args:
        session: What connections are made with; it has the engine's timeouts.
        url: Address of the engine, without ``/v1``.
        api_key: What the engine wants to see.
    """

    hands_over = False
    health = "/v1/models"

    def __init__(self, session: aiohttp.ClientSession, url: str, api_key: str | None) -> None:
        """Prepare to speak."""
        self._session = session
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def check(self) -> None:
        """Ask whether the engine is well."""
        try:
            async with await self._send("GET", self.health, None) as response:
                await _raise_for(response)
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from None

    def restarted(self) -> None:
        """Forget nothing: nothing is kept."""

    @asynccontextmanager
    async def lease(self, conversation: int) -> AsyncIterator[None]:
        """Reserve nothing: the engine has its own queue."""
        yield

    async def prefill(self, request: Request, history: Handover | None) -> Handover:
        """Refuse: what would be computed could not leave."""
        raise EngineError("the engine does not hand its KV cache over")

    async def give(self, conversation: int) -> Handover | None:
        """Hand out nothing."""
        return None

    async def take(self, conversation: int, handover: Handover) -> bool:
        """Refuse: the engine fetches nothing."""
        raise EngineError("the engine does not take a KV cache over")

    def discard(self, handover: Handover) -> None:
        """Clear nothing away."""

    @asynccontextmanager
    async def answer(
        self, request: Request, handover: Handover | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Answer a turn: server-sent events, one an item."""
        body = self._asked(request, handover)
        try:
            async with await self._send("POST", request.path, body) as response:
                await _raise_for(response)
                yield self._events(response)
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from None

    async def models(self) -> Mapping[str, Any]:
        """Return what the engine answers to ``/v1/models``."""
        return await self._ask("GET", "/v1/models")

    def kept(self, conversation: int) -> int | None:
        """Return nothing: the engine finds a conversation by its text."""
        return None

    def remember(self, conversation: int, kept: int) -> None:
        """Know nothing again."""

    def forget(self, conversation: int) -> None:
        """Keep nothing, as before."""

    def _asked(self, request: Request, handover: Handover | None) -> dict[str, Any]:
        """Return the body that asks for an answer."""
        return dict(request.body)

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for event in sse.events(response.content.iter_any()):
                yield event
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from None
        except sse.StreamError as error:
            raise EngineError(str(error)) from None

    async def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Return the JSON object that the engine answers with."""
        try:
            async with await self._send(method, path, body) as response:
                await _raise_for(response)
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from None
        except ValueError as error:
            raise EngineError(f"{path}: {error}") from None
        if not isinstance(answer, dict):
            raise EngineError(f"{path} answered with {type(answer).__name__}, not an object")
        return answer

    async def _send(self, method: str, path: str, body: Any) -> aiohttp.ClientResponse:
        """Ask; what comes back is to be closed."""
        url = self._url + path
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers | ({"Content-Type": "application/json"} if data else {})
        try:
            # Redirects would lead out of the configured engines.
            return await self._session.request(
                method, url, data=data, headers=headers, allow_redirects=False
            )
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientConnectionResetError):
            # An idle connection that the engine closed as we took it; a new one tells more.
            return await self._session.request(
                method, url, data=data, headers=headers, allow_redirects=False
            )


async def _raise_for(response: aiohttp.ClientResponse) -> None:
    """Raise what an answer other than 200 means."""
    if response.status == 200:
        return
    body = await response.read()
    says = " ".join(body[:200].decode(errors="replace").split())
    if 400 <= response.status < 500 and response.status not in (401, 403, 408, 429):
        raise RefusedError(response.status, body)
    raise EngineError(f"HTTP {response.status}: {says}")


def _broken(error: Exception) -> EngineError:
    """Return that the engine broke off or cannot be reached, without the address for clients."""
    return EngineError(type(error).__name__, broken=True)
