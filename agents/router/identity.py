"""Which conversation a request belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# From the most explicit to the least, as routers and clients of the field have them.
_HEADERS = (
    "x-session-id",
    "x-session-affinity",
    "x-dynamo-session-id",
    "x-litellm-session-id",
    "x-smg-routing-key",
    "x-session-token",
)
_FIELDS = ("session_id", "conversation_id", "prompt_cache_key", "user")
_LAST = ("x-session-final", "x-dynamo-session-final")

OURS = ("session_id", "conversation_id")
"""Fields of a body that are meant for routers."""


def key(headers: Mapping[str, str], body: Mapping[str, Any]) -> str | None:
    """Return what names a request's conversation; None where nothing does.

    Clients' own names are not kept: the key is a digest of them.
    """
    for name in _HEADERS:
        if value := headers.get(name):
            return _digest("session", value)
    for name in _FIELDS:
        value = body.get(name)
        if isinstance(value, str) and value:
            # A session may be named in a header once and in the body another time.
            return _digest("session" if name in OURS else name, value)
    return None


def is_last(headers: Mapping[str, str]) -> bool:
    """Return whether a client says that no further turn will come."""
    return any(headers.get(name, "").lower() in ("1", "true", "yes") for name in _LAST)


def prefixes(body: Mapping[str, Any]) -> list[str]:
    """Return a digest of every prefix of a chat's messages, the shortest first.

    A chat whose messages begin with those of an earlier request continues it. Two chats that begin
    alike are told apart only once they differ.
    """
    messages = body.get("messages")
    if not isinstance(messages, list):
        return []
    digest = hashlib.sha256(b"messages")
    found = []
    for message in messages:
        digest.update(json.dumps(message, sort_keys=True).encode())
        digest.update(b"\n")
        found.append(digest.copy().hexdigest()[:32])
    return found


def _digest(kind: str, value: str) -> str:
    return hashlib.sha256(f"{kind}:{value}".encode()).hexdigest()[:32]
