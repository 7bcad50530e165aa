"""The endpoint picker: asked by a gRPC client, and by a real Envoy where one is installed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("grpc")
pytest.importorskip("envoy.service.ext_proc.v3.external_processor_pb2")

import aiohttp
import grpc
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    ProcessingRequest,
    ProcessingResponse,
    ProtocolConfiguration,
)
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub
from envoy_configuration import configuration

from conserve_gym.agents.bridges.envoy import DECODER, PREFILLER, start
from conserve_gym.agents.router.router import Router
from conserve_gym.agents.runtime.log import latest
from conserve_gym.agents.runtime.replay import by_checksum, replay
from conserve_gym.agents.runtime.scheduler import Scheduler

CHAT = "/v1/chat/completions"
LONG, SHORT = "x" * 500, "x" * 50
SCRIPTS = Path(sys.executable).parent  # a wheel's executable is beside this Python, in PATH or not
ENVOY = shutil.which("envoy", path=os.pathsep.join((str(SCRIPTS), os.environ.get("PATH", ""))))


@asynccontextmanager
async def picking(spec: Any) -> AsyncIterator[tuple[Router, Any, str]]:
    """Run a router and its picker; yields a stub too, and the picker's address."""
    async with Router(spec) as router:
        server, address = await start(router)
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                yield router, ExternalProcessorStub(channel), address
        finally:
            await server.stop(None)


class Call:
    """A request and its response, as Envoy would tell of them."""

    def __init__(self, stub: Any, *, duplex: bool = False) -> None:
        self.stream = stub.Process()
        mode = ProcessingMode.FULL_DUPLEX_STREAMED if duplex else ProcessingMode.BUFFERED
        answers = ProcessingMode.FULL_DUPLEX_STREAMED if duplex else ProcessingMode.STREAMED
        self.modes = ProtocolConfiguration(request_body_mode=mode, response_body_mode=answers)
        self.duplex = duplex

    async def tell(self, message: ProcessingRequest) -> ProcessingResponse:
        await self.stream.write(message)
        return await self.read()

    async def read(self) -> ProcessingResponse:
        answer = await asyncio.wait_for(self.stream.read(), 10)
        assert answer is not grpc.aio.EOF
        return answer

    async def request(self, body: Any, headers: dict[str, str], path: str = CHAT) -> Any:
        """Send a request; returns headers that are set and that are removed, or a refusal."""
        sent = _headers({":method": "POST", ":path": path, **headers})
        first = ProcessingRequest(
            request_headers=HttpHeaders(headers=sent), protocol_config=self.modes
        )
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        half = len(content) // 2
        if not self.duplex:
            assert (await self.tell(first)).WhichOneof("response") == "request_headers"
            whole = HttpBody(body=content, end_of_stream=True)
            answer = await self.tell(ProcessingRequest(request_body=whole))
            if answer.WhichOneof("response") == "immediate_response":
                return answer.immediate_response
            mutation = answer.request_body.response.header_mutation
        else:
            await self.stream.write(first)
            for part, last in ((content[:half], False), (content[half:], True)):
                body_part = HttpBody(body=part, end_of_stream=last)
                await self.stream.write(ProcessingRequest(request_body=body_part))
            mutation = (await self.read()).request_headers.response.header_mutation
            echoed = b""
            while True:
                back = (await self.read()).request_body.response.body_mutation.streamed_response
                echoed += back.body
                if back.end_of_stream:
                    break
            assert echoed == content
        found = {one.header.key: one.header.raw_value.decode() for one in mutation.set_headers}
        return found, list(mutation.remove_headers)

    async def response(self, parts: list[bytes], kind: str = "text/event-stream") -> Any:
        """Send an answer; returns its receipt."""
        headers = HttpHeaders(headers=_headers({":status": "200", "content-type": kind}))
        answer = await self.tell(ProcessingRequest(response_headers=headers))
        for i, part in enumerate(parts):
            body = HttpBody(body=part, end_of_stream=i == len(parts) - 1)
            back = await self.tell(ProcessingRequest(response_body=body))
            mutation = back.response_body.response.body_mutation.streamed_response
            assert not self.duplex or mutation.body == part
        set_headers = answer.response_headers.response.header_mutation.set_headers
        return {one.header.key: one.header.raw_value.decode() for one in set_headers}

    async def close(self) -> None:
        await self.stream.done_writing()
        assert await self.stream.read() is grpc.aio.EOF


