"""The router's parts: slots, streams, and the protocols of engines that no test can start."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

from router_engine import FakeEngine, running

from conserve_gym.agents.router import sse
from conserve_gym.agents.router.adapters.slots import Slots
from conserve_gym.agents.router.client import Gathered
from conserve_gym.agents.router.errors import ApiError, RefusedError
from conserve_gym.agents.router.lengths import Lengths
from conserve_gym.agents.router.router import Router, RouterError
from conserve_gym.agents.router.spec import EngineSpec, Health, Limits, RouterSpec
from conserve_gym.agents.runtime.replay import Replayed, by_checksum, replay
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.costs import UNKNOWN
from conserve_gym.deployment import Deployment
from conserve_gym.fleet import Fleet, Role
from conserve_gym.placement import HOLD

# --- slots ---


def test_a_conversation_keeps_its_slot_until_another_needs_it() -> None:
    async def play() -> None:
        slots = Slots(2)
        seen = []
        for conversation in (1, 2, 1, 3, 1, 2):
            async with slots.lease(conversation) as slot:
                seen.append(slot)
        assert seen == [0, 1, 0, 1, 0, 1]
        slots.forget(1)
        slots.forget(2)
        assert slots.held == 0

    asyncio.run(play())


@settings(deadline=None)  # an event loop's start takes what the machine gives
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.booleans()), max_size=40),
)
def test_no_slot_is_leased_twice_or_lost(count: int, plan: list[tuple[int, bool, bool]]) -> None:
    """Turns of conversations, of which some are cancelled and some end."""

    async def play() -> None:
        slots = Slots(count)
        busy: set[int] = set()
        locks = [asyncio.Lock() for _ in range(8)]

        async def turn(conversation: int, ends: bool) -> None:
            async with locks[conversation]:
                async with slots.lease(conversation) as slot:
                    assert slot not in busy
                    busy.add(slot)
                    try:
                        await asyncio.sleep(0)
                        await asyncio.sleep(0)
                    finally:
                        busy.remove(slot)
                if ends:
                    slots.forget(conversation)

        tasks = []
        for conversation, cancelled, ends in plan:
            tasks.append(asyncio.create_task(turn(conversation, ends)))
            await asyncio.sleep(0)
            if cancelled:
                tasks[len(tasks) // 2].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5.0)
        assert not busy
        for conversation in range(8):
            slots.forget(conversation)
        assert slots.held == 0
        async with AsyncExitStack() as stack:
            taken = [await stack.enter_async_context(slots.lease(100 + i)) for i in range(count)]
            assert sorted(taken) == list(range(count))

    asyncio.run(play())


# --- streams ---


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), max_size=40), st.booleans())
def test_events_are_cut_apart_wherever_they_were_broken(cuts: list[int], carriage: bool) -> None:
    values = [{"n": i, "text": "ü" * i} for i in range(8)]
    stream = b"".join(map(sse.event, values)) + sse.DONE
    if carriage:
        stream = stream.replace(b"\n", b"\r\n")

    async def parts() -> AsyncIterator[bytes]:
        start = 0
        for cut in cuts:
            yield stream[start : start + cut]
            start += cut
        yield stream[start:]

    async def play() -> list[bytes]:
        return [event async for event in sse.events(parts())]

    *events, last = asyncio.run(play())
    assert [sse.data(event) for event in events] == values
    assert last == sse.DONE


def test_a_stream_is_put_together() -> None:
    whole = sse.Whole()
    for delta in (
        {"role": "assistant", "content": None},
        {"content": "Hel", "reasoning_content": "hm"},
        {"content": "lo"},
        {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
        {"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "g"}}]},
    ):
        whole.add({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]})
    for tokens in ("a", "b"):
        logprobs = {"content": [{"token": tokens}]}
        whole.add({"choices": [{"index": 1, "delta": {"content": tokens}, "logprobs": logprobs}]})
    whole.add({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None})
    whole.add({"choices": [], "usage": {"prompt_tokens": 1}})
    answer = whole.answer()
    assert (answer["object"], answer["usage"]) == ("chat.completion", {"prompt_tokens": 1})
    first, second = answer["choices"]
    assert first["finish_reason"] == "stop"
    assert first["message"]["content"] == "Hello"
    assert first["message"]["reasoning_content"] == "hm"
    one, other = first["message"]["tool_calls"]
    assert one["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert (one["id"], other["id"], other["function"]) == ("a", "b", {"name": "g"})
    assert second["message"] == {"role": "assistant", "content": "ab"}
    assert second["logprobs"]["content"] == [{"token": "a"}, {"token": "b"}]


def test_a_stream_that_is_none_is_refused() -> None:
    with pytest.raises(sse.StreamError, match="no JSON"):
        sse.data(b"data: {\n\n")
    assert sse.data(b": a comment\n\n") is None


def test_lengths_are_learned() -> None:
    lengths = Lengths(0.25)
    assert lengths.tokens(4000) == 1000
    for _ in range(100):
        lengths.learn(4000, 2000)
    assert lengths.tokens(4000) == pytest.approx(2000, rel=0.01)


# --- vLLM's handover, and engines that fail ---

FLEET = Fleet((Role.PREFILL, Role.DECODE, Role.DECODE), (10_000,) * 3)
Play = Callable[[Router, list[FakeEngine]], Coroutine[Any, Any, None]]


def with_engines(
    tmp_path: Path,
    play: Play,
    *,
    disaggregate_from: float = 100.0,
    holding: bool = False,
    door_s: float = 60.0,
) -> None:
    """Play with a router before three engines of vLLM's protocol."""
    policy = tiny_policy.write(tmp_path / "policy", FLEET, disaggregate_from)
    if holding:
        policy = tiny_policy.write_holding(tmp_path / "holding", FLEET)

    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = [
                await stack.enter_async_context(running(FakeEngine(name)))
                for name in ("prefill", "one", "two")
            ]
            spec = RouterSpec(
                engines=tuple(
                    EngineSpec(one.name, one.url, role, "vllm_nixl", 10_000)
                    for one, role in zip(engines, FLEET.roles, strict=True)
                ),
                policy=policy,
                log=tmp_path / "log",
                tokens_per_character=1.0,
                limits=Limits(first_token_s=2.0, next_token_s=1.0, door_s=door_s),
                health=Health(period_s=0.1, timeout_s=1.0),
            )
            router = await stack.enter_async_context(Router(spec))
            await play(router, engines)

    asyncio.run(main())


