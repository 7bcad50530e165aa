"""The router's HTTP interface."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from conserve_gym.agents.router import api, identity
from conserve_gym.agents.router.client import ClientGoneError, Gathered, Streamed
from conserve_gym.agents.router.errors import ApiError, EngineError, RefusedError
from conserve_gym.agents.router.router import Router

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Nobody is there any more to read it; nginx's number tells such answers apart in metrics.
_CLIENT_GONE = 499


def application(router: Router) -> web.Application:
    """Return the application of a router that has been entered."""
    limits = router.spec.limits
    endpoints = _Endpoints(router)
    app = web.Application(
        client_max_size=limits.body_bytes, middlewares=[_errors(router), _key(router)]
    )
    app.router.add_post(api.CHAT, endpoints.complete)
    app.router.add_post(api.TEXT, endpoints.complete)
    app.router.add_get("/v1/models", endpoints.models)
    app.router.add_delete("/v1/conversation", endpoints.end)
    app.router.add_get("/health", endpoints.health)
    app.router.add_get("/ready", endpoints.ready)
    app.router.add_get("/metrics", endpoints.metrics)
    app.router.add_get("/state", endpoints.state)
    app.router.add_get("/", endpoints.page)
    return app


def runner(app: web.Application, router: Router) -> web.AppRunner:
    """Return what serves the application; a client that leaves cancels its turn."""
    most = router.spec.limits.header_bytes
    return web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        max_line_size=most,
        max_field_size=most,
        shutdown_timeout=5.0,
    )


class _Endpoints:
    """One method an address."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._page = (resources.files(__package__) / "page.html").read_text(encoding="utf-8")

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        options = body.get("stream_options")
        wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        client = Streamed(request, wants_usage) if body.get("stream") else Gathered()
        await self._router.turns.serve(request.path, request.headers, body, client)
        return await client.finish()

    async def models(self, request: web.Request) -> web.Response:
        for engine in self._router.engines:
            if engine.up:
                try:
                    return web.json_response(await engine.adapter.models())
                except (EngineError, RefusedError):
                    continue
        raise ApiError(503, "no engine is up", "no_engine", retry_after_s=5)

    async def end(self, request: web.Request) -> web.Response:
        """End the conversation that the headers name."""
        key = identity.key(request.headers, {})
        conversation = self._router.books.conversations.find(key, []) if key else None
        if conversation is None:
            raise ApiError(404, "no such conversation lives", "not_found")
        if conversation.turns_waiting:
            raise ApiError(409, "a turn of the conversation is under way", "busy")
        self._router.books.end(conversation, "client")
        return web.Response(status=204)

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def ready(self, request: web.Request) -> web.Response:
        router = self._router
        scheduler = router.runtime.scheduler
        state = {
            "ready": router.ready,
            "policy": scheduler.name,
            "reason": scheduler.reason,
            "engines": {engine.name: engine.up for engine in router.engines},
        }
        return web.json_response(state, status=200 if router.ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        self._router.measure()
        body = generate_latest(self._router.metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def state(self, request: web.Request) -> web.Response:
        """Return what the page shows: no text of a conversation, and no client's name."""
        router = self._router
        scheduler = router.runtime.scheduler
        summary = router.runtime.summary()
        fields: dict[str, list[float]] = summary["engines"]
        engines = [
            {
                "name": engine.name,
                "role": str(router.runtime.fleet.roles[i]),
                "up": engine.up,
                "says": engine.says if not engine.up else "",
                "kv_tokens": router.runtime.fleet.kv_capacity_tokens[i],
                **{name: values[i] for name, values in fields.items()},
            }
            for i, engine in enumerate(router.engines)
        ]
        shadow = router.runtime.shadow
        return web.json_response(
            {
                "time": summary["time"],
                "policy": scheduler.name,
                "reason": scheduler.reason,
                "cluster": summary["cluster"],
                "engines": engines,
                "latest": list(router.books.latest),
                "shadow": shadow
                and {
                    "policy": shadow.scheduler.name,
                    "decisions": shadow.decisions,
                    "disagreements": shadow.disagreements,
                },
            }
        )

    async def page(self, request: web.Request) -> web.Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        headers = {"Content-Security-Policy": policy + "connect-src 'self'"}
        return web.Response(text=self._page, content_type="text/html", headers=headers)


async def _body(request: web.Request) -> dict[str, Any]:
    content = await request.read()
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is no JSON", "invalid_json") from None
    return api.checked(request.path, body)


def _errors(router: Router) -> Any:
    """Return the middleware that answers in OpenAI's form whatever goes wrong."""
    known = (api.CHAT, api.TEXT, "/v1/models")

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        status = _CLIENT_GONE
        try:
            response = await _answered(request, handler)
            status = response.status
            return response
        except ClientGoneError:
            return web.Response(status=_CLIENT_GONE)
        finally:
            if request.path in known:
                router.metrics.requests.labels(request.path, str(status)).inc()

    return answer


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return _refusal(error)
    except RefusedError as error:
        return web.Response(body=error.body, status=error.status, content_type="application/json")
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _refusal(ApiError(error.status, error.reason, f"http_{error.status}"))


def _refusal(error: ApiError) -> web.Response:
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
    return web.Response(
        body=error.body, status=error.status, content_type="application/json", headers=headers
    )


def _key(router: Router) -> Any:
    """Return the middleware that asks for the key, where one is configured."""
    expected = router.spec.api_key
    digest = _digest(expected) if expected else b""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if expected and request.path.startswith("/v1/"):
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            # Of equal length and in constant time: how long it takes says nothing of the key.
            if not hmac.compare_digest(_digest(given), digest) or scheme.lower() != "bearer":
                raise ApiError(401, "the API key is missing or wrong", "invalid_api_key")
        return await handler(request)

    return check


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()
