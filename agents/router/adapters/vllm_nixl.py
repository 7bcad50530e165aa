"""vLLM with its NixlConnector: the prefill engine's answer says where the KV cache waits.

The decoder pulls it when it is asked for its answer. Protocol: ``kv_transfer_params`` of vLLM's
``toy_proxy_server.py`` (0.32.0).
"""

from __future__ import annotations

from typing import Any

from conserve_gym.agents.router.adapters.base import Handover, Request
from conserve_gym.agents.router.adapters.openai import OpenAiAdapter
from conserve_gym.agents.router.errors import EngineError

_REMOTE_DECODE = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


class VllmNixlAdapter(OpenAiAdapter):
    """Speaks to a vLLM server that was started with a NixlConnector."""

    hands_over = True
    health = "/health"

    async def prefill(self, request: Request, history: Handover | None) -> Handover:
        """Compute a prompt and leave its KV cache for a decoder."""
        body = dict(request.body)
        body.pop("stream_options", None)
        if "max_completion_tokens" in body:
            body["max_completion_tokens"] = 1
        body |= {"stream": False, "max_tokens": 1, "n": 1, "kv_transfer_params": _REMOTE_DECODE}
        answer = await self._ask("POST", request.path, body)
        ticket, usage = answer.get("kv_transfer_params"), answer.get("usage")
        if not isinstance(ticket, dict) or not isinstance(usage, dict):
            raise EngineError("the answer has no kv_transfer_params or no usage")
        details = usage.get("prompt_tokens_details") or {}
        return Handover(ticket, int(usage["prompt_tokens"]), int(details.get("cached_tokens") or 0))

    async def take(self, conversation: int, handover: Handover) -> bool:
        """Fetch nothing yet: the engine does so while it answers."""
        return False

    def _asked(self, request: Request, handover: Handover | None) -> dict[str, Any]:
        if handover is None:
            return dict(request.body)
        return {**request.body, "kv_transfer_params": handover.ticket}
