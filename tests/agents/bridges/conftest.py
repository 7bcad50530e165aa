"""Routers for bridges: two engines that only pretend, and a policy made by hand."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

KV_TOKENS = 100_000
FROM_TOKENS = 200  # the policy disaggregates prompts from here on

Rack = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def rack(tmp_path: Path) -> Rack:
    """Return what starts a prefill engine and a decoder, and gives them with a router's spec."""
    pytest.importorskip("aiohttp")
    pytest.importorskip("prometheus_client")
    import tiny_policy
    from router_engine import FakeEngine, running

    from conserve_gym.agents.router.spec import EngineSpec, Limits, RouterSpec
    from conserve_gym.fleet import Fleet, Role

    fleet = Fleet((Role.PREFILL, Role.DECODE), (KV_TOKENS,) * 2)
    tiny_policy.write(tmp_path / "policy", fleet, FROM_TOKENS)

    @asynccontextmanager
    async def start(**options: Any) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            engines = [
                await stack.enter_async_context(running(FakeEngine(name))) for name in ("p", "d")
            ]
            spec = RouterSpec(
                tuple(
                    EngineSpec(engine.name, engine.url, role, "vllm_nixl", KV_TOKENS)
                    for engine, role in zip(engines, fleet.roles, strict=True)
                ),
                log=tmp_path / "log",
                port=0,
                tokens_per_character=1.0,
                limits=Limits(door_s=0.1),
                **{"policy": tmp_path / "policy", **options},
            )
            yield engines, spec

    return start
