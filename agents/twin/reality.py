"""Plays conversations through the real router on real engines, and reads the router's ledger."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp

from conserve_gym.agents.runtime import log as decision_log
from conserve_gym.agents.twin import processor
from conserve_gym.agents.twin.engines import Engines
from conserve_gym.agents.twin.texts import Letters, Words
from conserve_gym.envs.workloads.conversation import Conversation
from conserve_gym.errors import ConServeGymError
from conserve_gym.ledger import Event, TurnFinished, event_of

# What ``scripts/serve.py`` does; a wheel has no scripts.
_SERVE = "from conserve_gym.agents.cli import serve; serve()"
_START_S = 60.0
_SILENCE_S = 120.0


class RealityError(ConServeGymError):
    """A router or an engine that fails; the message says how."""


class Played(NamedTuple):
    """What came of an episode.

    Attributes:
        events: The router's ledger, with conversations numbered as they were given.
        conversations: What was played, with lengths as the engines counted them.
        router_share: Processor time of router and clients over the episode's time; NaN where the
            system does not tell it.
        waited_pct: Time that engines waited for a processor that others had, as a share of the time
            that they had or wanted one.
    """

    events: list[Event]
    conversations: list[Conversation]
    router_share: float
    waited_pct: float


def play(
    engines: Engines, policy: Path, conversations: Sequence[Conversation], seed: str, folder: Path
) -> Played:
    """Play an episode.

    Args:
        engines: Real ones.
        policy: An exported policy.
        conversations: The episode, in order of arrival.
        seed: Of the texts; no two episodes share one, because engines keep what they have seen.
        folder: Where the router writes.

    Raises:
        RealityError: The router does not start, or a turn fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = Letters if engines.speaks_letters else Words
    with _router(engines, policy, kind.tokens_per_character, folder) as (url, process):
        clients = [_Client(c, kind(f"{seed} {i}")) for i, c in enumerate(conversations)]
        ours = (process.pid, os.getpid())
        began, before = time.monotonic(), processor.read(ours)
        engines_before = processor.read(engines.processes)
        asyncio.run(_converse(url, clients))
        waited_pct = (processor.read(engines.processes) - engines_before).waited_pct
        router_share = (processor.read(ours) - before).ran_s / (time.monotonic() - began)
    indices = {client.number: i for i, client in enumerate(clients)}
    events: list[Event] = []
    for path in decision_log.segments(folder / "log"):
        for record in decision_log.read(path):
            if "event" in record:
                record["conversation"] = indices[record["conversation"]]
                events.append(event_of(record))
    return Played(events, counted(events, conversations), router_share, waited_pct)


def counted(events: Sequence[Event], planned: Sequence[Conversation]) -> list[Conversation]:
    """Return conversations with lengths as a ledger has them, and arrivals and gaps as planned."""
    lengths: dict[int, list[tuple[int, int]]] = {}
    for event in events:
        if isinstance(event, TurnFinished):
            said = lengths.setdefault(event.conversation, [])
            said.append((event.input_tokens, event.output_tokens))
    found = []
    for i, conversation in enumerate(planned):
        old = [0, *(sum(one) for one in lengths[i])]
        turns = tuple(
            turn._replace(input_tokens=read, new_tokens=max(read - held, 1), output_tokens=written)
            for turn, held, (read, written) in zip(
                conversation.turns, old, lengths[i], strict=False
            )
        )
        found.append(conversation._replace(turns=turns))
    return found


class _Client:
    """Holds one conversation."""

    def __init__(self, conversation: Conversation, speaker: Letters | Words) -> None:
        """Prepare to speak."""
        self.conversation = conversation
        self.number = -1
        self._speaker = speaker

    async def converse(self, session: aiohttp.ClientSession, url: str, began: float) -> None:
        """Take every turn when it is due."""
        clock = asyncio.get_running_loop().time
        turns = self.conversation.turns
        prompts = [self._speaker.first(turns[0].input_tokens)]
        prompts += [self._speaker.more(turn.new_tokens) for turn in turns[1:]]
        text = ""
        await asyncio.sleep(began + self.conversation.arrival_s - clock())
        for i, (turn, prompt) in enumerate(zip(turns, prompts, strict=True)):
            if i:
                await asyncio.sleep(turn.gap_s)
            text += prompt
            text += await self._answer(session, url, text, turn.output_tokens, i + 1 == len(turns))

    async def _answer(
        self, session: aiohttp.ClientSession, url: str, prompt: str, tokens: int, last: bool
    ) -> str:
        body = {
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        headers = {"x-session-id": str(id(self)), "x-session-final": str(last).lower()}
        try:
            async with session.post(f"{url}/v1/completions", json=body, headers=headers) as answer:
                said = await answer.read()
                if answer.status != 200:
                    raise RealityError(f"the router answered {answer.status}: {said[:200]!r}")
        except (aiohttp.ClientError, OSError) as error:
            raise RealityError(f"the router failed: {error}") from None
        self.number = int(answer.headers["x-conserve-conversation"])
        return _text(said)


def _text(stream: bytes) -> str:
    """Return the text of a streamed answer."""
    text = ""
    for line in stream.split(b"\n"):
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                raise RealityError(f"a turn broke off: {event['error']}")
            text += "".join(choice.get("text") or "" for choice in event.get("choices", ()))
    return text


async def _converse(url: str, clients: Sequence[_Client]) -> None:
    timeout = aiohttp.ClientTimeout(total=None, sock_read=_SILENCE_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = asyncio.get_running_loop().time() + 0.1
        try:
            async with asyncio.TaskGroup() as group:
                for client in clients:
                    group.create_task(client.converse(session, url, began))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None


@contextmanager
def _router(
    engines: Engines, policy: Path, tokens_per_character: float, folder: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a router in a process of its own."""
    each = ",".join(
        f"{{name:{one.name},url:'{one.url}',role:{one.role},adapter:{one.adapter},"
        f"kv_tokens:{one.kv_tokens}}}"
        for one in engines.each
    )
    arguments = [
        f"engines=[{each}]",
        f"slot_folder={engines.slot_folder or 'null'}",
        f"policy={policy.resolve()}",
        f"log={(folder / 'log').resolve()}",
        f"tokens_per_character={tokens_per_character}",
        "port=0",
    ]
    says = folder / "router.log"
    with says.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, *arguments], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + _START_S
        while not (found := re.search(r"serving on (http://\S+)\n", says.read_text())):
            if process.poll() is not None or time.monotonic() > end:
                raise RealityError(f"the router did not start: {says.read_text()[-500:]}")
            time.sleep(0.05)
        yield found.group(1), process
        process.terminate()  # it writes its log to the end
        process.wait(20)
    finally:
        process.kill()
        process.wait()
