"""The callbacks of vLLM's production stack, in a router that calls them as it does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_gym.agents.bridges.production_stack import Callbacks
from conserve_gym.agents.router.spec import RouterSpec
from conserve_gym.agents.runtime.log import latest
from conserve_gym.agents.runtime.replay import by_checksum, replay
from conserve_gym.agents.runtime.scheduler import Scheduler

CHAT = "/v1/chat/completions"
LONG, SHORT = "x" * 500, "x" * 50


@asynccontextmanager
async def stack(spec: RouterSpec) -> AsyncIterator[str]:
    """Serve as the production stack does with ``--callbacks``; yields the address."""
    callbacks = Callbacks(spec)

    async def route(request: Request) -> Response:
        body = await request.body()
        answer: Response | None = callbacks.pre_request(request, body, json.loads(body))
        if answer:
            answer.headers["X-Request-Id"] = "seven"
            return answer
        return JSONResponse({"by": "the stack itself"})

    app = Starlette(routes=[Route("/{path:path}", route, methods=["POST"])])
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving
        await callbacks.close()


def chat(*texts: str, **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text} for text in texts]
    return {"messages": messages, "max_tokens": 3, **options}


def events(folder: Path) -> list[str]:
    return [record["event"] for record in latest(folder) if "event" in record]


def test_later_turns_never_touch_the_prefill_engine(rack: Any, tmp_path: Path) -> None:
    async def play() -> None:
        async with (
            rack() as (engines, spec),
            stack(spec) as url,
            aiohttp.ClientSession(headers={"x-session-id": "one"}) as session,
        ):
            texts: tuple[str, ...] = (LONG,)
            for turn, stream in enumerate((True, False, True)):
                final = {"x-session-final": str(turn == 2)}
                body = chat(*texts, stream=stream)
                async with session.post(url + CHAT, json=body, headers=final) as answer:
                    text = await answer.text()
                    assert answer.status == 200, text
                    assert text.count("word ") == 3
                    assert answer.headers["X-Request-Id"] == "seven"
                    assert answer.headers["x-conserve-turn"] == str(turn)
                    moved = answer.headers["x-conserve-kv-transfers"]
                    assert moved == ("1" if turn == 0 else "0")
                texts += (SHORT,)
            prefiller, decoder = engines
            assert [len(prefiller.asked), len(decoder.asked)] == [1, 3]
            assert prefiller.asked[0]["kv_transfer_params"]["do_remote_decode"]
            ticket = decoder.asked[0]["kv_transfer_params"]
            assert (ticket["do_remote_prefill"], ticket["remote_engine_id"]) == (True, "p")
            assert not any("kv_transfer_params" in asked for asked in decoder.asked[1:])

    asyncio.run(play())
    turn = ["turn_arrived", "first_token", "turn_finished"]
    first = ["turn_arrived", "placed", "prefilled", "kv_moved", *turn[1:]]
    assert events(tmp_path / "log") == [*first, *turn, *turn, "conversation_ended"]
    replayed = replay(tmp_path / "log", by_checksum([Scheduler.load(tmp_path / "policy")]))
    assert [(one.same, one.online.disaggregates) for one in replayed] == [(True, True)]


def test_what_is_no_turn_goes_on_and_what_is_wrong_is_refused(rack: Any) -> None:
    async def play() -> None:
        async with (
            rack() as (engines, spec),
            stack(spec) as url,
            aiohttp.ClientSession() as session,
        ):
            async with session.post(f"{url}/v1/embeddings", json={"input": "a"}) as answer:
                assert (await answer.json())["by"] == "the stack itself"
            async with session.post(url + CHAT, json={"messages": "none"}) as answer:
                assert answer.status == 400
            engines[1].fails = 422
            async with session.post(url + CHAT, json=chat(SHORT, stream=True)) as answer:
                assert answer.status == 422
            engines[1].fails = 500
            async with session.post(url + CHAT, json=chat(SHORT, stream=True)) as answer:
                assert answer.status == 502

    asyncio.run(play())


def test_a_client_that_leaves_gives_its_turn_up(rack: Any, tmp_path: Path) -> None:
    async def play() -> None:
        async with rack() as (engines, spec), stack(spec) as url:
            engines[1].may_answer.clear()
            async with aiohttp.ClientSession() as session:
                asked = session.post(url + CHAT, json=chat(SHORT, stream=True))
                waiting = asyncio.ensure_future(asked)
                while not engines[1].asked:
                    await asyncio.sleep(0.01)
                waiting.cancel()
            async with asyncio.timeout(10):
                while "turn_aborted" not in events(tmp_path / "log"):
                    await asyncio.sleep(0.01)
            engines[1].may_answer.set()

    asyncio.run(play())


def test_a_configuration_is_read_from_a_file(rack: Any, tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(
        "engines:\n"
        "  - {name: d, url: 'http://127.0.0.1:1', role: decode, adapter: vllm_nixl,"
        " kv_tokens: 1000}\n"
    )
    assert Callbacks.of(file).pre_request(_request("/v1/models"), b"", None) is None
    assert Callbacks.of(file).pre_request(_request(CHAT), b"", chat(SHORT)) is not None


def _request(path: str) -> Request:
    scope = {"type": "http", "path": path, "headers": [], "query_string": b"", "scheme": "http"}
    return Request({**scope, "server": ("127.0.0.1", 80), "root_path": ""})
