"""A request router for Ray Serve: replicas of a deployment are the engines.

    RequestRouterConfig(
        request_router_class=ConversationRouter,
        request_router_kwargs={"roles": ["prefill", "decode"], "kv_tokens": 300000, "policy": NAME},
    )

Serve asks it for each request which replicas may take it, and carries the request. The first
argument of a call, or ``body=``, is a body of OpenAI's API; Serve's ``session_id``, or a name in
the body, tells conversations apart. A request goes to the replica that decodes it, and is told by
``prefiller=`` which replica computes its prompt: an id, or None. Passing the KV cache on is the
deployment's own.

Each handle has a router of its own in Serve, and so a ledger of its own: a conversation belongs to
one handle. Serve does not show what comes back: a first token is written down with its turn's end,
and outputs count as empty. Replicas must not refuse requests (``max_ongoing_requests``): a refusal
looks like a turn's end. Source: ray.serve.request_router of Ray 2.58.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from conserve_gym.agents.router.books import Books, Turn
from conserve_gym.agents.router.errors import ApiError
from conserve_gym.agents.router.metrics import Metrics
from conserve_gym.agents.router.spec import Limits
from conserve_gym.agents.runtime.log import DecisionLog
from conserve_gym.agents.runtime.runtime import Runtime
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.agents.trained import path_of
from conserve_gym.fleet import Fleet, Role

_log = logging.getLogger(__name__)

_SESSION = "x-session-id"


class ConversationRouter(RequestRouter):  # type: ignore[misc]
    """Chooses a replica once a conversation, and keeps to it."""

    def initialize_state(
        self,
        roles: Sequence[str],
        kv_tokens: int,
        policy: str | None = None,
        log: str | None = None,
        idle_s: float = 1800.0,
        tokens_per_character: float = 0.25,
    ) -> None:
        """Prepare to decide; Serve calls it with ``request_router_kwargs``.

        Args:
            roles: Of the replicas, which take them in the order in which they come.
            kv_tokens: Size of each replica's KV pool.
            policy: Name or path of an exported policy; what cannot be used leaves it to the rule.
            log: Folder of the decision log; each router has a folder in it.
            idle_s: When a silent conversation is given up.
            tokens_per_character: Of prompts, until replicas have told.

        Raises:
            ValueError: The roles make no fleet.
        """
        scheduler = Scheduler(None, "no policy was given")
        if policy is not None:
            scheduler = Scheduler.load(path_of(policy), strict=False)
        fleet = Fleet(tuple(map(Role, roles)), (kv_tokens,) * len(roles))
        artifact = scheduler.artifact
        if artifact is not None and artifact.serves(fleet) and fleet == artifact.fleet:
            fleet = artifact.fleet  # the engines that it was trained for, and what they cost
        written = DecisionLog(_folder(Path(log))) if log else None
        self._runtime = Runtime(scheduler, fleet, log=written)
        self._runtime.begin_segment()
        for engine in range(len(roles)):
            self._runtime.set_up(engine, False)
        limits = Limits(idle_s=idle_s, door_s=1.0)
        names = [f"replica {i}" for i in range(len(roles))]
        self._books = Books(self._runtime, names, Metrics(), limits, tokens_per_character)
        self._replica_of: list[Any] = [None] * len(roles)  # its id, by engine
        self._under_way: dict[str, tuple[Turn, AsyncExitStack]] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the replica of a request's conversation; all of them for what is no turn."""
        _ = self._event_loop  # the one that routes, for whoever comes from another thread
        self._seat(candidate_replicas)
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        body = _body(pending_request)
        if pending_request is None or body is None:
            return [candidate_replicas]
        self._books.sweep()
        request = pending_request.metadata.internal_request_id
        session = pending_request.metadata.session_id
        headers = {_SESSION: session} if session else {}
        if request not in self._under_way:
            known = self._books.find(headers, body)
            if known is not None and known.lock.locked() and known.placement is not None:
                beside = by_id.get(self._replica_of[known.placement.decode_at])
                return [[beside]] if beside else [candidate_replicas]
            try:
                await self._begin(request, headers, body)
            except ApiError as error:
                _log.warning("left to Serve: %s", error)
                return [candidate_replicas]
        turn, _ = self._under_way[request]
        prefiller = self._replica_of[turn.placement.prefill_at] if turn.is_offloaded else None
        pending_request.kwargs["prefiller"] = prefiller and prefiller.unique_id
        chosen = by_id.get(self._replica_of[turn.placement.decode_at])
        return [[chosen]] if chosen else [candidate_replicas]

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        """Write a turn's end down, in the event loop that routes."""
        if internal_request_id in self._under_way:
            self._event_loop.call_soon_threadsafe(self._end, internal_request_id)

    def _end(self, request: str) -> None:
        found = self._under_way.pop(request, None)
        if found is None:
            return
        turn, stack = found
        self._books.first_token(turn)
        self._books.finish(turn, {})
        self._ending = self._event_loop.create_task(stack.aclose())

    def _seat(self, replicas: Sequence[RunningReplica]) -> None:
        """Give new replicas the roles of those that are gone."""
        here = {replica.replica_id for replica in replicas}
        for engine, replica_id in enumerate(self._replica_of):
            if replica_id is not None and replica_id not in here:
                self._replica_of[engine] = None
                self._runtime.set_up(engine, False)
        for replica_id in sorted(here - set(self._replica_of), key=str):
            if None in self._replica_of:
                engine = self._replica_of.index(None)
                self._replica_of[engine] = replica_id
                self._runtime.set_up(engine, True)

    async def _begin(
        self, request: str, headers: Mapping[str, str], body: Mapping[str, Any]
    ) -> None:
        async with AsyncExitStack() as stack:
            conversation = await stack.enter_async_context(self._books.conversation(headers, body))
            turn = await stack.enter_async_context(self._books.turn(conversation, body))
            self._under_way[request] = turn, stack.pop_all()


def _folder(log: Path) -> Path:
    """Return a folder that no other router of the deployment writes to."""
    log.mkdir(parents=True, exist_ok=True)
    return Path(mkdtemp(prefix="router-", dir=log))


def _body(pending: PendingRequest | None) -> dict[str, Any] | None:
    """Return a request's body; None where it is no turn."""
    if pending is None:
        return None
    body = pending.kwargs.get("body", next(iter(pending.args), None))
    is_turn = isinstance(body, dict) and ("messages" in body or "prompt" in body)
    return body if is_turn else None
