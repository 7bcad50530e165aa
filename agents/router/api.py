"""What of OpenAI's API is served turn by turn."""

from __future__ import annotations

from typing import Any

from conserve_gym.agents.router.errors import ApiError

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def checked(path: str, body: object) -> dict[str, Any]:
    """Return the body of a request for a completion.

    Raises:
        ApiError: It is none.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "the body is no JSON object", "invalid_json")
    needed, kinds = ("messages", list) if path == CHAT else ("prompt", (str, list))
    if not isinstance(body.get(needed), kinds):
        raise ApiError(400, f"{needed} is needed", "missing_field")
    return body