async def ask(router: Router, session: str, text: str, **fields: Any) -> tuple[Any, Any]:
    """Ask for three words; returns the answer and the receipt."""
    client = Gathered()
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 3, **fields}
    headers = {"x-session-id": session}
    await router.turns.serve("/v1/chat/completions", headers, body, client)
    response = await client.finish()
    return json.loads(response.body), response.headers  # type: ignore[attr-defined]


def test_vllms_parameters_go_from_prefill_engine_to_decoder(tmp_path: Path) -> None:
    async def play(router: Router, engines: list[FakeEngine]) -> None:
        prefill, one, two = engines
        answer, receipt = await ask(router, "a", "x" * 200, max_completion_tokens=3)
        assert answer["choices"][0]["message"]["content"] == "word word word "
        assert receipt["x-conserve-kv-transfers"] == "1"
        (asked,) = prefill.asked
        assert asked["kv_transfer_params"]["do_remote_decode"] is True
        assert (asked["max_tokens"], asked["max_completion_tokens"]) == (1, 1)
        assert (asked["stream"], "stream_options" in asked) == (False, False)
        (asked,) = one.asked + two.asked
        assert asked["kv_transfer_params"]["remote_engine_id"] == "prefill"
        assert asked["max_tokens"] == 3
        _, receipt = await ask(router, "a", "x" * 260)
        assert receipt["x-conserve-kv-transfers"] == "0"
        await ask(router, "b", "short", kv_transfer_params={"remote_host": "example.org"})
        assert len(prefill.asked) == 1
        assert "kv_transfer_params" not in (one.asked + two.asked)[-1]

    with_engines(tmp_path, play)
    log = next((tmp_path / "log").iterdir()).read_text().splitlines()
    moves = [record for record in map(json.loads, log) if record.get("event") == "kv_moved"]
    assert [(move["tokens"], move["source"]) for move in moves] == [(200, 0)]


