"""llama.cpp's server: a slot is saved to a file on one engine and restored on another.

Engines that hand over to each other share a folder, their ``--slot-save-path``. Checked with the
server of xllamacpp 2026.10.11549; newer builds are said to restore nothing
(github.com/ggml-org/llama.cpp/issues/26676), which costs the decoder a prefill and nothing else.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from conserve_gym.agents.router.adapters.base import Handover, Request
from conserve_gym.agents.router.adapters.openai import OpenAiAdapter
from conserve_gym.agents.router.adapters.slots import Slots
from conserve_gym.agents.router.errors import EngineError, RefusedError

_PREFIX = "conserve-"


class LlamaCppAdapter(OpenAiAdapter):
    """Speaks to a llama.cpp server.

    Args:
        session: What connections are made with.
        url: Address of the engine, without ``/v1``.
        api_key: What the engine wants to see.
        slot_folder: The engines' ``--slot-save-path``, as this process sees it; it belongs to this
            router alone.
    """

    hands_over = True
    health = "/health"

    def __init__(
        self, session: aiohttp.ClientSession, url: str, api_key: str | None, slot_folder: Path
    ) -> None:
        """Prepare to speak, and clear away what an earlier router has left."""
        super().__init__(session, url, api_key)
        self._folder = slot_folder
        self._slots: Slots | None = None
        self._saving: set[asyncio.Task[Any]] = set()
        for left in slot_folder.glob(f"{_PREFIX}*.bin"):
            left.unlink(missing_ok=True)

    async def check(self) -> None:
        """Ask whether the engine is well, and the first time how many slots it has."""
        await super().check()
        if self._slots is None:
            count = (await self._ask("GET", "/props")).get("total_slots")
            if not isinstance(count, int) or count < 1:
                raise EngineError(f"/props says total_slots={count!r}")
            self._slots = Slots(count)

    def restarted(self) -> None:
        """Forget who keeps which slot; turns that still run give theirs back to nobody."""
        self._slots = None

    @asynccontextmanager
    async def lease(self, conversation: int) -> AsyncIterator[None]:
        """Reserve a slot for a turn."""
        async with self._known_slots().lease(conversation):
            yield

    async def prefill(self, request: Request, history: Handover | None) -> Handover:
        """Compute a prompt and save its slot."""
        if history is not None:
            await self.take(request.conversation, history)
        body = self._asked(request, None)
        body.pop("stream_options", None)
        body.pop("max_completion_tokens", None)
        body |= {"stream": False, "max_tokens": 1, "n": 1}
        answer = await self._ask("POST", request.path, body)
        saved = await self._save(request.conversation)
        try:
            cached = int(answer["timings"]["cache_n"])
        except (KeyError, TypeError, ValueError):
            cached = 0
        return Handover(saved.ticket, saved.tokens, cached, saved.size_bytes)

    async def give(self, conversation: int) -> Handover | None:
        """Save the slot that a conversation keeps."""
        handover = await self._save(conversation)
        if handover.tokens:
            return handover
        self.discard(handover)
        return None

    async def take(self, conversation: int, handover: Handover) -> bool:
        """Restore a slot."""
        path = f"/slots/{self.kept(conversation)}?action=restore"
        try:
            answer = await self._ask("POST", path, {"filename": handover.ticket})
        except RefusedError as error:
            raise EngineError(f"the slot file was refused: {error.body[:200]!r}") from None
        if answer.get("n_restored") != handover.tokens:
            raise EngineError(f"{answer.get('n_restored')} of {handover.tokens} tokens restored")
        return True

    def discard(self, handover: Handover) -> None:
        """Delete the slot file."""
        (self._folder / handover.ticket).unlink(missing_ok=True)

    def kept(self, conversation: int) -> int | None:
        """Return the slot of a conversation."""
        return self._slots.of(conversation) if self._slots else None

    def remember(self, conversation: int, kept: int) -> None:
        """Know again which slot a conversation has."""
        if self._slots:
            self._slots.remember(conversation, kept)

    def forget(self, conversation: int) -> None:
        """Give the slot of a conversation back."""
        if self._slots:
            self._slots.forget(conversation)

    def _known_slots(self) -> Slots:
        if self._slots is None:
            raise EngineError("the engine has not said how many slots it has", broken=True)
        return self._slots

    def _asked(self, request: Request, handover: Handover | None) -> dict[str, Any]:
        slot = self.kept(request.conversation)
        where = {} if slot is None else {"id_slot": slot}  # the engine was away meanwhile
        return {**request.body, "cache_prompt": True, **where}

    async def _save(self, conversation: int) -> Handover:
        # The name is ours alone: nothing that a client sends becomes part of a path.
        name = f"{_PREFIX}{secrets.token_hex(16)}.bin"
        path = f"/slots/{self.kept(conversation)}?action=save"
        saving = asyncio.create_task(self._ask("POST", path, {"filename": name}))
        self._saving.add(saving)
        saving.add_done_callback(self._saving.discard)
        empty = Handover(name, 0)
        try:
            answer = await asyncio.shield(saving)
            return Handover(name, int(answer["n_saved"]), 0, int(answer["n_written"]))
        except asyncio.CancelledError:
            # The engine writes on; its file goes when it has.
            saving.add_done_callback(lambda done: self._abandoned(done, empty))
            raise
        except (KeyError, TypeError, ValueError):
            self.discard(empty)
            raise EngineError("the engine does not say what it saved") from None
        except (EngineError, RefusedError) as error:
            self.discard(empty)
            raise EngineError(f"the slot could not be saved: {error}") from None

    def _abandoned(self, saving: asyncio.Task[Any], handover: Handover) -> None:
        if not saving.cancelled():
            saving.exception()  # looked at, so that nobody complains that it was not
        self.discard(handover)
