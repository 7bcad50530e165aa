"""Callbacks for the router of vLLM's production stack: it keeps its door, and we serve the turns.

The router is started with ``--callbacks module.instance``, where the module makes the instance:

    conserve = Callbacks.of("router.yaml")  # as conf/serve.yaml has it

It asks ``pre_request`` before it does anything itself, and sends back what that returns; requests
that are no turns go on as ever. Source: src/vllm_router/services/callbacks_service and
request_service of github.com/vllm-project/production-stack at a7d2672 (2026).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from conserve_gym.agents.router import api, sse
from conserve_gym.agents.router.client import ClientGoneError, Gathered
from conserve_gym.agents.router.errors import ApiError, RefusedError, error
from conserve_gym.agents.router.router import Router
from conserve_gym.agents.router.spec import RouterSpec
from conserve_gym.envs.configuration import validated


class Callbacks:
    """What the production stack's router calls.

    Args:
        spec: The engines, the policy, the log; host and port are not used.

    Raises:
        RouterError: A policy needs what a router cannot give.
    """

    def __init__(self, spec: RouterSpec) -> None:
        """Load the policy; engines are looked at with the first request."""
        self._router = Router(spec)
        self._stack = AsyncExitStack()
        self._entering = asyncio.Lock()
        self._entered = False

    @classmethod
    def of(cls, path: str | Path) -> Callbacks:
        """Read a router's configuration from a YAML file.

        Raises:
            ConfigurationError: A key or value is not right.
            RouterError: As for the class.
        """
        return cls(validated(RouterSpec, OmegaConf.load(path)))

    def pre_request(self, request: Request, request_body: bytes, request_json: Any) -> Any:
        """Return what answers a turn; None for anything else."""
        if request.url.path not in (api.CHAT, api.TEXT):
            return None
        return _Answer(self, request, request_json)

    def post_request(self, request: Request, response_content: bytes) -> None:
        """Do nothing: turns have been written down while they were served."""

    async def router(self) -> Router:
        """Return the router, entered in the event loop that serves."""
        async with self._entering:
            if not self._entered:
                await self._stack.enter_async_context(self._router)
                self._entered = True
        return self._router

    async def close(self) -> None:
        """Stop watching the engines, and write the log to its end."""
        await self._stack.aclose()


class _Answer(Response):
    """An answer that is made while it is sent: prefill, KV transfer, decode.

    Its status is known only when the first token is there.
    """

    def __init__(self, callbacks: Callbacks, request: Request, body: Any) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._callbacks = callbacks
        self._request = request
        self._asked = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the turn; a client that leaves cancels it."""
        served = asyncio.create_task(self._serve(send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((served, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not served.done():
                served.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            results = await asyncio.gather(served, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    async def _serve(self, send: Send) -> None:
        path, sender = self._request.url.path, _Sender(send, self.raw_headers)
        try:
            body = api.checked(path, self._asked)
            options = body.get("stream_options")
            wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
            client = _Streamed(sender, wants_usage) if body.get("stream") else Gathered()
            router = await self._callbacks.router()
            await router.turns.serve(path, self._request.headers, body, client)
            if isinstance(client, Gathered):
                await sender.whole(200, client.body, client.receipt)
            else:
                await sender.more(b"", last=True)
        except ApiError as problem:
            after = {"retry-after": str(problem.retry_after_s)} if problem.retry_after_s else {}
            await sender.whole(problem.status, problem.body, after)
        except RefusedError as refusal:
            await sender.whole(refusal.status, refusal.body, {})
        except ClientGoneError:
            return


class _Sender:
    """Sends an answer's messages."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers  # what the router put there after it had the response

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        length = {"content-length": str(len(body))}
        await self.begin(status, "application/json", {**headers, **length})
        await self.more(body, last=True)

    async def begin(self, status: int, kind: str, headers: Mapping[str, str]) -> None:
        pairs = {"content-type": kind, **headers}.items()
        encoded = [(name.encode(), value.encode()) for name, value in pairs]
        start = {"type": "http.response.start", "status": status}
        await self._pass({**start, "headers": [*self._headers, *encoded]})

    async def more(self, body: bytes, *, last: bool = False) -> None:
        await self._pass({"type": "http.response.body", "body": body, "more_body": not last})

    async def _pass(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:
            raise ClientGoneError from None


class _Streamed:
    """A client that asked for a stream."""

    wants_chunks = False

    def __init__(self, sender: _Sender, wants_usage: bool) -> None:
        self._sender = sender
        self.wants_usage = wants_usage
        self.begun = False

    async def begin(self, receipt: Mapping[str, str]) -> None:
        self.begun = True
        headers = {"cache-control": "no-cache", **receipt}
        await self._sender.begin(200, "text/event-stream", headers)

    async def event(self, event: bytes, chunk: dict[str, Any] | None) -> None:
        await self._sender.more(event)

    async def fail(self, message: str) -> None:
        await self._sender.more(sse.event(error(502, message, "engine_failed")) + sse.DONE)


async def _gone(receive: Receive) -> None:
    """Wait for the client to leave."""
    while (await receive())["type"] != "http.disconnect":
        pass
