"""How long prompts are, in tokens, before any engine has counted them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_FADE = 0.9  # of what is known of tokens in a character, with every prompt that an engine counts


class Lengths:
    """Estimates tokens from characters, by what engines have counted so far.

    Args:
        tokens_per_character: Until then.
    """

    def __init__(self, tokens_per_character: float) -> None:
        """Start with a guess of one prompt's weight."""
        self._tokens = 1000.0 * tokens_per_character
        self._characters = 1000.0

    @property
    def tokens_per_character(self) -> float:
        """Tokens in a character, as known."""
        return self._tokens / self._characters

    def tokens(self, characters: int) -> int:
        """Return the tokens of a text."""
        return max(round(characters * self.tokens_per_character), 1)

    def learn(self, characters: int, tokens: int) -> None:
        """Take in what an engine has counted."""
        if characters > 0 and tokens > 0:
            self._tokens = self._tokens * _FADE + tokens
            self._characters = self._characters * _FADE + characters


def characters(body: Mapping[str, Any]) -> int:
    """Return the characters of a request's prompt: of texts, tools and calls of tools."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return len(prompt)
    count = 0
    for message in body.get("messages") or ():
        if isinstance(message, dict):
            content = message.get("content")
            count += len(content) if isinstance(content, str) else _size(content)
            count += _size(message.get("tool_calls"))
    return count + _size(body.get("tools"))


def exact_tokens(body: Mapping[str, Any]) -> int | None:
    """Return the length of a prompt that is given in tokens; None of any other."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return len(prompt)
    return None


def _size(value: Any) -> int:
    return len(json.dumps(value)) if value else 0
