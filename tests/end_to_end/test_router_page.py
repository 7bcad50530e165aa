"""What people see who open the router's address, in a real browser."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from importlib import resources
from pathlib import Path
from typing import Any

import aiohttp
import browser
import pytest
import tiny_policy
from router_engine import FakeEngine, running

from conserve_gym.agents.router.app import application, runner
from conserve_gym.agents.router.router import Router
from conserve_gym.agents.router.spec import EngineSpec, Health, Limits, RouterSpec
from conserve_gym.fleet import Fleet, Role

KV_TOKENS = 10_000
FLEET = Fleet((Role.PREFILL, Role.DECODE, Role.DECODE), (KV_TOKENS,) * 3)
FROM_TOKENS = 200  # the policy disaggregates prompts from here on


class Site:
    """A router in front of three engines, and whoever looks at its page."""

    def __init__(self, folder: Path, url: str, engines: list[FakeEngine]) -> None:
        self.folder = folder
        self.url = url
        self.prefill, self.one, self.two = self.engines = engines
        self.kill: dict[str, Callable[[], Awaitable[None]]] = {}

    async def chat(self, session: str, letters: int, **options: Any) -> int:
        """Ask for three words; returns the status."""
        message = {"role": "user", "content": "x" * letters}
        body = {"messages": [message], "max_tokens": 3, **options}
        async with (
            aiohttp.ClientSession() as client,
            client.post(
                f"{self.url}/v1/chat/completions", json=body, headers={"x-session-id": session}
            ) as answer,
        ):
            await answer.read()
            return answer.status

    async def state(self) -> Any:
        async with aiohttp.ClientSession() as client, client.get(f"{self.url}/state") as answer:
            return await answer.json()

    async def until(self, condition: Callable[[Any], Any]) -> None:
        """Wait for a state."""
        async with asyncio.timeout(60):
            while not condition(await self.state()):
                await asyncio.sleep(0.05)

    async def page(self) -> browser.Dom:
        """Open the page."""
        return await asyncio.to_thread(browser.dom, f"{self.url}/", self.folder)


def with_site(folder: Path, look: Callable[[Site], Awaitable[None]]) -> None:
    """Look at the page of a router before three engines of vLLM's protocol."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = [FakeEngine(name) for name in ("prefill", "one", "two")]
            own = [await stack.enter_async_context(AsyncExitStack()) for _ in engines]
            for engine, its in zip(engines, own, strict=True):
                await its.enter_async_context(running(engine))
            spec = RouterSpec(
                engines=tuple(
                    EngineSpec(one.name, one.url, role, "vllm_nixl", KV_TOKENS)
                    for one, role in zip(engines, FLEET.roles, strict=True)
                ),
                policy=str(tiny_policy.write(folder / "policy", FLEET, FROM_TOKENS)),
                tokens_per_character=1.0,
                limits=Limits(first_token_s=600.0, connect_s=1.0, door_s=600.0),
                health=Health(period_s=0.1, timeout_s=1.0, failures=2),
            )
            router = await stack.enter_async_context(Router(spec))
            served = runner(application(router), router)
            await served.setup()
            stack.push_async_callback(served.cleanup)
            await aiohttp.web.TCPSite(served, "127.0.0.1", 0).start()
            host, port = served.addresses[0][:2]
            site = Site(folder, f"http://{host}:{port}", engines)
            site.kill = {e.name: its.aclose for e, its in zip(engines, own, strict=True)}
            await look(site)

    asyncio.run(main())