def _headers(values: dict[str, str]) -> HeaderMap:
    pairs = [HeaderValue(key=key, raw_value=value.encode()) for key, value in values.items()]
    return HeaderMap(headers=pairs)


def chat(*texts: str, **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text} for text in texts]
    return {"messages": messages, "max_tokens": 3, "stream": True, **options}


def answered(prompt: int, words: int = 3) -> list[bytes]:
    token = b'data: {"choices": [{"delta": {"content": "word"}}]}\n\n'
    usage = {"prompt_tokens": prompt, "completion_tokens": words}
    last = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
    return [token[:20], token[20:], *[token] * (words - 1), last + b"data: [DONE]\n\n", b""]


def events(folder: Path) -> list[str]:
    return [record["event"] for record in latest(folder) if "event" in record]


@pytest.mark.parametrize("duplex", [False, True])
def test_a_conversation_is_placed_once_and_replays(rack: Any, tmp_path: Path, duplex: bool) -> None:
    async def play() -> None:
        async with rack() as (engines, spec), picking(spec) as (_, stub, _):
            prefiller, decoder = (engine.url.removeprefix("http://") for engine in engines)
            session = {"x-session-id": "one", PREFILLER: "chosen.by.client:1"}
            call = Call(stub, duplex=duplex)
            chosen, _ = await call.request(chat(LONG), session)
            assert chosen == {DECODER: decoder, PREFILLER: prefiller}
            receipt = await call.response(answered(500))
            assert receipt["x-conserve-decision"] == "disaggregate"
            await call.close()
            call = Call(stub, duplex=duplex)
            chosen, removed = await call.request(chat(LONG, SHORT), session)
            assert (chosen, removed) == ({DECODER: decoder}, [PREFILLER])
            await call.response(answered(560))
            await call.close()
            call = Call(stub, duplex=duplex)
            final = {"x-session-id": "two", "x-session-final": "true"}
            chosen, removed = await call.request(chat(SHORT), final)
            assert (chosen, removed) == ({DECODER: decoder}, [PREFILLER])
            whole = {"usage": {"prompt_tokens": 50, "completion_tokens": 3}}
            whole["choices"] = [{"finish_reason": "stop"}]  # type: ignore[assignment]
            await call.response([json.dumps(whole).encode()], "application/json")
            await call.close()

    asyncio.run(play())
    turn = ["turn_arrived", "first_token", "turn_finished"]
    placed = [turn[0], "placed", *turn[1:]]
    assert events(tmp_path / "log") == [*placed, *turn, *placed, "conversation_ended"]
    policies = by_checksum([Scheduler.load(tmp_path / "policy")])
    replayed = list(replay(tmp_path / "log", policies))
    assert [one.online.disaggregates for one in replayed] == [True, False]
    assert all(one.same for one in replayed)


def test_a_turn_that_breaks_off_is_given_up(rack: Any, tmp_path: Path) -> None:
    async def play() -> None:
        async with rack() as (_, spec), picking(spec) as (router, stub, _):
            call = Call(stub)
            await call.request(chat(SHORT), {"x-session-id": "one"})
            call.stream.cancel()
            async with asyncio.timeout(10):
                while len(router.books.conversations):
                    await asyncio.sleep(0.01)

    asyncio.run(play())
    assert events(tmp_path / "log")[-2:] == ["turn_aborted", "conversation_ended"]


