"""An engine that speaks OpenAI's protocol and vLLM's KV handover, and notes what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


class FakeEngine:
    """Answers with as many words as it is asked for.

    Attributes:
        asked: Bodies of all requests.
        asked_headers: Their headers.
        fails: Status of every answer, if not 200.
        breaks_after: Events after which it breaks off.
        may_answer: What answers wait for.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[dict[str, Any]] = []
        self.asked_headers: list[dict[str, str]] = []
        self.fails = 200
        self.breaks_after: int | None = None
        self.url = ""
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.asked_headers.append({key.lower(): value for key, value in request.headers.items()})
        await self.may_answer.wait()
        if self.fails != 200:
            raise _status(self.fails)
        prompt = sum(len(message["content"]) for message in body["messages"])
        usage = {"prompt_tokens": prompt, "completion_tokens": body["max_tokens"]}
        params = body.get("kv_transfer_params") or {}
        if not body["stream"]:
            ticket = {
                "do_remote_prefill": True,
                "do_remote_decode": False,
                "remote_block_ids": [1, 2],
                "remote_engine_id": self.name,
                "remote_host": "127.0.0.1",
                "remote_port": 5600,
            }
            assert params["do_remote_decode"]
            return web.json_response({"usage": usage, "kv_transfer_params": ticket, "choices": []})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        chunks: list[dict[str, Any]] = [
            {
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}],
                "usage": None,
            },
            *(
                {"choices": [{"index": 0, "delta": {"content": "word "}}], "usage": None}
                for _ in range(body["max_tokens"])
            ),
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}], "usage": None},
            {"choices": [], "usage": usage},
        ]
        for i, chunk in enumerate(chunks):
            if i == self.breaks_after:
                assert request.transport is not None
                request.transport.close()
                return response
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def well(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self.name}]})


def _status(status: int) -> web.HTTPException:
    class Failure(web.HTTPException):
        status_code = status

    return Failure(text='{"error": {"message": "no"}}', content_type="application/json")


@asynccontextmanager
async def running(engine: FakeEngine) -> AsyncIterator[FakeEngine]:
    """Serve an engine on a free port."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", engine.complete)
    app.router.add_get("/v1/models", engine.well)
    app.router.add_get("/health", engine.well)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    engine.url = "http://{}:{}".format(*runner.addresses[0][:2])
    try:
        yield engine
    finally:
        await runner.cleanup()
