"""An engine's answer that passes by: when its first token comes, and what it says was used."""

from __future__ import annotations

import json
from typing import Any

from conserve_gym.agents.router import sse


class Overheard:
    """Looks into an answer without holding it up.

    Args:
        streamed: Whether it is a stream of server-sent events; else it is one JSON object.

    Attributes:
        begun: Whether a token was seen; of an answer that is not streamed none is before its end.
    """

    def __init__(self, *, streamed: bool) -> None:
        """Start before its beginning."""
        self.begun = False
        self._streamed = streamed
        self._cutter = sse.Cutter()
        self._body = bytearray()
        self._usage: dict[str, Any] = {}
        self._tokens = 0

    def listen(self, part: bytes) -> None:
        """Take in what came.

        Raises:
            StreamError: It is no answer of an engine.
        """
        if not self._streamed:
            self._body += part
            return
        for event in self._cutter.cut(part):
            self._take(sse.data(event))

    def end(self) -> dict[str, Any]:
        """Return the usage of tokens.

        A stream that tells none has a token an event, as engines send them.

        Raises:
            StreamError: It was no answer of an engine.
        """
        if self._streamed:
            for event in self._cutter.end():
                self._take(sse.data(event))
        else:
            try:
                self._take(json.loads(self._body))
            except ValueError:
                raise sse.StreamError("the answer is no JSON") from None
        return self._usage or {"completion_tokens": self._tokens}

    def _take(self, value: Any) -> None:
        if not isinstance(value, dict):
            return
        if isinstance(usage := value.get("usage"), dict):
            self._usage = usage
        if sse.has_token(value):
            self.begun = True
            self._tokens += 1