def test_a_turn_beside_another_goes_along(rack: Any, tmp_path: Path) -> None:
    async def play() -> None:
        async with rack() as (engines, spec), picking(spec) as (_, stub, _):
            decoder = engines[1].url.removeprefix("http://")
            first, beside = Call(stub), Call(stub)
            await first.request(chat(LONG), {"x-session-id": "one"})
            chosen, _ = await beside.request(chat(LONG, LONG), {"x-session-id": "one"})
            assert chosen == {DECODER: decoder}
            await first.response(answered(500))

    asyncio.run(play())
    assert events(tmp_path / "log").count("turn_arrived") == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[" * 100_000, 400),
        ({"messages": "none"}, 400),
        (chat(SHORT, kv_transfer_params={"remote_host": "elsewhere"}), 400),
    ],
)
def test_what_is_no_turn_is_refused(rack: Any, body: Any, status: int) -> None:
    async def play() -> None:
        async with rack() as (_, spec), picking(spec) as (_, stub, _):
            refusal = await Call(stub).request(body, {})
            assert refusal.status.code == status
            assert "error" in json.loads(refusal.body)

    asyncio.run(play())


def test_without_engines_nothing_is_placed(rack: Any) -> None:
    async def play() -> None:
        async with rack() as (_, spec), picking(spec) as (router, stub, _):
            for engine in (0, 1):
                router.runtime.set_up(engine, False)
            refusal = await Call(stub).request(chat(SHORT), {})
            assert refusal.status.code == 503
            router.runtime.set_up(1, True)  # without a prefiller it colocates
            chosen, removed = await Call(stub).request(chat(LONG), {})
            assert (list(chosen), removed) == ([DECODER], [PREFILLER])

    asyncio.run(play())


def test_a_broken_policy_leaves_it_to_the_rule(rack: Any, tmp_path: Path) -> None:
    (tmp_path / "garbage").mkdir()

    async def play() -> None:
        async with (
            rack(policy=tmp_path / "garbage") as (_, spec),
            picking(spec) as (_, stub, _),
        ):
            call = Call(stub)
            chosen, _ = await call.request(chat(SHORT), {})
            assert PREFILLER in chosen  # ConServe's rule disaggregates
            assert "x-conserve-reason" in await call.response(answered(50))

    asyncio.run(play())


# --- a real Envoy ---


@pytest.fixture
def free_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    yield port


@pytest.mark.skipif(ENVOY is None, reason="no envoy is installed")
@pytest.mark.parametrize("duplex", [False, True])
def test_a_real_envoy_sends_turns_where_it_is_told(
    rack: Any, tmp_path: Path, free_port: int, duplex: bool
) -> None:
    async def play() -> None:
        async with rack() as (engines, spec), picking(spec) as (_, _, address):
            config = tmp_path / "envoy.json"
            picker = int(address.rsplit(":", 1)[1])
            config.write_text(json.dumps(configuration(free_port, picker, duplex=duplex)))
            assert ENVOY is not None
            command = (ENVOY, "-c", str(config), "--use-dynamic-base-id", "-l", "warning")
            process = await asyncio.create_subprocess_exec(*command)
            url = f"http://127.0.0.1:{free_port}"
            try:
                async with aiohttp.ClientSession() as session:
                    await _until_open(session, url)
                    seen = []
                    for texts in ((LONG,), (LONG, SHORT)):
                        named = {"x-session-id": "one"}
                        body = chat(*texts, stream_options={"include_usage": True})
                        async with session.post(url + CHAT, json=body, headers=named) as answer:
                            text = await answer.text()
                            assert answer.status == 200, text
                            assert text.count("word ") == 3
                            seen.append(answer.headers["x-conserve-turn"])
                    assert seen == ["0", "1"]
            finally:
                process.terminate()
                await process.wait()
            assert [len(engine.asked) for engine in engines] == [0, 2]
            first, second = engines[1].asked_headers
            assert first[PREFILLER] == engines[0].url.removeprefix("http://")
            assert PREFILLER not in second

    asyncio.run(play())
    counted = events(tmp_path / "log")
    assert counted.count("placed") == 1
    assert counted.count("turn_finished") == 2
    replayed = replay(tmp_path / "log", by_checksum([Scheduler.load(tmp_path / "policy")]))
    assert [one.same for one in replayed] == [True]


async def _until_open(session: Any, url: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                async with session.get(f"{url}/v1/models") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