@browser.needed
def test_engines_their_memory_the_door_and_decisions(tmp_path: Path) -> None:
    async def look(site: Site) -> None:
        assert await site.chat("long", 6000) == 200
        assert await site.chat("short", 40) == 200
        site.two.may_answer.clear()
        waiting = [asyncio.create_task(site.chat("waits for its engine", 7000))]
        await site.until(lambda state: len(site.two.asked) == 2)
        waiting.append(asyncio.create_task(site.chat("finds no room", 8000)))
        await site.until(lambda state: state["cluster"]["at_door"] == 1)
        shown = await site.page()
        site.two.may_answer.set()
        (first, _) = waiting
        assert await first == 200
        for task in waiting:
            task.cancel()

        assert shown.said["summary"] == "policy tiny"
        for card in (
            "live conversations 3",
            "waiting at the door 1",
            "colocated 1",
            "disaggregated 2",
            "KV caches moved 1",
            "answers with an error 0",
        ):
            assert card in shown.said["counts"]
        prefill, one, two = shown.rows["engines"]
        assert prefill["engine"] == "prefill prefill"
        assert (one["engine"], one["now"]) == ("one decode", "idle")
        assert one["KV known to be held"] == "60 % of 10,000 tokens"
        assert one["conversations pinned"] == "1"
        assert one["TBT lately"] != "–"
        assert (two["turns in flight"], two["conversations pinned"]) == ("1", "2")
        assert two["now"] == "1 turn without a first token"
        assert two["KV known to be held"] == "70 % of 10,000 tokens"
        third, second, first_placed = shown.rows["latest"]
        assert first_placed["route"] == "prefill at prefill → one"
        assert second["route"] == "colocate at two"
        assert (third["prompt tokens"], third["route"]) == ("7,000", "prefill at prefill → two")
        assert third["decided by"] == "tiny"
        assert shown.said["incidents"] == "none"

    with_site(tmp_path, look)


@browser.needed
def test_a_dead_engine_what_the_rule_decided_and_what_failed(tmp_path: Path) -> None:
    async def look(site: Site) -> None:
        site.prefill.fails = 500
        assert await site.chat("a", 300) == 200
        site.prefill.fails = 200
        await site.kill["prefill"]()
        await site.until(lambda state: not state["engines"][0]["up"])
        assert await site.chat("b", 300) == 200
        shown = await site.page()
        assert shown.said["summary"] == "policy tiny · 1 of 3 engines down"
        dead, well, _ = shown.rows["engines"]
        assert dead["now"].startswith("down Client")
        assert well["now"] == "idle"
        after, before = shown.rows["latest"]
        assert before["route"] == "prefill at prefill → one"
        assert before["decided by"].startswith("tiny prefill failed: HTTP 500")
        assert (after["route"], after["decided by"]) == ("colocate at two", "rule engine 0 is down")
        assert "by the fallback rule 1" in shown.said["counts"]
        assert "handovers failed 1" in shown.said["counts"]
        latest, failed = shown.rows["incidents"]
        assert latest["what"].startswith("engine prefill is down: Client")
        assert failed["what"].startswith("prefill: prefill failed: HTTP 500")
        for engine in ("one", "two"):
            await site.kill[engine]()
        await site.until(lambda state: not any(e["up"] for e in state["engines"]))
        assert await site.chat("c", 300) == 503
        state = await site.state()
        assert state["counts"]["answers"] == {"200": 2, "503": 1}

    with_site(tmp_path, look)


@browser.needed
def test_what_clients_and_engines_say_is_text(tmp_path: Path) -> None:
    """A conversation's name is not shown at all; an engine's error may repeat it."""
    name = "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>"

    async def look(site: Site) -> None:
        site.prefill.fails, site.prefill.says = 500, f"conversation {name} is unknown"
        for _ in range(2):
            assert await site.chat(name, 300, user=name, model=name) == 200
        assert await site.chat("another", 300) == 200
        shown = await site.page()
        (_, latest) = shown.rows["latest"]
        assert latest["decided by"].startswith("tiny prefill failed: HTTP 500")
        assert name in latest["decided by"]
        (incident,) = shown.rows["incidents"]
        assert name in incident["what"]
        assert incident["times"] == "2"
        assert shown.tags.count("script") == 1
        assert "img" not in shown.tags

    with_site(tmp_path, look)


def test_the_page_asks_nobody_but_the_router() -> None:
    page = (resources.files("conserve_gym.agents.router") / "page.html").read_text("utf-8")
    assert not re.findall(r"https?:|src=|href=|@import|url\(", page)


@pytest.mark.parametrize("address", ["/", "/state"])
def test_nothing_names_a_client(tmp_path: Path, address: str) -> None:
    async def look(site: Site) -> None:
        await site.chat("a-clients-own-name", 300, user="a-clients-own-user")
        async with aiohttp.ClientSession() as client, client.get(site.url + address) as answer:
            assert "a-clients-own" not in await answer.text()

    with_site(tmp_path, look)