def test_a_prefill_engine_that_answers_with_an_error(tmp_path: Path) -> None:
    async def play(router: Router, engines: list[FakeEngine]) -> None:
        engines[0].fails = 500
        _, receipt = await ask(router, "a", "x" * 200)
        assert receipt["x-conserve-kv-transfers"] == "0"
        assert "HTTP 500" in receipt["x-conserve-reason"]
        assert router.runtime.up == [True] * 3

    with_engines(tmp_path, play)


def test_decoders_that_answer_with_errors(tmp_path: Path) -> None:
    async def play(router: Router, engines: list[FakeEngine]) -> None:
        for engine in engines[1:]:
            engine.fails = 500
        with pytest.raises(ApiError, match="HTTP 500") as raised:
            await ask(router, "a", "short")
        assert (raised.value.status, raised.value.code) == (502, "engine_failed")
        for engine in engines[1:]:
            engine.fails = 422
        with pytest.raises(RefusedError) as refused:
            await ask(router, "b", "short")
        assert (refused.value.status, refused.value.body) == (422, b'{"error": {"message": "no"}}')
        assert len(router.books.conversations) == 0
        assert not any(router.runtime.summary()["engines"]["turns_in_flight"])

    with_engines(tmp_path, play)


def test_decoders_that_break_off_before_everything_is_there(tmp_path: Path) -> None:
    """Nothing was sent to a client that asked for no stream, so another engine begins again."""

    async def play(router: Router, engines: list[FakeEngine]) -> None:
        engines[1].breaks_after = engines[2].breaks_after = 3
        with pytest.raises(ApiError, match="engines failed"):
            await ask(router, "a", "short")
        asked = len(engines[1].asked) + len(engines[2].asked)
        assert asked == 3
        engines[1].breaks_after = engines[2].breaks_after = None
        answer, receipt = await ask(router, "a", "short")
        assert answer["choices"][0]["message"]["content"] == "word word word "
        assert receipt["x-conserve-turn"] == "0"

    with_engines(tmp_path, play)


def test_turns_of_a_conversation_come_one_after_the_other(tmp_path: Path) -> None:
    async def play(router: Router, engines: list[FakeEngine]) -> None:
        answers = await asyncio.gather(*(ask(router, "a", "x" * (10 + i)) for i in range(6)))
        assert [receipt["x-conserve-turn"] for _, receipt in answers] == list("012345")
        assert len({receipt["x-conserve-decoder"] for _, receipt in answers}) == 1

    with_engines(tmp_path, play)


def test_a_turn_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async def play(router: Router, engines: list[FakeEngine]) -> None:
        for steps in range(0, 60, 2):
            task = asyncio.create_task(ask(router, f"s{steps}", "x" * 200))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        fields = router.runtime.summary()["engines"]
        assert not any(fields["turns_in_flight"])
        assert not any(fields["prompt_in_flight"])
        assert router.runtime.summary()["cluster"]["at_door"] == 0
        assert sum(fields["pinned"]) == len(router.books.conversations)
        assert all(not one.turns_waiting for one in router.books.conversations)

    with_engines(tmp_path, play)


# --- policies that hold ---


def decisions_of(tmp_path: Path) -> list[Replayed]:
    """Return the log's decisions, which must be the same offline."""
    policies = by_checksum([Scheduler.load(tmp_path / "holding")])
    decisions = list(replay(tmp_path / "log", policies))
    assert all(one.same for one in decisions)
    return decisions


def test_the_newest_of_those_held_comes_first(tmp_path: Path) -> None:
    finished: list[str] = []

    async def play(router: Router, engines: list[FakeEngine]) -> None:
        async def one(session: str) -> None:
            await ask(router, session, "x" * 20)
            finished.append(session)

        for engine in engines:
            engine.may_answer.clear()
        tasks = []
        for waiting, session in enumerate("abcd"):
            tasks.append(asyncio.create_task(one(session)))
            while len(router.books.door) < waiting or not any(e.asked for e in engines):
                await asyncio.sleep(0.001)
        assert sum(len(engine.asked) for engine in engines) == 1
        for engine in engines:
            engine.may_answer.set()
        await asyncio.gather(*tasks)

    with_engines(tmp_path, play, holding=True)
    assert finished == ["a", "d", "c", "b"]
    placed = [one.conversation for one in decisions_of(tmp_path) if one.online != HOLD]
    assert placed == [0, 3, 2, 1]


