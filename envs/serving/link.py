"""KV transfer between engines: what a move adds to a turn's latency."""

from __future__ import annotations

from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT, NotNegative


@dataclass(frozen=True, config=STRICT)
class LinkSpec:
    """Exposed time of a KV move, after overlap with the prefill that precedes it.

    ``small_ms`` up to ``small_tokens`` tokens, else ``base_ms + token_us * tokens``.

    Attributes:
        small_tokens: Largest move of the constant regime.
        small_ms: Its time.
        base_ms: Constant part of larger moves.
        token_us: What each token adds to them.
    """

    small_tokens: NonNegativeInt
    small_ms: NotNegative
    base_ms: NotNegative
    token_us: NotNegative


class Link:
    """The way out of one engine: moves follow one another.

    Args:
        spec: Law of the exposed time.
    """

    def __init__(self, spec: LinkSpec) -> None:
        """Start unused."""
        self._spec = spec
        self._free_s = 0.0

    def seconds(self, tokens: int) -> float:
        """Return the time of a move of ``tokens`` on a free link."""
        spec = self._spec
        if tokens <= spec.small_tokens:
            return spec.small_ms * 1e-3
        return spec.base_ms * 1e-3 + spec.token_us * 1e-6 * tokens

    def send(self, now: float, tokens: int) -> float:
        """Begin a move and return how many seconds from ``now`` it arrives."""
        self._free_s = max(now, self._free_s) + self.seconds(tokens)
        return self._free_s - now
