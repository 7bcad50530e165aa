"""The request router for Ray Serve, with replicas that only have names, and with real ones."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_policy

pytest.importorskip("ray.serve")
pytest.importorskip("prometheus_client")

from conserve_gym.agents.bridges.ray_serve import ConversationRouter
from conserve_gym.agents.runtime.log import latest, segments
from conserve_gym.agents.runtime.replay import by_checksum, replay
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.fleet import Fleet, Role

ROLES = (Role.PREFILL, Role.DECODE, Role.DECODE)
KV_TOKENS = 100_000
LONG, SHORT = "x" * 500, "x" * 50


def options(folder: Path) -> dict[str, Any]:
    tiny_policy.write(folder / "policy", Fleet(ROLES, (KV_TOKENS,) * 3), 200)
    return {
        "roles": [str(role) for role in ROLES],
        "kv_tokens": KV_TOKENS,
        "policy": str(folder / "policy"),
        "log": str(folder / "log"),
        "tokens_per_character": 1.0,
    }


def body(*texts: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text} for text in texts]}


class Id(str):
    """A replica's id."""

    unique_id = property(str.__str__)


class Serve:
    """Routes as Serve does, to replicas that only have names."""

    def __init__(self, folder: Path) -> None:
        self.router = ConversationRouter.__new__(ConversationRouter)
        self.router._lazily_fetched_loop = None
        self.router.initialize_state(**options(folder))
        self.replicas = [SimpleNamespace(replica_id=Id(name)) for name in "abc"]
        self.requests = 0

    async def ask(self, session: str, *texts: str, ends: bool = True) -> tuple[list[str], Any]:
        self.requests += 1
        metadata = SimpleNamespace(internal_request_id=str(self.requests), session_id=session)
        pending: Any = SimpleNamespace(args=[body(*texts)], kwargs={}, metadata=metadata)
        (rank,) = await self.router.choose_replicas(list(self.replicas), pending)
        again = await self.router.choose_replicas(list(self.replicas), pending)
        assert again == [rank]  # Serve asks again when a replica is slow
        if ends:
            self.router.on_request_completed(rank[0].replica_id, metadata.internal_request_id)
            await asyncio.sleep(0.01)
        return [str(replica.replica_id) for replica in rank], pending.kwargs.get("prefiller")


def logged(folder: Path) -> Path:
    (log,) = (folder / "log").iterdir()
    return log


def test_a_conversation_keeps_its_replica_and_replays(tmp_path: Path) -> None:
    async def play() -> None:
        serve = Serve(tmp_path)
        assert await serve.router.choose_replicas(serve.replicas, None) == [serve.replicas]
        first, prefiller = await serve.ask("one", LONG)
        assert prefiller == "a"
        assert first in (["b"], ["c"])
        assert await serve.ask("one", LONG, SHORT) == (first, None)
        assert (await serve.ask("two", SHORT))[1] is None
        await serve.ask("one", LONG, SHORT, SHORT, ends=False)
        assert await serve.ask("one", LONG, SHORT, SHORT) == (first, None)  # beside it
        # Its replica is gone: it begins again elsewhere.
        serve.router._end(str(4))
        await asyncio.sleep(0.01)
        serve.replicas = [one for one in serve.replicas if one.replica_id not in first]
        moved, prefiller = await serve.ask("one", LONG, SHORT)
        assert moved not in (first, ["a"])
        assert prefiller == "a"
        serve.router._runtime._log.flush()  # type: ignore[union-attr]

    asyncio.run(play())
    events = [record["event"] for record in latest(logged(tmp_path)) if "event" in record]
    assert events.count("placed") == 3
    assert events.count("turn_finished") == events.count("turn_arrived") == 5
    policies = by_checksum([Scheduler.load(tmp_path / "policy")])
    replayed = list(replay(logged(tmp_path), policies))
    assert [one.online.disaggregates for one in replayed] == [True, False, True]
    assert all(one.same for one in replayed)


@pytest.mark.slow
def test_real_replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray writes a token to the user's home
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    config = RequestRouterConfig(
        request_router_class=ConversationRouter, request_router_kwargs=options(tmp_path)
    )

    @serve.deployment(
        num_replicas=3, request_router_config=config, ray_actor_options={"num_cpus": 0}
    )
    class Engine:
        def __call__(self, body: dict[str, Any], prefiller: str | None = None) -> Any:
            return serve.get_replica_context().replica_id.unique_id, prefiller

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        handle = serve.run(Engine.bind())
        named = handle.options(session_id="one")
        at, prefiller = named.remote(body(LONG)).result()
        assert prefiller not in (None, at)
        for texts in ((LONG, SHORT), (LONG, SHORT, SHORT)):
            assert named.remote(body(*texts)).result() == (at, None)
    finally:
        serve.shutdown()
        ray.shutdown()
    policies = by_checksum([Scheduler.load(tmp_path / "policy")])
    logs = [folder for folder in (tmp_path / "log").iterdir() if segments(folder)]
    replayed = [one for folder in logs for one in replay(folder, policies)]  # one a router
    assert [(one.same, one.online.disaggregates) for one in replayed] == [(True, True)]