def test_nobody_is_held_for_longer_than_the_door_allows(tmp_path: Path) -> None:
    async def play(router: Router, engines: list[FakeEngine]) -> None:
        for engine in engines:
            engine.may_answer.clear()
        tasks = [asyncio.create_task(ask(router, session, "x" * 20)) for session in "ab"]
        while sum(len(engine.asked) for engine in engines) < 2:
            await asyncio.sleep(0.001)
        for engine in engines:
            engine.may_answer.set()
        await asyncio.gather(*tasks)

    with_engines(tmp_path, play, holding=True, door_s=0.05)
    decisions = [one.online == HOLD for one in decisions_of(tmp_path)]
    assert decisions == [False, True, False]


# --- what cannot start, and what can ---


def test_costs_are_those_given_or_those_of_the_policys_training(tmp_path: Path) -> None:
    def spec(**costs: Any) -> RouterSpec:
        data = {
            "engines": [
                {
                    "name": n,
                    "url": "http://h",
                    "role": r,
                    "adapter": "vllm_nixl",
                    "kv_tokens": 10_000,
                }
                | costs
                for n, r in zip(("p", "a", "b"), FLEET.roles, strict=True)
            ],
            "policy": policy,
        }
        return TypeAdapter(RouterSpec).validate_python(data)

    known = UNKNOWN._replace(token_s=1e-3)
    trained = Fleet(FLEET.roles, FLEET.kv_capacity_tokens, (known,) * 3)
    policy = tiny_policy.write(tmp_path / "policy", trained, 100)
    assert Router(spec()).runtime.fleet.costs == (known,) * 3
    other = known._replace(token_s=2e-3)
    assert Router(spec(costs=other._asdict())).runtime.fleet.costs == (other,) * 3


def spec_of(*engines: EngineSpec, **options: Any) -> RouterSpec:
    return RouterSpec(engines=engines, **options)


@pytest.mark.parametrize(
    ("engines", "says"),
    [
        ([("a", "ftp://h", Role.DECODE, "openai")], "no http address"),
        ([("a/b", "http://h", Role.DECODE, "openai")], "should match pattern"),
        ([("a", "http://h", Role.DECODE, "openai")] * 2, "stands twice"),
        ([("a", "http://h", Role.DECODE, "llamacpp")], "slot_folder is needed"),
        ([("a", "http://h", Role.PREFILL, "openai")], "cannot prefill for others"),
        ([("a", "http://h", Role.PREFILL, "vllm_nixl")], "no engine decodes"),
        (
            [("a", "http://h", Role.DECODE, "openai"), ("b", "http://h", Role.DECODE, "vllm_nixl")],
            "the same adapter",
        ),
    ],
)
def test_wrong_engines_are_named(engines: list[tuple[Any, ...]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        spec_of(*(EngineSpec(*engine, 1000) for engine in engines))


@pytest.mark.parametrize("needs", ["decides_every_turn", "engine_exports"])
def test_a_policy_that_a_router_cannot_run_is_refused(tmp_path: Path, needs: str) -> None:
    names = zip(("p", "a", "b"), FLEET.roles, strict=True)
    engines = [EngineSpec(name, "http://h", role, "vllm_nixl", 10_000) for name, role in names]
    deployment = Deployment(**{needs: True})
    policy = tiny_policy.write(tmp_path / "policy", FLEET, 100, deployment=deployment)
    with pytest.raises(RouterError, match="cannot run"):
        Router(spec_of(*engines, policy=policy))
    fleet = Fleet(FLEET.roles, (5,) * 3)
    policy = tiny_policy.write(tmp_path / "other", fleet, 100)
    with pytest.raises(RouterError, match="does not serve these engines"):
        Router(spec_of(*engines, policy=policy))
